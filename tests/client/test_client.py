"""Both clients against a real server, and what they refuse before they send it."""

from __future__ import annotations

import asyncio
import inspect
import io
from collections.abc import Callable
from pathlib import Path
from types import NoneType
from typing import Any, Self, get_args, get_type_hints

import httpx
import numpy as np
import pytest
from PIL import Image

from service.routes.generation_request import GenerateRequest
from tests.client.conftest import KEY
from tests.client.scripted import DONE, MODELS, scripted
from tests.conftest import PICTURES, Tiny
from tests.tiny_bundle import oracle_codes, oracle_pixels
from vqserve import (
    AsyncClient,
    Client,
    Encoded,
    Generation,
    ModelInfo,
    ProblemError,
    Row,
    UnexpectedAnswerError,
    VqserveError,
    connection,
    operations,
)

DIGITS = [PICTURES / f"digit_{n}.png" for n in (0, 1, 7)]


def pixels_of(path: Path) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    return np.asarray(Image.open(path))[..., None]


@pytest.mark.parametrize("codes", [[[1.7, 2.2]], [["3"]], [[True]]])
def test_codes_that_are_no_whole_numbers_are_refused_and_not_converted(codes: object) -> None:
    for call in (operations.decode, operations.decode_png):
        with pytest.raises(ValueError, match="pass whole numbers"):
            call(codes)  # type: ignore[arg-type]
    (body,) = (operations.decode([[2**32 + 5]]).content,)
    assert body is not None and np.load(io.BytesIO(body)).tolist() == [[[2**32 + 5]]]  # which the service refuses


@pytest.mark.parametrize("file", [b"\xf6Q\x12", Path("x.vqc")])
def test_a_container_is_not_taken_for_codes(file: Any) -> None:
    """It was `codes are |S3: pass whole numbers`."""
    for call in (operations.decode, operations.decode_png):
        with pytest.raises(TypeError, match="pass codes, or a container to decompress"):
            call(file)


@pytest.mark.parametrize("other", [Path("digit.png"), [Path("digit.png")], None])
def test_what_is_no_array_is_refused_in_its_own_words(other: Any) -> None:
    """It was `Object arrays cannot be saved when allow_pickle=False`."""
    for call in (operations.encode_array, operations.compress_array):
        with pytest.raises(TypeError, match=f"pass an array of numbers, not {type(other).__name__}: "):
            call(other)


@pytest.mark.parametrize("client", [Client, AsyncClient])
def test_numbers_of_numpy_have_the_types_that_are_asked_for(client: type[Client] | type[AsyncClient]) -> None:
    """They work in each call, and a type checker refused them in these."""
    for call, name, kind in (
        (client.encode, "effort", operations.Number),
        (client.encode_array, "effort", operations.Number),
        (client.decompress, "tile", operations.Whole),
        (client.score, "label", operations.Whole),
    ):
        assert get_type_hints(call)[name] == kind | None


def test_what_may_be_none_has_such_a_type() -> None:
    """A type checker refused `label=None`, which each call takes."""
    assert all(NoneType in get_args(hint) for hint in get_type_hints(operations.Packing).values())
    taken = {name: field.annotation for name, field in GenerateRequest.model_fields.items()}
    for name, hint in get_type_hints(operations.Wanted).items():
        assert (NoneType in get_args(hint)) == (NoneType in get_args(taken[name])), name


def test_keys_and_urls_that_cannot_be_used_say_so() -> None:
    assert connection.key_header("") == connection.key_header(None) == {}
    with pytest.raises(VqserveError, match="write http://localhost:8000"):
        Client("localhost:8000")
    for key in ("clé", "secret ", " secret", " "):  # with a space, each call was an error of httpx that quotes the key
        with pytest.raises(VqserveError, match=r"printable ASCII.*without a space") as raised:
            AsyncClient(key=key)
        assert "secret" not in str(raised.value)


def archive() -> bytes:
    stream = io.BytesIO()
    np.savez(stream, np.zeros(1))
    return stream.getvalue()


def npy(array: np.ndarray[Any, Any]) -> bytes:
    stream = io.BytesIO()
    np.save(stream, array)
    return stream.getvalue()


def header_alone(shape: str) -> bytes:
    """Of an .npy, without what it promises."""
    fields = f"{{'descr': '|u1', 'fortran_order': False, 'shape': {shape}, }}".ljust(117) + "\n"
    return b"\x93NUMPY\x01\x00" + len(fields).to_bytes(2, "little") + fields.encode()


@pytest.mark.parametrize(
    ("call", "body"),
    [
        (operations.decode([[1]]), b""),
        (operations.decode([[1]]), archive()),
        (operations.decode([[1]]), archive()[:20]),  # it was a BadZipFile
        (operations.decode([[1]]), npy(np.zeros((1, 2, 2, 3)))),  # in the command it was a TypeError
        (operations.decompress(b"x"), npy(np.zeros(3, np.uint8))),
        (operations.models(), b"[]"),
        (operations.models(), b"\xff" * 100_000),  # the message held it whole
        (operations.compress([b"x"]), b"<!DOCTYPE html>"),  # it was written as the container
        (operations.compress_array(np.zeros((1, 2, 2, 1), np.uint8)), b""),
        (operations.decode_png([[1]]), b"<!DOCTYPE html>"),
        (operations.decode([[1]]), npy(np.zeros((0, 2, 2, 3), np.uint8))),  # `decode` wrote nothing, and status 0
        (operations.decode([[1]]), npy(np.zeros((1, 2, 2, 5), np.uint8))),  # in the command it was a TypeError
        (operations.decode([[1]]), header_alone("(1, 999999999, 999999999, 3)")),  # a MemoryError
        (operations.decode([[1]]), header_alone("((((((")),  # a TokenError
        (operations.encode_array(np.zeros((1, 2, 2, 1), np.uint8)), npy(np.zeros((1, 2, 2)))),  # taken for codes
        (operations.models(), b"[" * 200_000),  # a RecursionError
        (
            operations.encode([b"x"]),
            b'{"model": "m", "version": "v", "width": 1, "height": 1, "codes": [[%d]]}' % 2**70,
        ),
        (operations.encode([b"x"] * 2), b'{"model": "m", "version": "v", "items": []}'),  # in the command an IndexError
        (operations.score([b"x"]), b'{"items": []}'),
        (operations.score([b"x"]), b'{"bits": "x", "bits_per_code": null}'),  # in the command it was a TypeError
        (operations.generate(None, {}), b'{"model": "m", "version": "v", "seed": "a/../../x", "items": []}'),  # a path
    ],
)
def test_an_answer_of_another_shape_is_unexpected(call: operations.Operation[object], body: bytes) -> None:
    with pytest.raises(UnexpectedAnswerError, match="see that the URL is that of a vqserve service") as raised:
        call.value(httpx.Response(200, content=body))
    assert len(str(raised.value)) < 400


def test_pictures_go_there_and_back(server_url: str, tiny: Tiny) -> None:
    pixels = np.stack([pixels_of(path) for path in DIGITS])
    codes = oracle_codes(pixels, tiny.grey_weights)
    decoded = oracle_pixels(codes, tiny.grey_weights, 1)
    with Client(server_url, key=KEY) as client:
        assert all(np.array_equal(one.codes, grid) for one, grid in zip(client.encode(*DIGITS), codes, strict=True))
        assert np.array_equal(client.encode_array(pixels), codes)
        assert np.array_equal(client.decode(codes), decoded)
        assert np.array_equal(client.decode(codes[0]), decoded[:1])
        assert np.array_equal(np.asarray(Image.open(io.BytesIO(client.decode_png(codes[0])))), decoded[0, :, :, 0])
        assert np.array_equal(client.decompress(client.compress(*DIGITS)), decoded)
        assert np.array_equal(client.decompress(client.compress(DIGITS[0].read_bytes())), decoded[:1])
        assert client.compress_array(pixels) == client.compress(*DIGITS)


def test_models_describe_themselves(server_url: str) -> None:
    with Client(server_url, key=KEY) as client:
        names = [model.name for model in client.models()]
        assert names == ["tiny", "tiny_colour"]
        assert client.model("tiny_colour").details["picture"]["any_size"] is True
        (encoded,) = client.encode(PICTURES / "ladybird_crop.jpg", model="tiny_colour")
        assert (encoded.width, encoded.height, encoded.codes.shape) == (96, 64, (16, 24))


def test_a_refusal_is_a_problem(server_url: str) -> None:
    with Client(server_url, key=KEY) as client:
        with pytest.raises(ProblemError, match="none of them") as raised:
            client.encode(b"not a picture")
        assert (raised.value.status, raised.value.type) == (422, "urn:vqserve:problem:not-a-picture")
        assert raised.value.request_id
    with Client(server_url) as stranger, pytest.raises(ProblemError, match="401"):
        stranger.models()


def test_a_path_as_text_is_refused_before_it_is_sent(server_url: str) -> None:
    path: Any = str(PICTURES / "digit_7.png")
    with Client(server_url, key=KEY) as client, pytest.raises(TypeError, match="or its Path, not str"):
        client.encode(path)


@pytest.mark.parametrize("other", [bytearray(b"x"), [b"x"], np.zeros((28, 28), np.uint8)])
def test_what_is_no_file_is_refused_before_it_is_sent(server_url: str, other: Any) -> None:
    """It was an AttributeError of `read`, or the service's word on bytes that nobody had meant to send."""
    with Client(server_url, key=KEY) as client:
        for call in (client.encode, client.compress, client.decompress):
            with pytest.raises(TypeError, match=f"or its Path, not {type(other).__name__}"):
                call(other)


def test_a_container_may_be_named_by_its_path(server_url: str, tmp_path: Path) -> None:
    with Client(server_url, key=KEY) as client:
        container = client.compress(DIGITS[0])
        (tmp_path / "x.vqc").write_bytes(container)
        assert np.array_equal(client.decompress(tmp_path / "x.vqc"), client.decompress(container))
        with pytest.raises(TypeError, match="not str"):
            client.decompress(str(tmp_path / "x.vqc"))  # type: ignore[arg-type]


def test_codes_are_passed_without_what_surrounds_them(server_url: str) -> None:
    with Client(server_url, key=KEY) as client:
        (encoded,) = client.encode(DIGITS[0])
        assert client.decode(encoded.codes).shape == (1, 28, 28, 1)
        with pytest.raises(TypeError, match=r"encoded\.codes"):
            client.decode(encoded)  # type: ignore[arg-type]
        for known in (encoded, {"codes": encoded, "mask": encoded.codes > 0}):  # it was `not JSON serializable`
            with pytest.raises(TypeError, match=r"^pass the codes alone: encoded\.codes$"):
                client.generate(known=known)  # type: ignore[typeddict-item,arg-type]


@pytest.mark.parametrize("name", ["tiny?x=/../", "../healthz", "a/b", "..", "."])
def test_the_name_of_a_model_is_one_part_of_a_path(server_url: str, name: str) -> None:
    """It asked for another route, and gave what that answers."""
    with Client(server_url, key=KEY) as client, pytest.raises(ProblemError, match="404 No such model: No model"):
        client.model(name)


def test_calls_that_are_cancelled_take_no_place_from_others(server_url: str) -> None:
    """Of more calls than connections, each that was cancelled together with those before it took one for ever."""

    async def call() -> None:
        async with AsyncClient(server_url, key=KEY) as client:
            for _ in range(2):
                calls = [asyncio.create_task(client.models()) for _ in range(3 * connection.MOST_AT_ONCE)]
                await asyncio.sleep(0)
                for one in calls:
                    one.cancel()
                await asyncio.gather(*calls, return_exceptions=True)
            await asyncio.wait_for(client.models(), 10)

    asyncio.run(call())


def test_the_asynchronous_client_gives_the_same(server_url: str) -> None:
    async def together() -> list[bytes]:
        async with AsyncClient(server_url, key=KEY) as client:
            return await asyncio.gather(*(client.compress(path) for path in DIGITS))

    with Client(server_url, key=KEY) as client:
        assert asyncio.run(together()) == [client.compress(path) for path in DIGITS]


def test_both_clients_have_the_same_methods() -> None:
    for name, method in inspect.getmembers(Client, inspect.isfunction):
        if not name.startswith("_"):
            assert inspect.signature(getattr(AsyncClient, name)).parameters == inspect.signature(method).parameters


@pytest.mark.parametrize(
    "call",
    [
        lambda client: client.models(),
        lambda client: client.encode(b"x"),
        lambda client: client.decode([[1]]),
        lambda client: client.generate(),
        lambda client: client.score(b"x"),
    ],
)
def test_an_unknown_answer_is_an_error(call: Callable[[Client], Any]) -> None:
    transport, _ = scripted(httpx.Response(200, json={"unknown": 1}))
    with Client("http://x", transport=transport) as client, pytest.raises(UnexpectedAnswerError):
        call(client)


def test_a_folder_is_no_file(tmp_path: Path) -> None:
    """The error did not say what to pass instead."""
    with Client("http://x") as client:
        for call in (client.encode, client.compress, client.score, client.decompress):
            with pytest.raises(IsADirectoryError, match=f"it is a folder: pass its files.*{tmp_path}"):
                call(tmp_path)


def test_answers_are_equal_where_all_their_fields_are() -> None:
    """Comparing them was a ValueError: the truth value of an array is ambiguous."""
    item = {"label": 3, "bits": 12.5, "codes": [[1, 2], [3, 4]], "image": ""}
    other_codes, other_bits = {**item, "codes": [[1, 2], [3, 5]]}, {**item, "bits": 1.0}
    drawn, same, *others = (Generation.of({**DONE, "items": [one]}) for one in (item, item, other_codes, other_bits))
    assert drawn == same and all(drawn != other for other in others)
    row = Row(0, np.array([[1, 2]]), (b"a",))
    assert row == Row(0, np.array([[1, 2]]), (b"a",)) and row != Row(0, np.array([[1, 2]]), (b"a\0",))
    encoded, smaller = (Encoded("m", "v", 2, 2, np.zeros(shape, np.int64)) for shape in ((2, 2), (1, 2)))
    assert encoded != smaller and encoded != row


def test_a_notebook_shows_no_files() -> None:
    """An answer at the end of a cell was a page of bytes, and a model one of numbers."""
    generation = Generation.of(DONE)
    shown = repr(
        [generation, Row(0, np.array([[1, 2]]), (b"file",)), ModelInfo.of(MODELS["models"][0] | {"x": "more"})]
    )
    assert "bits=12.5" in shown and "name='m'" in shown
    assert all(word not in shown for word in ("PNG", "file", "more"))


def test_who_installs_the_package_has_its_types() -> None:
    """Without the file, type checkers take all of it for `Any`."""
    assert Path(connection.__file__).with_name("py.typed").is_file()


def test_a_subclass_keeps_its_type_in_a_with_block() -> None:
    """Type checkers took it for a `Client`, and refused the methods of its own."""
    assert get_type_hints(Client.__enter__)["return"] is Self
    assert get_type_hints(AsyncClient.__aenter__)["return"] is Self
