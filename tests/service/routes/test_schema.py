"""Schemathesis sends a real service what the OpenAPI file allows, and what it forbids, and checks the answers."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from service.app import ENDPOINTS
from service.http.middleware import ALWAYS_OPEN
from service.prior.draws import SEED_LIMIT
from service.routes.endpoints import openapi
from service.wire.inference_protocol import HEADER_LENGTH
from tests.service.conftest import Generating
from tests.service.serving import serving

CONFIGURATION = Path(__file__).with_name("schemathesis.toml")
CODEC = "^/(encode|decode|generate|score)$"


@pytest.fixture(scope="module")
def address(generating: Generating) -> Iterator[str]:
    with serving(*generating.folders) as (_, url):
        yield url


@pytest.mark.parametrize(
    ("model", "paths", "examples"), [("digits", "", 4), ("colour", CODEC, 6), ("silent", CODEC, 6)]
)
def test_every_answer_is_one_that_the_openapi_file_documents(
    address: str, tmp_path: Path, model: str, paths: str, examples: int
) -> None:
    """All checks, all phases without state; a model with labels, one of any size, and one without a prior."""
    command = [str(Path(sys.executable).with_name("schemathesis")), f"--config-file={CONFIGURATION}", "run"]
    options = ["--phases=examples,coverage,fuzzing", f"--max-examples={examples}", "--seed=7", "--no-color"]
    options += [f"--include-path-regex={paths}"] if paths else []
    result = subprocess.run(
        [*command, f"{address}/openapi.json", *options],
        cwd=tmp_path,  # it writes its cache there
        env={**os.environ, "MODEL": model},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    sent = re.search(r"(\d+) generated, (\d+) passed", result.stdout)
    assert sent is not None, result.stdout
    assert sent[1] == sent[2]
    assert int(sent[1]) > 100


def test_every_operation_documents_the_statuses_that_any_route_can_have() -> None:
    """Keys, limits, faults, shutdown and the deadline are decided in front of every handler."""
    paths = openapi(ENDPOINTS, "title", "version", "description", ALWAYS_OPEN)["paths"]
    for operation in (one for path in paths.values() for one in path.values()):
        documented = set(operation["responses"])
        assert {"400", "405", "500", "503", "504"} <= documented, operation["operationId"]
        of_others = set() if operation.get("security") == [] else {"401", "429"}
        assert documented & {"401", "429"} == of_others, operation["operationId"]
        assert all("ProblemAnswer" in json.dumps(operation["responses"][s]) for s in documented if s >= "400")


def test_a_generated_client_finds_where_keys_go_and_which_headers_come() -> None:
    """Every operation listed 401, and none said where a key goes."""
    document = openapi(ENDPOINTS, "title", "version", "description", ALWAYS_OPEN)
    schemes, paths = document["components"]["securitySchemes"], document["paths"]
    assert {frozenset(one) for one in document["security"]} == {frozenset(), frozenset({"bearer"}), frozenset({"key"})}
    assert set(schemes) == {"bearer", "key"} and schemes["key"]["name"] == "X-API-Key"
    open_paths = {path for path, operations in paths.items() if operations.get("get", {}).get("security") == []}
    assert open_paths == ALWAYS_OPEN
    answers = paths["/generate"]["post"]["responses"]
    assert {"X-Vqserve-Seed", "X-Request-ID"} <= set(answers["200"]["headers"])
    infer = paths["/v2/models/{name}/infer"]["post"]
    described = infer["requestBody"]["content"]["application/octet-stream"]["schema"]["description"]
    assert HEADER_LENGTH in infer["responses"]["200"]["headers"] and HEADER_LENGTH in described
    assert {status for status, answer in answers.items() if "Retry-After" in answer["headers"]} == {"429", "503"}
    asked = [(one["name"], one["in"], one["schema"]["type"]) for one in infer["parameters"]]
    assert asked == [("name", "path", "string"), (HEADER_LENGTH, "header", "integer")]


def test_a_generated_client_reads_what_it_is_answered() -> None:
    """A seed became a number of 32 bits, a shape a list of anything, and one picture a list of them."""
    document = openapi(ENDPOINTS, "title", "version", "description", ALWAYS_OPEN)
    schemas = document["components"]["schemas"]
    request, answer = (schemas[name]["properties"]["seed"] for name in ("GenerateRequest", "GenerateAnswer"))
    assert request["anyOf"][0] == {"type": "integer", "format": "int64", "minimum": 0, "exclusiveMaximum": SEED_LIMIT}
    generated = document["paths"]["/generate"]["post"]["responses"]["200"]
    assert answer["format"] == generated["headers"]["X-Vqserve-Seed"]["schema"]["format"] == "int64"
    by_label = schemas["ScoreAnswer"]["properties"]["bits_by_label"]  # a list or absent: null never comes
    assert by_label["type"] == "array" and "bits_by_label" not in schemas["ScoreAnswer"]["required"]
    assert "200" not in document["paths"]["/v2/repository/models/{name}/unload"]["post"]["responses"]
    for shape in (schemas["EncodeAnswer"]["properties"]["shape"], schemas["ScoreAnswer"]["properties"]["codes_shape"]):
        assert (shape["items"], shape["minItems"], shape["maxItems"]) == ({"type": "integer"}, 2, 2)
    for path in ("/encode", "/score"):
        content = document["paths"][path]["post"]["responses"]["200"]["content"]
        one, many = (
            schemas[either["$ref"].rpartition("/")[2]] for either in content["application/json"]["schema"]["oneOf"]
        )
        assert not one["additionalProperties"] and not many["additionalProperties"]
        assert set(one["required"]) - set(many["required"]) and "items" not in one["properties"]
