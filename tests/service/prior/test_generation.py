"""POST /generate against the naive sampler: one full forward of PyTorch a pixel, and numpy for the rest."""

from __future__ import annotations

import base64
import io
import json
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from starlette.testclient import TestClient

from export.reference_sampler import draw, guided
from service.prior.draws import uniforms
from tests.conftest import DEVICE
from tests.service.conftest import Generating
from tests.tiny_bundle import CODEBOOK_SIZE, oracle_pixels
from training.models.frequencies import frequency_table
from training.models.prior import UNITS_PER_NAT, PixelCNN

GRID = (7, 7)
JSON = {"accept": "application/json"}
EVENTS = {"accept": "text/event-stream"}
TABLE = frequency_table(CODEBOOK_SIZE).numpy()
KNOWN_ROWS = [[3] * 7, [None, 2, None, 5, None, 1, None], *[[None] * 7] * 5]
SETTINGS: list[dict[str, Any]] = [
    {"seed": 0},
    {"seed": 2**53 - 1, "n": 3},
    {"seed": 5, "label": 2, "n": 2},
    {"seed": 6, "temperature": 0.4},
    {"seed": 6, "temperature": 3, "n": 2},
    {"seed": 7, "top_k": 1},
    {"seed": 7, "top_k": 3, "n": 2},
    {"seed": 8, "top_p": 0.5, "n": 2},
    {"seed": 9, "top_k": 5, "top_p": 0.7, "temperature": 1.5, "label": 0},
    {"seed": 10, "known": KNOWN_ROWS, "n": 2},
    {"seed": 11, "guidance": 1, "n": 2},
    {"seed": 12, "guidance": 2, "label": 1, "n": 2},
    {"seed": 13, "guidance": 7.97, "label": 0, "top_k": 4, "temperature": 2, "known": KNOWN_ROWS},
]


def forward(prior: PixelCNN, codes: NDArray[np.int64], label: int) -> NDArray[np.int32]:
    """codes (h,w) -> integer logits (h,w,K)."""
    with torch.no_grad():
        logits = prior(torch.from_numpy(codes)[None], torch.tensor([label]))
    return logits[0].numpy().astype(np.int32)  # type: ignore[no-any-return]


def naive(prior: PixelCNN, asked: dict[str, Any], index: int = 0) -> NDArray[np.int64]:
    """The codes (h,w) that sample `index` must have."""
    codes, numbers = np.zeros(GRID, np.int64), uniforms(asked["seed"], index, GRID)
    known = asked.get("known") or [[None] * GRID[1]] * GRID[0]
    label = prior.label_count if asked.get("label") is None else asked["label"]
    inverse = np.float32(1 / asked.get("temperature", 1))
    filters = asked.get("top_k", CODEBOOK_SIZE), np.float32(asked.get("top_p", 1))
    guidance = np.array([round(asked.get("guidance", 1) * 16) / 16], np.float32)
    for i, j in np.ndindex(GRID):
        if known[i][j] is None:
            labelled, free = (forward(prior, codes, one)[i, j][None] for one in (label, prior.label_count))
            (logits,) = guided(labelled, free, guidance)
            codes[i, j] = draw(logits, numbers[i, j], TABLE, inverse, *filters)
        else:
            codes[i, j] = known[i][j]
    return codes


def generate(client: TestClient, asked: dict[str, Any]) -> Any:
    response = client.post("/generate", json=asked, headers=JSON)
    assert response.status_code == 200, response.text
    return response.json()


def codes_of(answer: Any) -> NDArray[np.int64]:
    return np.array([item["codes"] for item in answer["items"]])


def picture(data: bytes) -> NDArray[np.uint8]:
    return np.asarray(Image.open(io.BytesIO(data)))


def events_of(text: str) -> list[tuple[str, Any]]:
    blocks = [dict(line.split(": ", 1) for line in block.split("\n")) for block in text.split("\n\n") if block]
    return [(block["event"], json.loads(block["data"])) for block in blocks]


@pytest.mark.parametrize("asked", SETTINGS, ids=json.dumps)
def test_codes_are_those_of_the_naive_sampler(
    generator: TestClient, generating: Generating, asked: dict[str, Any]
) -> None:
    answer = generate(generator, asked)
    assert answer["seed"] == asked["seed"]
    expected = [naive(generating.digits, asked, index) for index in range(asked.get("n", 1))]
    assert codes_of(answer).tolist() == [grid.tolist() for grid in expected]


def test_an_unconditional_prior_draws_the_codes_of_the_naive_sampler(
    generator: TestClient, generating: Generating
) -> None:
    """The grid of a prior for pictures of any size is that of its training pictures, here 4x4."""
    answer = generator.post("/generate?model=colour", json={"seed": 3}, headers=JSON).json()
    codes, numbers = np.zeros((4, 4), np.int64), uniforms(3, 0, (4, 4))
    for i, j in np.ndindex(4, 4):
        logits = forward(generating.colour, codes, 0)[i, j]
        codes[i, j] = draw(logits, numbers[i, j], TABLE, np.float32(1), CODEBOOK_SIZE, np.float32(1))
    assert codes_of(answer)[0].tolist() == codes.tolist()


def test_a_sample_is_the_same_alone_and_among_strangers(generator: TestClient) -> None:
    """All settings at once, many times over, share rows in every combination; each gives what it gives alone."""

    def drawn(asked: dict[str, Any]) -> list[dict[str, Any]]:
        items = generate(generator, asked)["items"]
        # a GPU's decoder may round a pixel otherwise in another batch
        return [item | {"image": ""} if DEVICE == "cuda" else item for item in items]

    alone = [drawn(asked) for asked in SETTINGS]
    with ThreadPoolExecutor(16) as pool:
        together = list(pool.map(drawn, SETTINGS * 4))
    assert together == alone * 4


def test_without_a_seed_each_answer_is_new_and_tells_its_seed(generator: TestClient) -> None:
    first, second = generate(generator, {"n": 2}), generate(generator, {})
    assert first["seed"] != second["seed"]
    assert generate(generator, {"n": 2, "seed": first["seed"]}) == first


def test_the_first_samples_do_not_depend_on_n(generator: TestClient) -> None:
    few, many = generate(generator, {"seed": 4, "n": 2}), generate(generator, {"seed": 4, "n": 64})
    assert many["items"][:2] == few["items"]


def test_json_carries_picture_bits_and_label(generator: TestClient, generating: Generating) -> None:
    """Bits: cross entropy of PyTorch's softmax. The table rounds frequencies of 2^26, so 1e-3 bits a grid."""
    answer = generate(generator, {"seed": 11, "n": 3, "label": 1, "temperature": 2})
    assert set(answer) == {"model", "version", "seed", "items"}
    expected = oracle_pixels(codes_of(answer), generating.weights, 1)
    for item, pixels in zip(answer["items"], expected, strict=True):
        assert item["label"] == 1
        assert (picture(base64.b64decode(item["image"])) == pixels[..., 0]).all()
        codes = torch.tensor(item["codes"])
        logits = torch.from_numpy(forward(generating.digits, codes.numpy(), 1)).double() / UNITS_PER_NAT
        nats = torch.nn.functional.cross_entropy(logits.flatten(0, 1), codes.flatten(), reduction="sum")
        assert item["bits"] == pytest.approx(float(nats) / np.log(2), abs=1e-3)


@pytest.mark.parametrize(("n", "columns", "rows"), [(1, 1, 1), (2, 2, 1), (5, 3, 2), (9, 3, 3)])
def test_png_is_a_sheet_row_by_row(
    generator: TestClient, generating: Generating, n: int, columns: int, rows: int
) -> None:
    response = generator.post("/generate", json={"seed": 12, "n": n})
    assert response.headers["content-type"] == "image/png"
    assert response.headers["x-vqserve-seed"] == "12"
    sheet = picture(response.content)
    assert sheet.shape == (rows * 28, columns * 28)
    expected = oracle_pixels(codes_of(generate(generator, {"seed": 12, "n": n})), generating.weights, 1)
    for index in range(n):
        top, left = index // columns * 28, index % columns * 28
        assert (sheet[top : top + 28, left : left + 28] == expected[index, ..., 0]).all()


def test_npy_is_the_batch_of_pictures(generator: TestClient, generating: Generating) -> None:
    response = generator.post("/generate", json={"seed": 13, "n": 2}, headers={"accept": "application/x-npy"})
    pixels = np.load(io.BytesIO(response.content))
    assert (pixels.dtype, pixels.shape) == (np.uint8, (2, 28, 28, 1))
    assert (pixels == oracle_pixels(codes_of(generate(generator, {"seed": 13, "n": 2})), generating.weights, 1)).all()


def test_events_are_the_rows_and_then_the_answer(generator: TestClient) -> None:
    asked = {"seed": 14, "n": 3, "top_k": 4}
    response = generator.post("/generate", json=asked, headers=EVENTS)
    assert response.headers["content-type"].startswith("text/event-stream")
    events = events_of(response.text)
    assert [name for name, _ in events] == ["row"] * 7 + ["done"]
    answer = generate(generator, asked)
    assert events[-1][1] == answer
    for row, (_, data) in enumerate(events[:-1]):
        assert data == {"row": row, "items": [{"codes": item["codes"][row]} for item in answer["items"]]}


def test_previews_show_the_rows_so_far(generator: TestClient, generating: Generating) -> None:
    """What is not drawn yet is the code that training saw most: here all are alike, so code 0."""
    asked = {"seed": 15, "n": 2, "preview": True}
    *rows, (_, answer) = events_of(generator.post("/generate", json=asked, headers=EVENTS).text)
    codes = codes_of(answer)
    for row, data in rows:
        assert row == "row"
        so_far = codes.copy()
        so_far[:, data["row"] + 1 :] = 0
        expected = oracle_pixels(so_far, generating.weights, 1)
        shown = [picture(base64.b64decode(item["image"])) for item in data["items"]]
        assert (np.stack(shown) == expected[..., 0]).all()


def test_a_picture_is_completed_from_its_upper_half(generator: TestClient, digit: bytes) -> None:
    """The rows of an encoded picture stay, the rest differs from sample to sample: it is drawn."""
    codes = generator.post("/encode", files={"img": digit}).json()["codes"]
    known = [row if index < 4 else [None] * 7 for index, row in enumerate(codes)]
    drawn = codes_of(generate(generator, {"known": known, "n": 8, "seed": 16}))
    assert (drawn[:, :4] == np.array(codes)[:4]).all()
    assert len({grid.tobytes() for grid in drawn}) == 8


def test_known_codes_can_come_with_a_mask(generator: TestClient) -> None:
    mask = [[code is not None for code in row] for row in KNOWN_ROWS]
    codes = [[code if code is not None else 99 for code in row] for row in KNOWN_ROWS]
    asked = {"seed": 10, "n": 2}
    assert generate(generator, {**asked, "known": {"codes": codes, "mask": mask}}) == generate(
        generator, {**asked, "known": KNOWN_ROWS}
    )


def test_a_region_is_resampled_given_all_before_it(generator: TestClient, generating: Generating) -> None:
    """Everything outside the region stays; inside, the naive sampler with the same known codes agrees."""
    whole = codes_of(generate(generator, {"seed": 17}))[0]
    known = [[None if 2 <= i < 5 and 2 <= j < 5 else int(whole[i, j]) for j in range(7)] for i in range(7)]
    asked = {"seed": 18, "known": known}
    drawn = codes_of(generate(generator, asked))[0]
    outside = np.array([[code is not None for code in row] for row in known])
    assert (drawn == whole)[outside].all()
    assert (drawn == naive(generating.digits, asked)).all()
    assert (drawn != whole).any()


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"n": 0}, "n: "),
        ({"n": 65}, "n: at most 64"),
        ({"n": True}, "n: "),
        ({"label": 3}, "label: must be 0..2, or none"),
        ({"label": -1}, "label: "),
        ({"label": "7"}, "label: "),
        ({"seed": -1}, "seed: "),
        ({"seed": 2**53}, "seed: "),
        ({"temperature": 0}, "temperature: "),
        ({"temperature": -1}, "temperature: "),
        ({"temperature": 1e9}, "temperature: "),
        ({"top_k": 0}, "top_k: "),
        ({"top_k": 17}, "top_k: must lie in 1..16"),
        ({"top_p": 0}, "top_p: "),
        ({"top_p": 1.01}, "top_p: "),
        ({"guidance": 0.9, "label": 1}, "guidance: "),
        ({"guidance": 8.5, "label": 1}, "guidance: "),
        ({"label": "cats"}, "label: send its number, from 0; GET /models lists the labels' names"),
        ({"guidance": 2}, "guidance needs a label to push towards"),
        ({"known": [[1]]}, "known: must be 7 rows of 7"),
        ({"known": [[1] * 7] * 6 + [[1] * 8]}, "known: must be 7 rows of 7"),
        ({"known": [[16] * 7] * 7}, "known: codes must lie in 0..15"),
        ({"known": [[-1] * 7] * 7}, "known: codes must lie in 0..15"),
        ({"known": [[2**70] * 7] * 7}, "known: codes must lie in 0..15"),
        ({"known": [["a"] * 7] * 7}, "known: send rows"),
        ({"known": {"codes": [[1] * 7] * 7}}, "known: send rows"),
        ({"known": {"codes": [[1] * 7] * 7, "mask": [[True] * 7] * 6}}, "known.mask: must be 7 rows of 7"),
        ({"steps": 3}, "Unknown field 'steps'; there are n, label"),
        ({"preview": True}, "preview: needs Accept: text/event-stream"),
        ([], "the body: "),
    ],
    ids=lambda value: json.dumps(value)[:40],
)
def test_what_is_impossible_gets_422_with_the_fix(generator: TestClient, asked: object, said: str) -> None:
    response = generator.post("/generate", json=asked)
    assert (response.status_code, response.json()["type"]) == (422, "urn:vqserve:problem:invalid-parameter")
    assert response.json()["detail"].startswith(said)


def test_what_cannot_be_read_gets_400_and_415(generator: TestClient) -> None:
    sent_as_json = {"content-type": "application/json"}
    assert generator.post("/generate", content=b"{", headers=sent_as_json).status_code == 400
    assert generator.post("/generate", content=b'{"temperature": NaN}', headers=sent_as_json).status_code == 422
    assert generator.post("/generate", content=b"{}", headers={"content-type": "text/plain"}).status_code == 415
    assert generator.post("/generate", json={}, headers={"accept": "image/gif"}).status_code == 406


@pytest.mark.parametrize("route", ["/generate", "/score"])
def test_a_model_without_a_prior_says_so(generator: TestClient, route: str) -> None:
    response = generator.post(f"{route}?model=silent", json={})
    assert (response.status_code, response.json()["type"]) == (422, "urn:vqserve:problem:no-prior")
    assert generator.post(f"{route}?model=nobody", json={}).status_code == 404


def test_a_model_without_a_prior_has_no_slots(generator: TestClient) -> None:
    """Nor had it the series: an autoscaler that misses one of its metrics takes no pod away."""
    page = generator.get("/metrics").text
    assert 'vqserve_generate_slots{model="silent"} 0.0' in page
    assert 'vqserve_generate_busy_slots{model="silent"} 0.0' in page
