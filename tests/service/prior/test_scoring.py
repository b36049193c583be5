"""POST /score: the bits of PyTorch's prior for the codes that /encode gives."""

from __future__ import annotations

import threading
from itertools import product
from typing import Any

import numpy as np
import pytest
import torch
from starlette.testclient import TestClient

from benchmarks.tiny_prior import draw_codes, tiny_model
from service.codec.codec_model import CodecModel
from service.prior import likelihood
from service.prior.likelihood import bits_of
from tests.conftest import PICTURES
from tests.service import bad_inputs as bad
from tests.service.conftest import Generating
from training.models.prior import UNITS_PER_NAT, PixelCNN

DIGITS = [(PICTURES / f"digit_{n}.png").read_bytes() for n in (0, 1, 7)]


@torch.no_grad()
def bits(prior: PixelCNN, codes: Any, label: int) -> float:
    grid = torch.tensor(codes)
    logits = prior(grid[None], torch.tensor([label]))[0].double() / UNITS_PER_NAT
    return float(torch.nn.functional.cross_entropy(logits.flatten(0, 1), grid.flatten(), reduction="sum") / np.log(2))


def codes_of(client: TestClient, picture: bytes, model: str = "digits") -> Any:
    return client.post(f"/encode?model={model}", files={"img": picture}).json()["codes"]


def test_one_picture(generator: TestClient, generating: Generating) -> None:
    """Without a label the prior's own "no label" is used. Frequencies round: 1e-3 bits a grid."""
    answer = generator.post("/score", files={"img": DIGITS[0]}).json()
    assert set(answer) == {"model", "version", "bits", "bits_per_code", "codes_shape"}
    assert answer["codes_shape"] == [7, 7]
    expected = bits(generating.digits, codes_of(generator, DIGITS[0]), label=3)
    assert answer["bits"] == pytest.approx(expected, abs=1e-3)
    assert answer["bits_per_code"] == pytest.approx(expected / 49, abs=1e-4)


def test_labels(generator: TestClient, generating: Generating) -> None:
    codes = codes_of(generator, DIGITS[1])
    answer = generator.post("/score?label=2&by_label=true", files={"img": DIGITS[1]}).json()
    expected = [bits(generating.digits, codes, label) for label in range(3)]
    assert answer["bits"] == pytest.approx(expected[2], abs=1e-3)
    assert answer["bits_by_label"] == pytest.approx(expected, abs=1e-3)


def test_several_pictures_keep_their_order(generator: TestClient) -> None:
    answer = generator.post("/score", files=[("img", digit) for digit in DIGITS]).json()
    alone = [generator.post("/score", files={"img": digit}).json() for digit in DIGITS]
    assert [item["bits"] for item in answer["items"]] == [one["bits"] for one in alone]
    assert set(answer) == {"model", "version", "items"}


def test_a_generated_picture_scores_what_its_answer_said(generator: TestClient, generating: Generating) -> None:
    """Codes in hand: the answer's bits are those of the prior for the codes, not for the picture encoded again."""
    answer = generator.post("/generate", json={"seed": 3, "label": 1}, headers={"accept": "application/json"}).json()
    (item,) = answer["items"]
    assert item["bits"] == pytest.approx(bits(generating.digits, item["codes"], 1), abs=1e-3)


def test_a_large_picture_is_the_sum_of_its_tiles(generator: TestClient, generating: Generating, photo: bytes) -> None:
    """96x64 pixels are 16x24 codes: 24 tiles of 4x4, each by itself, as in the container."""
    codes = np.array(codes_of(generator, photo, "colour"))
    answer = generator.post("/score?model=colour", files={"img": photo}).json()
    tiles = [codes[top : top + 4, left : left + 4] for top, left in product(range(0, 16, 4), range(0, 24, 4))]
    expected = sum(bits(generating.colour, tile.tolist(), 0) for tile in tiles)
    assert answer["codes_shape"] == [16, 24]
    assert answer["bits"] == pytest.approx(expected, abs=2e-2)


def test_the_work_of_all_labels_decides_where_it_is_done(
    generator: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A picture under ten labels is eleven times the work: as one it went in with the small, before every digit."""
    threads: list[str] = []

    def noting(*arguments: Any) -> Any:
        threads.append(threading.current_thread().name.partition("_")[0])
        return bits_under(*arguments)

    bits_under = likelihood.bits_under
    monkeypatch.setattr("service.routes.scoring.bits_under", noting)
    for most, by_label in ((1, "false"), (3, "true"), (4, "true")):  # pictures that are small; there are three labels
        monkeypatch.setattr("service.routes.service.SMALL_PIXELS", most * 28 * 28)
        assert generator.post(f"/score?by_label={by_label}", files={"img": DIGITS[0]}).status_code == 200
    assert threads == ["small-work", "prior-work", "small-work"]


@pytest.mark.parametrize(
    "query", ["label=3", "label=-1", "label=x", "label=%C2%B2", "by_label=maybe", "by_label=", "top=1", "fit=crop"]
)
def test_impossible_parameters_get_422(generator: TestClient, query: str) -> None:
    response = generator.post(f"/score?{query}", files={"img": DIGITS[0]})
    assert (response.status_code, response.json()["type"]) == (422, "urn:vqserve:problem:invalid-parameter")


def test_a_name_for_a_label_is_told_where_the_numbers_are(generator: TestClient) -> None:
    """As /generate says it: only the range of the numbers was named."""
    detail = generator.post("/score?label=cats", files={"img": DIGITS[0]}).json()["detail"]
    assert detail.endswith("not 'cats': GET /models lists the labels' names in this order.")


def test_a_label_for_a_model_without_labels_gets_422(generator: TestClient, photo: bytes) -> None:
    response = generator.post("/score?model=colour&label=0", files={"img": photo})
    assert response.status_code == 422
    assert "there are no labels" in response.json()["detail"]
    response = generator.post("/score?model=colour&by_label=true", files={"img": photo})
    assert response.status_code == 422
    assert response.json()["detail"].startswith("by_label: there are no labels")


def test_arrays_are_not_fitted(generator: TestClient) -> None:
    """The parameter was taken, and did nothing."""
    pixels, headers = bad.npy(np.zeros((1, 28, 28, 1), np.uint8)), {"content-type": "application/x-npy"}
    answers = {fit: generator.post(f"/score?fit={fit}", content=pixels, headers=headers) for fit in ("exact", "pad")}
    assert [answer.status_code for answer in answers.values()] == [200, 422]
    assert answers["pad"].json()["detail"].startswith("fit: arrays are not fitted")


def test_labels_are_scored_a_few_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """A model of 400 labels took 3.7 GB for one picture of 16 megapixels."""
    model = tiny_model()
    grid = draw_codes(model, (1, 5, 7), 0)[0]
    assert model.prior is not None
    labels = [*range(model.prior.no_label + 1)]
    whole = bits_of(model, np.repeat(grid[None], len(labels), axis=0), np.array(labels)).tolist()
    sizes: list[int] = []

    def noted(model: CodecModel, codes: Any, labels: Any) -> Any:
        sizes.append(len(codes))
        return bits_of(model, codes, labels)

    monkeypatch.setattr(likelihood, "bits_of", noted)
    monkeypatch.setattr(likelihood, "CODES_AT_ONCE", 2 * grid.size)
    assert likelihood.bits_under(model, grid, labels) == whole
    assert sum(sizes) == len(labels) and max(sizes) == 2
    monkeypatch.setattr(likelihood, "CODES_AT_ONCE", 1)
    assert likelihood.bits_under(model, grid, labels) == whole


def test_all_tiles_of_a_picture_have_its_label() -> None:
    model = tiny_model()
    codes = draw_codes(model, (3, 7, 9), seed=5)  # 9 tiles each
    labels = np.array([2, 0, 3])
    alone = [bits_of(model, codes[n : n + 1], labels[n : n + 1])[0] for n in range(3)]
    assert bits_of(model, codes, labels) == pytest.approx(alone)
    assert bits_of(model, codes, labels[::-1]) != pytest.approx(alone)
