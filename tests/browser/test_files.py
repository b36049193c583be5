"""The files that the page is made of, as they are served: no browser is needed."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest
from starlette.testclient import TestClient

from service.routes import playground


def test_every_file_is_served_and_no_other(client: TestClient) -> None:
    assert {*playground.FILES, playground.PAGE} == {path.name for path in playground.FOLDER.iterdir()}
    for name in playground.FILES:
        response = client.get(f"/playground/{name}")
        assert response.content == (playground.FOLDER / name).read_bytes()
        kind = {"js": "text/javascript", "css": "text/css"}[name.rpartition(".")[2]]
        assert response.headers["content-type"].startswith(kind)
    for name in ("index.html", "..%2fplayground.py", "nothing.js"):
        assert client.get(f"/playground/{name}").headers["content-type"] == "application/problem+json"


def test_a_file_that_the_browser_has_is_not_sent_again(client: TestClient) -> None:
    """It was, each time, though its ETag had been given."""
    for path in ("/", "/playground/main.js"):
        tag = client.get(path).headers["etag"]
        for known in (tag, f'"other", W/{tag}', "*"):
            again = client.get(path, headers={"if-none-match": known})
            assert (again.status_code, again.content, again.headers["etag"]) == (304, b"", tag)
            assert again.headers["cache-control"] == "no-cache"
        assert client.get(path, headers={"if-none-match": '"other"'}).status_code == 200


def test_another_file_of_the_same_time_and_size_is_sent(
    client: TestClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Regression: it was not, so that of two images whose files have one time the browser mixed the scripts."""
    monkeypatch.setattr(playground, "FOLDER", tmp_path)
    tags = []
    for content in (b"1;", b"2;"):
        (tmp_path / "main.js").write_bytes(content)
        os.utime(tmp_path / "main.js", (1, 1))
        response = client.get("/playground/main.js", headers={"if-none-match": ", ".join(tags)})
        assert (response.status_code, response.content) == (200, content)
        tags.append(response.headers["etag"])


@pytest.mark.parametrize("asked", ["bytes=abc", "bytes=99999999-", "bytes=0-1"])
def test_files_are_sent_whole(client: TestClient, asked: str) -> None:
    """Regression: what `Range` got wrong was answered with 400 as plain text, or with 416 and nothing."""
    for path, name in (("/", playground.PAGE), ("/playground/main.js", "main.js")):
        response = client.get(path, headers={"range": asked})
        assert (response.status_code, response.headers["accept-ranges"]) == (200, "none")
        assert response.content == (playground.FOLDER / name).read_bytes()


def test_the_page_forbids_foreign_and_inline_scripts(client: TestClient) -> None:
    response = client.get("/")
    assert "default-src 'self'; img-src 'self' blob: data:;" in response.headers["content-security-policy"]
    assert not re.search(r"<script(?![^>]*\bsrc=)|<style|\sstyle=|\son\w+=", response.text)
