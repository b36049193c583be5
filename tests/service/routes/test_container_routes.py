"""Containers over HTTP: labels, indexes, single tiles, and large pictures, with priors behind them."""

from __future__ import annotations

import io
import json
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from starlette.testclient import TestClient

from service import codec
from service.bundle import load_bundle
from service.codec.container import MEDIA_TYPE, MODEL_PREFIX_BYTES, Header, Mode, read_header, write_header
from service.inference.prior_sessions import codec_model
from service.inference.sessions import CPU, SessionMaker
from service.routes.encoding import ENCODE
from service.routes.endpoints import Endpoint
from service.routes.scoring import SCORE
from service.settings import Settings
from tests.conftest import PICTURES, Tiny, running
from tests.tiny_bundle import tiny_prior, write_tiny_bundle

CONTAINER, NPY = {"accept": MEDIA_TYPE}, "application/x-npy"


@pytest.fixture(scope="module")
def coding_settings(tiny: Tiny, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("coding")
    write_tiny_bundle(folder / "digits", "digits", prior=tiny_prior())
    write_tiny_bundle(folder / "photos", "photos", any_size=True, prior=tiny_prior(label_count=0))
    return {**tiny.settings, "bundles": (folder / "digits", folder / "photos", tiny.colour)}


@pytest.fixture(scope="module")
def coding(coding_settings: dict[str, Any]) -> Iterator[TestClient]:
    with running(Settings(**coding_settings)) as client:
        yield client


def picture(height: int, width: int) -> bytes:
    """A real photograph, enlarged to this size."""
    stream = io.BytesIO()
    with Image.open(PICTURES / "ladybird_crop.jpg") as image:
        image.resize((width, height)).save(stream, "PNG")
    return stream.getvalue()


def decoded(client: TestClient, container: bytes, query: str) -> NDArray[np.uint8]:
    headers = {"content-type": MEDIA_TYPE, "accept": NPY}
    response = client.post(f"/decode{query}", content=container, headers=headers)
    assert response.status_code == 200, response.text
    return np.load(io.BytesIO(response.content))  # type: ignore[no-any-return]


def test_tiles_put_together_are_the_whole_picture(coding: TestClient) -> None:
    """Pixels for pixels, at a size that is no multiple of anything: no seams."""
    query = "?model=photos&fit=pad&indexed=true"
    container = coding.post(f"/encode{query}", files={"img": picture(131, 258)}, headers=CONTAINER).content
    header, _ = read_header(container)
    assert header.indexed and header.size == (131, 258)
    whole = decoded(coding, container, "?model=photos")
    native = coding.get("/models/photos").json()["picture"]
    rows = []
    columns = -(-258 // native["width"])
    for top in range(-(-131 // native["height"])):
        tiles = [decoded(coding, container, f"?model=photos&tile={top * columns + left}") for left in range(columns)]
        rows.append(np.concatenate(tiles, axis=1))
    assert columns > 2 and np.array_equal(np.concatenate(rows), whole)


def test_a_container_finds_the_model_that_made_it(coding: TestClient, digit: bytes) -> None:
    """It was refused by the default model, though the one that it names was served beside it."""
    container = coding.post("/encode?model=photos&fit=pad", files={"img": picture(40, 60)}, headers=CONTAINER).content
    assert decoded(coding, container, "").shape == (40, 60, 3)
    headers = {"content-type": MEDIA_TYPE}
    refused = coding.post("/decode?model=digits", content=container, headers=headers)
    says = "Model 'photos' made the container, not 'digits': leave ?model= out."
    assert (refused.status_code, refused.json()["detail"]) == (422, says)
    nobodys = write_header(Header(Mode.RAW, b"\0" * MODEL_PREFIX_BYTES, 0)) + bytes(25)
    assert "this is digits" in coding.post("/decode", content=nobodys, headers=headers).json()["detail"]


def test_the_name_in_a_container_is_for_people(coding_settings: dict[str, Any], tmp_path: Path) -> None:
    """Regression: a bundle that is served under another name could not read containers that have the first one."""
    write_tiny_bundle(tmp_path, "digits", prior=tiny_prior())
    model = codec_model(load_bundle(tmp_path), SessionMaker(CPU, 1).open)
    named = codec.encode(model, np.zeros((1, 7, 7), np.int64), named=True)
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    (tmp_path / "manifest.json").write_text(json.dumps({**manifest, "name": "digits-old"}))
    with running(Settings(**{**coding_settings, "bundles": (tmp_path,)})) as client:
        assert decoded(client, named, "").shape == (28, 28, 1)


def test_pictures_of_several_sizes_do_not_fit_one_container(coding: TestClient) -> None:
    files = [("img", picture(*size)) for size in ((40, 60), (40, 60), (44, 60))]
    refused = coding.post("/encode?model=photos&fit=pad", files=files, headers=CONTAINER)
    assert refused.status_code == 422 and refused.json()["type"].endswith(":wrong-picture-size")
    assert refused.json()["detail"].startswith("Picture 3 of 3: it is 60x44, the first one 60x40")


def test_a_container_and_its_codes_decode_to_the_same(coding: TestClient) -> None:
    for query, size in (("?model=photos", (96, 64)), ("?model=photos", (400, 360))):
        codes = coding.post(f"/encode{query}", files={"img": picture(*size)}, headers={"accept": NPY}).content
        container = coding.post(f"/encode{query}", files={"img": picture(*size)}, headers=CONTAINER).content
        headers = {"content-type": NPY, "accept": NPY}
        plain = np.load(io.BytesIO(coding.post(f"/decode{query}", content=codes, headers=headers).content))
        assert plain.shape == (*size, 3) and np.array_equal(decoded(coding, container, query), plain)


def test_a_label_never_costs_bytes(coding: TestClient) -> None:
    """It is stored only where it saves at least as much as it takes; the codes are the same in any case."""
    files = [("img", (PICTURES / f"digit_{n}.png").read_bytes()) for n in (0, 1, 2, 4, 7)] * 4
    without = coding.post("/encode", files=files, headers=CONTAINER).content
    for label in range(3):
        container = coding.post(f"/encode?label={label}", files=files, headers=CONTAINER).content
        assert len(container) <= len(without)
        assert (read_header(container)[0].mode == Mode.LABELLED) == (len(container) < len(without))
        assert np.array_equal(decoded(coding, container, ""), decoded(coding, without, ""))


def test_effort_makes_smaller_containers(coding: TestClient) -> None:
    """Each picture's codes are the same alone and among others, as JSON and in a container."""
    files = [("img", (PICTURES / f"digit_{n}.png").read_bytes()) for n in (0, 1, 2, 4, 7)]
    plain = coding.post("/encode", files=files, headers=CONTAINER).content
    for query in ("?effort=0", "?effort=0.0"):
        assert coding.post(f"/encode{query}", files=files, headers=CONTAINER).content == plain
    small = coding.post("/encode?effort=4", files=files, headers=CONTAINER).content
    assert len(small) < len(plain)
    together = np.load(io.BytesIO(coding.post("/encode?effort=4", files=files, headers={"accept": NPY}).content))
    alone = [coding.post("/encode?effort=4", files=[file]).json()["codes"] for file in files]
    assert np.array_equal(together, alone)
    expected = coding.post("/decode", json={"codes": together.tolist()}, headers={"accept": NPY}).content
    assert np.array_equal(decoded(coding, small, ""), np.load(io.BytesIO(expected)))


@pytest.mark.parametrize(
    ("query", "accept", "message"),
    [
        ("?effort=5", MEDIA_TYPE, "0..4"),
        ("?effort=nan", MEDIA_TYPE, "0..4"),
        ("?effort=much", MEDIA_TYPE, "0..4"),
        ("?effort=1&model=tiny_colour", MEDIA_TYPE, "without a prior"),
        ("?label=3", MEDIA_TYPE, "0..2"),
        ("?label=-1", MEDIA_TYPE, "0..2"),
        ("?label=1&indexed=true", MEDIA_TYPE, "has no place for one"),
        ("?label=1", "application/json", f"needs Accept: {MEDIA_TYPE}"),
        ("?indexed=yes", MEDIA_TYPE, "true or false"),
        ("?indexed=true", NPY, f"needs Accept: {MEDIA_TYPE}"),
        ("?label=0&model=photos", MEDIA_TYPE, "there are no labels"),
        ("?label=0&model=tiny_colour", MEDIA_TYPE, "there are no labels"),
    ],
)
def test_impossible_wishes_of_encode(coding: TestClient, digit: bytes, query: str, accept: str, message: str) -> None:
    response = coding.post(f"/encode{query}", files={"img": digit}, headers={"accept": accept})
    assert response.status_code == 422 and message in response.json()["detail"]


@pytest.mark.parametrize("endpoint", [ENCODE, SCORE], ids=lambda endpoint: endpoint.path)
def test_a_default_may_be_sent(coding: TestClient, digit: bytes, endpoint: Endpoint) -> None:
    """Clients made from the OpenAPI file send them all; /encode refused `indexed=false` without a container to make."""
    defaults = {name: json.dumps(one["default"]).strip('"') for name, one in endpoint.query.items() if "default" in one}
    assert len(defaults) > 1
    sent = coding.post(endpoint.path, params=defaults, files={"img": digit})
    assert (sent.status_code, sent.content) == (200, coding.post(endpoint.path, files={"img": digit}).content)


def test_a_tile_of_several_pictures_is_one_picture(coding: TestClient, digit: bytes) -> None:
    container = coding.post("/encode?indexed=true", files=[("img", digit)] * 2, headers=CONTAINER).content
    asked = {"content-type": MEDIA_TYPE, "accept": "image/png"}
    assert coding.post("/decode?tile=1", content=container, headers=asked).status_code == 200


def test_impossible_tiles(coding: TestClient, digit: bytes) -> None:
    plain = coding.post("/encode", files={"img": digit}, headers=CONTAINER).content
    indexed = coding.post("/encode?indexed=true", files={"img": digit}, headers=CONTAINER).content
    for body, media_type, tile, message in (
        (plain, MEDIA_TYPE, "0", "no index of tiles"),
        (indexed, MEDIA_TYPE, "1", "no tile 1: the container has 1"),
        (indexed, MEDIA_TYPE, "x", "a whole number from 0"),
        (b'{"codes": [[0]]}', "application/json", "0", f"only a body of {MEDIA_TYPE}"),
    ):
        response = coding.post(f"/decode?tile={tile}", content=body, headers={"content-type": media_type})
        assert (response.status_code, response.json()["type"]) == (422, "urn:vqserve:problem:invalid-parameter")
        assert message in response.json()["detail"]


class Slow:
    """A session whose runs take this long, and their number."""

    def __init__(self, session: Any, seconds: float) -> None:
        self.session, self.seconds, self.runs = session, seconds, 0

    def run(self, *arguments: Any) -> Any:
        self.runs += 1
        time.sleep(self.seconds)
        return self.session.run(*arguments)


@pytest.fixture
def impatient(coding_settings: dict[str, Any]) -> Iterator[tuple[TestClient, Slow]]:
    """A deadline of 0.8 s, and a prior of "photos" that takes 50 ms a row."""
    with running(Settings(**{**coding_settings, "request_deadline_ms": 800})) as client:
        graphs = client.app.state.service.models.get("photos").codec.prior.graphs  # type: ignore[attr-defined]
        graphs._context = slow = Slow(graphs._context, 0.05)
        yield client, slow


def test_containers_whose_deadline_has_passed_leave_the_threads_to_others(
    impatient: tuple[TestClient, Slow], coding: TestClient, digit: bytes
) -> None:
    """A header alone, whose missing bytes count as zero: two of them kept both threads long after their 504."""
    client, slow = impatient
    small = coding.post("/encode", files={"img": digit}, headers=CONTAINER).content
    model = bytes.fromhex(client.get("/models/photos").json()["version"])[:MODEL_PREFIX_BYTES]
    alone = write_header(Header(Mode.PRIOR, model, checksum=0, size=(1024, 1024), colour=True))
    sent = {"content": alone, "headers": {"content-type": MEDIA_TYPE}}
    assert at_once(2, lambda: client.post("/decode?model=photos", **sent).status_code) == [504, 504]
    assert decoded(client, small, "").shape == (28, 28, 1)
    runs = slow.runs
    time.sleep(0.2)
    assert runs > 0 and slow.runs == runs


def test_effort_whose_deadline_has_passed_is_given_up(impatient: tuple[TestClient, Slow]) -> None:
    client, slow = impatient
    assert client.post("/encode?model=photos&effort=1", files={"img": picture(800, 800)}).status_code == 504
    time.sleep(0.1)
    runs = slow.runs
    time.sleep(0.2)
    assert runs > 0 and slow.runs == runs


def at_once(count: int, call: Callable[[], int]) -> list[int]:
    answers: list[int] = []
    threads = [threading.Thread(target=lambda: answers.append(call())) for _ in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return answers
