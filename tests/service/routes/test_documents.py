"""What the docs say is what the code has; and the OpenAPI file is valid and complete."""

from __future__ import annotations

import re
from urllib.parse import urljoin

import pytest
from fastapi.openapi.models import OpenAPI
from prometheus_client.parser import text_string_to_metric_families
from starlette.testclient import TestClient

from service import __version__
from service.app import ENDPOINTS
from service.reference import DOCS, rewritten
from service.settings import Settings


@pytest.mark.parametrize("name", ["api.md", "configuration.md", "metrics.md"])
def test_generated_parts_are_up_to_date(name: str) -> None:
    text = (DOCS / name).read_text(encoding="utf-8")
    assert "<!-- generated:" in text
    assert rewritten(text) == text, "run python -m service.reference"


def test_every_metric_on_the_page_is_in_the_docs(client: TestClient, digit: bytes) -> None:
    client.post("/encode", files={"img": digit})
    page = client.get("/metrics").text
    documented = set(re.findall(r"`(vqserve_\w+)`", (DOCS / "metrics.md").read_text(encoding="utf-8")))
    families = {
        f"{family.name}_total" if family.type == "counter" else family.name
        for family in text_string_to_metric_families(page)
    }
    assert families <= documented
    assert "vqserve_requests_total" in families


def test_every_setting_says_what_it_does() -> None:
    for name, field in Settings.model_fields.items():
        assert field.description, name


def test_openapi_is_valid_and_has_every_route(client: TestClient) -> None:
    document = client.get("/openapi.json").json()
    OpenAPI.model_validate(document)
    operations = [operation for path in document["paths"].values() for operation in path.values()]
    assert len(operations) == len(ENDPOINTS)
    ids = [operation["operationId"] for operation in operations]
    assert len(set(ids)) == len(ids)
    references = set(re.findall(r"#/components/schemas/(\w+)", client.get("/openapi.json").text))
    assert references <= set(document["components"]["schemas"])


def test_servers_are_beside_the_openapi_file(client: TestClient) -> None:
    """Behind a proxy that adds a path, "Try it out" of /docs asked outside of that."""
    (server,) = client.get("/openapi.json").json()["servers"]
    beside = urljoin("https://example.org/pictures/openapi.json", server["url"])
    assert beside == "https://example.org/pictures/"


def test_the_docs_page_asks_no_other_host_than_the_cdn(client: TestClient) -> None:
    """It took its icon from FastAPI's."""
    page = client.get("/docs")
    assert page.status_code == 200
    assert set(re.findall(r"https?://([^/]+)", page.text)) == {"cdn.jsdelivr.net"}


def test_version_is_that_of_the_package() -> None:
    text = (DOCS.parent / "pyproject.toml").read_text(encoding="utf-8")
    assert f'version = "{__version__}"' in text
