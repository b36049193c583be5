"""Bad input, one test a row: the status and the problem type of each, and the service goes on serving afterwards."""

from __future__ import annotations

import base64
import io
import json
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
from PIL import Image
from starlette.testclient import TestClient

from service.bundle.fields import PictureSpec
from service.errors import PROBLEMS, problem_type
from service.pictures.images import LARGEST_WEBP_SIDE, fit_image
from service.pictures.jpeg_head import has_more_scans
from tests.conftest import PICTURES, Tiny
from tests.service import bad_inputs as bad
from tests.tiny_bundle import oracle_codes

DIGIT = (PICTURES / "digit_7.png").read_bytes()
PHOTO = (PICTURES / "ladybird_crop.jpg").read_bytes()
PNG, JPEG, JSON, NPY = "image/png", "image/jpeg", "application/json", "application/x-npy"
NPY_30 = bad.npy(np.zeros((2, 30, 30, 1), np.uint8))


@dataclass(frozen=True)
class Row:
    name: str
    status: int
    slug: str
    body: bytes = DIGIT
    content_type: str | None = PNG
    path: str = "/encode"
    method: str = "POST"
    headers: dict[str, str] = field(default_factory=dict)


def codes_row(name: str, codes: Any, status: int = 422, slug: str = "invalid-codes") -> Row:
    return Row(name, status, slug, json.dumps({"codes": codes}).encode(), JSON, "/decode")


def npy_codes_row(name: str, codes: Any, slug: str = "invalid-codes", status: int = 422) -> Row:
    return Row(name, status, slug, bad.npy(np.asarray(codes)), NPY, "/decode")


def npy_header_row(name: str, header: str) -> Row:
    return Row(f"npy header: {name}", 400, "malformed-request", bad.npy_of_header(header), NPY, "/decode")


def npy_header(descr: str = "'<i4'", shape: str = "(0,)") -> str:
    return f"{{'descr': {descr}, 'fortran_order': False, 'shape': {shape}}}"


FORM = "multipart/form-data; boundary=xx"
ZEROS = [[0] * 7] * 7
ROWS = (
    Row("not a picture", 422, "not-a-picture", b"hello, world"),
    Row("a picture cut off in its header", 422, "not-a-picture", PHOTO[:100], "image/jpeg"),
    Row("an SVG", 422, "not-a-picture", b"<svg xmlns='http://www.w3.org/2000/svg'/>"),
    Row("a GIF", 422, "not-a-picture", bad.saved(Image.new("L", (28, 28)), "GIF")),
    Row("a TIFF", 422, "not-a-picture", bad.saved(Image.new("L", (28, 28)), "TIFF")),
    Row("truncated PNG", 422, "not-a-picture", DIGIT[:150]),
    Row("truncated JPEG", 422, "not-a-picture", PHOTO[:700], "image/jpeg", "/encode?model=tiny_colour"),
    Row("only the signature", 422, "not-a-picture", DIGIT[:8]),
    Row("wrong media type", 415, "unsupported-media-type", content_type="text/plain"),
    Row("no media type", 415, "unsupported-media-type", content_type=None),
    Row("GIF media type", 415, "unsupported-media-type", content_type="image/gif"),
    Row("empty body", 400, "malformed-request", b""),
    Row("wrong size", 422, "wrong-picture-size", bad.saved(Image.new("L", (27, 28)))),
    Row(
        "not a multiple",
        422,
        "wrong-picture-size",
        bad.saved(Image.new("RGB", (30, 28))),
        path="/encode?model=tiny_colour",
    ),
    Row("unknown fit", 422, "invalid-parameter", path="/encode?fit=stretch"),
    Row("animated PNG", 422, "not-a-picture", bad.animated("PNG")),
    Row("animated WebP", 422, "not-a-picture", bad.animated("WEBP"), "image/webp"),
    Row("bomb above our limit", 413, "picture-too-large", bad.bomb(5000, 5000)),
    Row("bomb above Pillow's limit", 413, "picture-too-large", bad.bomb(60_000, 60_000)),
    Row("PNG of many profiles", 422, "not-a-picture", bad.inflating(b"iCCP", 17), "image/png"),
    Row("JPEG of a million segments", 422, "not-a-picture", bad.segments(1_000_000), "image/jpeg"),
    Row("a small JPEG of segments", 422, "not-a-picture", bad.segments(15_000), "image/jpeg"),
    Row("PNG of many chunks before its pixels", 422, "not-a-picture", bad.chunks(DIGIT, 20_000, before=b"IDAT")),
    Row("PNG of many chunks after its pixels", 422, "not-a-picture", bad.chunks(DIGIT, 20_000, before=b"IEND")),
    Row("JPEG of many scans", 422, "not-a-picture", bad.scans(100), "image/jpeg"),
    Row("BMP of runs", 422, "not-a-picture", bad.run_length_bmp(), "image/bmp"),
    Row("compressed body", 415, "unsupported-media-type", headers={"content-encoding": "gzip"}),
    Row("body compressed last", 415, "unsupported-media-type", headers={"content-encoding": "identity, gzip"}),
    Row("compressed JSON", 415, "unsupported-media-type", b"{}", JSON, "/decode", headers={"content-encoding": "GZIP"}),
    Row("form without boundary", 400, "malformed-request", b"x", "multipart/form-data"),
    Row(
        "form that is cut off",
        400,
        "malformed-request",
        b'--xx\r\nContent-Disposition: form-data; name="img"\r\n\r\nab',
        FORM,
    ),
    Row("form that is noise", 400, "malformed-request", b"noise", FORM),
    Row("form without a picture", 422, "invalid-parameter", b"--xx--\r\n", FORM),
    Row(
        "form with an unknown field",
        422,
        "invalid-parameter",
        b'--xx\r\nContent-Disposition: form-data; name="picture"\r\n\r\nab\r\n--xx--\r\n',
        FORM,
    ),
    Row("effort in Arabic digits", 422, "invalid-parameter", path="/encode?effort=%D9%A0"),
    Row("effort with an underscore", 422, "invalid-parameter", path="/encode?effort=0_0"),
    Row("effort that is no number", 422, "invalid-parameter", path="/encode?effort=nan"),
    Row("unknown query field", 422, "invalid-parameter", path="/encode?modle=tiny"),
    Row("query field given twice", 422, "invalid-parameter", path="/encode?fit=pad&fit=exact"),
    Row("unknown model", 404, "unknown-model", path="/encode?model=none"),
    Row("a model without a name", 404, "unknown-model", path="/encode?model="),
    Row("unknown route", 404, "unknown-route", path="/encod"),
    Row("wrong method", 405, "method-not-allowed", method="GET", body=b"", content_type=None),
    Row("a query of many fields", 422, "invalid-parameter", path=f"/encode?{'a&' * 40}"),
    Row("an Accept of many types", 406, "not-acceptable", headers={"accept": "application/json," * 100}),
    Row("nothing acceptable", 406, "not-acceptable", headers={"accept": "text/html"}),
    Row("npy of floats", 422, "wrong-picture-size", bad.npy(np.zeros((1, 28, 28, 1))), NPY),
    Row("npy without batch axis", 422, "wrong-picture-size", bad.npy(np.zeros((28, 28, 1), np.uint8)), NPY),
    Row("npy to resize", 422, "invalid-parameter", NPY_30, NPY, "/encode?fit=resize"),
    Row("npy to pad", 422, "invalid-parameter", NPY_30, NPY, "/encode?model=tiny_colour&fit=pad"),
    Row("npy to leave as it is", 422, "wrong-picture-size", NPY_30, NPY, "/encode?fit=exact"),
    Row("npy of nothing", 422, "wrong-picture-size", bad.npy(np.zeros((0, 28, 28, 1), np.uint8)), NPY),
    Row("npy of objects", 400, "malformed-request", bad.npy(np.array([{}], object)), NPY),
    Row("npy in Fortran order", 400, "malformed-request", bad.npy(np.zeros((2, 28, 28, 1), np.uint8, "F")), NPY),
    Row("npy that is cut off", 400, "malformed-request", bad.npy(np.zeros((1, 28, 28, 1), np.uint8))[:-5], NPY),
    Row("npy that is noise", 400, "malformed-request", b"noise", NPY),
    Row(
        "npy of a huge shape",
        400,
        "malformed-request",
        bad.npy(np.zeros((1, 28, 28, 1), np.uint8)).replace(b"(1, 28, 28, 1)", b"(1<<60, 28, 1)"),
        NPY,
    ),
    npy_header_row("text of no bytes", npy_header("'|S0'")),
    npy_header_row("an axis of True", npy_header(shape="(0, True)")),
    npy_header_row("an axis of False", npy_header(shape="(False,)")),
    npy_header_row("nothing of no bytes", npy_header("'|V0'")),
    npy_header_row("a record of no fields", npy_header("[]")),
    npy_header_row("a type of one part", npy_header("('<i4',)")),
    npy_header_row("an axis beyond any address", npy_header(shape=f"(0, {2**70})")),
    npy_header_row("axes beyond any address", npy_header(shape=f"(0, {2**62}, {2**62})")),
    npy_header_row("70 axes", npy_header(shape=f"({'0, ' * 70})")),
    npy_header_row("brackets that do not close", "(" * 9000),
    npy_header_row("signs without end", "-" * 9000),
    npy_header_row("a sum without end", "1+" * 4000 + "1"),
    npy_header_row("numbers that warn", npy_header(shape=f"({'1if 1else ' * 900}1,)")),
    npy_header_row("a type of many parts", npy_header(f"'{'u1,' * 900}u1'")),
    npy_header_row("a shape that is a number", npy_header(shape="(0)")),
    npy_header_row("a shape of commas", npy_header(shape="(,,)")),
    npy_header_row("a type that there is not", npy_header("'<q4'")),
    Row(
        "codes of a picture that is too long for WebP",
        422,
        "invalid-parameter",
        bad.npy(np.zeros((1, 4096), np.uint8)),
        NPY,
        "/decode?model=tiny_colour",
        headers={"accept": "image/webp"},
    ),
    codes_row("code out of range", [[16] * 7] * 7),
    codes_row("a code far out of range", [[2**70] * 7] * 7),
    codes_row("negative code", [[-1] * 7] * 7),
    codes_row("float codes", [[0.5] * 7] * 7),
    codes_row("whole float codes", [[1.0] * 7] * 7),
    codes_row("boolean codes", [[True] * 7] * 7),
    codes_row("text codes", [["1"] * 7] * 7),
    codes_row("null codes", None),
    codes_row("wrong code shape", [[0] * 6] * 7),
    codes_row("one row", [0] * 7),
    codes_row("ragged rows", [[0] * 7] * 6 + [[0] * 6]),
    codes_row("no codes", []),
    codes_row("four axes", [[ZEROS]]),
    codes_row("too many grids", [ZEROS] * 257, 413, "too-many-items"),
    Row("NaN codes", 422, "invalid-codes", b'{"codes": [[NaN]]}', JSON, "/decode"),
    Row("not JSON", 400, "malformed-request", b"{codes", JSON, "/decode"),
    Row("empty JSON body", 400, "malformed-request", b"", JSON, "/decode"),
    Row("JSON that is a list", 422, "invalid-codes", b"[]", JSON, "/decode"),
    Row("unknown field", 422, "invalid-codes", json.dumps({"codes": ZEROS, "n": 1}).encode(), JSON, "/decode"),
    Row("deep JSON", 400, "malformed-request", b'{"codes": ' + b"[" * 100_000, JSON, "/decode"),
    Row("codes as text", 415, "unsupported-media-type", b"1 2 3", "text/plain", "/decode"),
    Row(
        "codes of a huge picture",
        413,
        "picture-too-large",
        bad.npy(np.zeros((2000, 2000), np.uint8)),
        NPY,
        "/decode?model=tiny_colour",
    ),
    npy_codes_row("NaN codes in npy", np.full((7, 7), np.nan)),
    npy_codes_row("float codes in npy", np.zeros((7, 7))),
    npy_codes_row("boolean codes in npy", np.zeros((7, 7), bool)),
    npy_codes_row("negative codes in npy", np.full((7, 7), -1)),
    npy_codes_row("codes out of range in npy", np.full((7, 7), 2**63, np.uint64)),
    npy_codes_row("dates in npy", np.zeros((7, 7), "datetime64[s]")),
    Row("not a container", 422, "invalid-container", b"noise", "application/vnd.vqserve.codes", "/decode"),
    Row(
        "several codes as one PNG",
        406,
        "not-acceptable",
        json.dumps({"codes": [ZEROS] * 2}).encode(),
        JSON,
        "/decode",
        headers={"accept": PNG},
    ),
)


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_bad_input_gets_its_problem_and_the_service_goes_on(client: TestClient, row: Row) -> None:
    headers = {**row.headers, **({"content-type": row.content_type} if row.content_type else {})}
    response = client.request(row.method, row.path, content=row.body, headers=headers)
    problem = response.json()
    assert (response.status_code, problem["type"]) == (row.status, problem_type(row.slug)), problem
    assert response.headers["content-type"] == "application/problem+json"
    assert problem["status"] == row.status
    assert len(problem["detail"]) > 10
    assert client.post("/encode", content=DIGIT, headers={"content-type": PNG}).status_code == 200


@pytest.mark.parametrize(
    ("path", "headers", "said"),
    [
        ("/encode?fits=pad", {"content-type": PNG}, "Unknown query field 'fits'; there are model, fit, "),
        ("/encode?fit=pad&fit=exact", {"content-type": PNG}, "comes twice"),
        (
            "/encode",
            {"content-type": "text/plain"},
            "Content-Type is 'text/plain'; this route takes multipart/form-data, ",
        ),
        ("/decode", {}, "There is no Content-Type; this route takes application/json, "),
        ("/healthz", {}, "This route takes GET"),
        ("/decode", {"content-type": "application/vnd.vqserve.codes"}, "Not a container: the first bytes are 8950, "),
    ],
)
def test_the_detail_says_what_to_change(client: TestClient, path: str, headers: dict[str, str], said: str) -> None:
    assert said in client.post(path, content=DIGIT, headers=headers).json()["detail"]


@pytest.mark.parametrize(
    ("file", "said"),
    [
        (b"", "this file is empty"),
        (base64.b64encode(DIGIT), "this is base64"),
        (b"data:image/png;base64," + base64.b64encode(DIGIT), "this is base64"),
        (b"hello", "these bytes are none of them"),
    ],
    ids=["nothing", "base64", "a data URI", "text"],
)
def test_what_is_no_picture_is_told_what_it_is(client: TestClient, file: bytes, said: str) -> None:
    answer = client.post("/encode", files={"img": file})
    assert (answer.status_code, answer.json()["type"]) == (422, problem_type("not-a-picture"))
    assert said in answer.json()["detail"]


@pytest.mark.parametrize("name", ["model", "version"])
def test_the_detail_repeats_only_the_beginning_of_a_text(client: TestClient, name: str) -> None:
    """It had 3 MB."""
    answer = client.post("/decode", json={"codes": ZEROS, name: "A" * 3_000_000})
    assert (answer.status_code, answer.json()["type"]) == (422, problem_type("invalid-codes"))
    assert answer.json()["detail"].startswith(f"{name} is 'AAA")
    assert len(answer.content) < 1000


@pytest.mark.parametrize("coding", ["", "identity", "identity, Identity", ",identity"])
def test_a_body_that_is_not_compressed_may_say_so(client: TestClient, coding: str) -> None:
    headers = {"content-type": PNG, "content-encoding": coding}
    assert client.post("/encode", content=DIGIT, headers=headers).status_code == 200


def test_webp_takes_its_longest_side_and_the_refusal_of_more_names_png(client: TestClient) -> None:
    """Only what is answered counts: these codes decode to 16,384 pixels a row, of which one is cut off."""
    codes = {"codes": [[0] * 4096], "width": LARGEST_WEBP_SIDE}
    path, webp = "/decode?model=tiny_colour", {"accept": "image/webp"}
    longest = client.post(path, json=codes, headers=webp)
    assert Image.open(io.BytesIO(longest.content)).size == (LARGEST_WEBP_SIDE, 4)
    del codes["width"]
    assert "not 16384x4; Accept: image/png" in client.post(path, json=codes, headers=webp).json()["detail"]
    assert client.post(path, json=codes, headers={"accept": PNG}).status_code == 200


def encoded(client: TestClient, body: bytes, query: str = "", content_type: str = PNG) -> Any:
    response = client.post(f"/encode{query}", content=body, headers={"content-type": content_type})
    assert response.status_code == 200, response.text
    return response.json()["codes"]


def expected(tiny: Tiny, pixels: np.ndarray[Any, np.dtype[np.uint8]]) -> Any:
    return oracle_codes(pixels.reshape(1, 28, 28, 1), tiny.grey_weights)[0].tolist()


def test_sixteen_bit_keeps_the_high_byte(client: TestClient, tiny: Tiny) -> None:
    wide = bad.ramp().astype(np.uint16) * 256 + 77
    assert encoded(client, bad.saved(Image.fromarray(wide))) == expected(tiny, bad.ramp())


def test_a_transparent_level_of_sixteen_bits_is_laid_over_white(client: TestClient, tiny: Tiny) -> None:
    """It became black: with the lower byte went what said which level it was."""
    levels = bad.ramp().astype(np.uint16) << 8 | 7
    levels[:, 14:] = 1000
    transparent = bad.with_chunk(bad.saved(Image.fromarray(levels)), b"tRNS", (1000).to_bytes(2, "big"))
    white = bad.ramp()
    white[:, 14:] = 255
    assert encoded(client, transparent) == expected(tiny, white)


def test_a_palette_becomes_its_colours(client: TestClient, tiny: Tiny) -> None:
    assert encoded(client, bad.palette()) == expected(tiny, 255 - bad.ramp() // 2)


def test_transparency_is_laid_over_white(client: TestClient, tiny: Tiny) -> None:
    pixels = np.zeros((28, 28), np.uint8)
    pixels[:, 14:] = 255
    assert encoded(client, bad.transparent()) == expected(tiny, pixels)


def test_a_progressive_jpeg_may_have_some_scans(client: TestClient) -> None:
    for count in (0, 80):
        answer = client.post("/encode", content=bad.scans(count), headers={"content-type": "image/jpeg"})
        assert answer.status_code == 200


def test_what_stands_behind_a_jpeg_has_no_scans_of_it(client: TestClient) -> None:
    """Phones keep a film there: of 10 MB of it, one with a hundred and more, the picture was refused."""
    digit = bad.saved(Image.fromarray(bad.ramp()), "JPEG")
    filmed = digit + b"\xff\xda\x00\x02" * 200
    assert encoded(client, filmed, "", JPEG) == encoded(client, digit, "", JPEG)


@pytest.mark.parametrize(
    "hidden",
    [b"\xff\xd9", b"\xff\xfe\x00\x04\xff\xd9", b"\xff\x02\xff\xff"],
    ids=["the end", "an end in a text", "a segment that is none"],
)
def test_scans_do_not_hide(hidden: bytes) -> None:
    many = bad.scans(200)
    first = many.index(b"\xff\xda")
    assert has_more_scans(many[:first] + hidden + many[first:], 100) == (hidden != b"\xff\xd9")
    assert has_more_scans(many[:first] + b"\xff\x01" * 5000, 100)


@pytest.mark.parametrize(
    ("path", "body", "content_type"),
    [
        (f"/encode?effort={'1' * 60_000}x", b"", PNG),
        (f"/encode?effort={'1' * 30_000}.{'1' * 30_000}x", b"", PNG),
        ("/encode", bad.npy_of_header("{'descr': '|u1', 'fortran_order': False, 'shape': (1,)" + " " * 65_000), NPY),
    ],
    ids=["effort", "effort with a point", "npy"],
)
def test_text_is_not_searched_again_and_again(client: TestClient, path: str, body: bytes, content_type: str) -> None:
    """Digits by the ten thousand held the event loop, and all other requests, for a minute; blanks for two seconds."""
    began = time.monotonic()
    assert client.post(path, content=body, headers={"content-type": content_type}).status_code in (400, 422)
    assert time.monotonic() - began < 1


def test_cmyk_becomes_rgb(client: TestClient) -> None:
    image = Image.open(io.BytesIO(PHOTO)).convert("CMYK")
    assert np.shape(encoded(client, bad.saved(image, "JPEG"), "?model=tiny_colour", "image/jpeg")) == (16, 24)


def test_exif_rotation_is_applied(client: TestClient, tiny: Tiny) -> None:
    assert encoded(client, bad.rotated()) == expected(tiny, bad.ramp())


def test_colour_becomes_grey_and_grey_becomes_colour(client: TestClient, tiny: Tiny) -> None:
    grey = bad.ramp()
    colour = bad.saved(Image.fromarray(np.repeat(grey[..., None], 3, axis=2)))
    assert encoded(client, colour) == expected(tiny, grey)
    codes = encoded(client, bad.saved(Image.fromarray(grey)), "?model=tiny_colour")
    assert codes == oracle_codes(np.repeat(grey[None, ..., None], 3, axis=3), tiny.colour_weights)[0].tolist()


def test_fit_resize_gives_the_models_size(client: TestClient, photo: bytes) -> None:
    answer = client.post("/encode?fit=resize", files={"img": photo}).json()
    assert (answer["width"], answer["height"], answer["shape"]) == (28, 28, [7, 7])


def test_fit_pad_centres_a_small_picture_on_black(client: TestClient, tiny: Tiny) -> None:
    canvas = np.zeros((28, 28), np.uint8)
    canvas[9:19, 4:24] = 200
    assert encoded(client, bad.saved(Image.new("L", (20, 10), 200)), "?fit=pad") == expected(tiny, canvas)


def test_fit_pad_repeats_the_border_of_a_grey_picture_for_a_model_of_any_size() -> None:
    spec = PictureSpec(height=64, width=64, channels=1, any_size=True, multiple_of=4)
    padded = fit_image(Image.new("L", (30, 21), 200), spec, "pad")
    assert (padded.mode, padded.size, padded.getextrema()) == ("L", (32, 24), (200, 200))


def test_fit_pad_shrinks_a_large_picture_and_keeps_its_proportions(client: TestClient, tiny: Tiny) -> None:
    canvas = np.zeros((28, 28), np.uint8)
    canvas[7:21] = 200
    assert encoded(client, bad.saved(Image.new("L", (112, 56), 200)), "?fit=pad") == expected(tiny, canvas)


def test_fit_resize_of_any_size_goes_to_the_next_multiple(client: TestClient) -> None:
    image = bad.saved(Image.new("RGB", (30, 17)))
    answer = client.post("/encode?model=tiny_colour&fit=resize", files={"img": image}).json()
    assert (answer["width"], answer["height"], answer["shape"]) == (32, 20, [5, 8])


def test_an_unexpected_fault_reveals_nothing(
    make_client: Callable[..., TestClient], monkeypatch: pytest.MonkeyPatch
) -> None:
    client = make_client()

    def broken(*arguments: object) -> None:
        raise ZeroDivisionError("the secret of /etc/passwd")

    monkeypatch.setattr("service.routes.encoding.read_upload", broken)
    response = client.post("/encode", content=DIGIT, headers={"content-type": PNG})
    assert (response.status_code, response.json()["type"]) == (500, problem_type("internal-error"))
    assert "secret" not in response.text
    assert "Zero" not in response.text
    monkeypatch.undo()
    assert client.post("/encode", content=DIGIT, headers={"content-type": PNG}).status_code == 200


def test_problem_slugs_are_unique() -> None:
    slugs = [problem.slug for problem in PROBLEMS]
    assert len(set(slugs)) == len(slugs)
