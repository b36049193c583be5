"""Generation and scores, through both clients and the command, against a server with a prior."""

from __future__ import annotations

import asyncio
import io
import json
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.client.conftest import serving
from tests.conftest import PICTURES, Tiny
from tests.tiny_bundle import tiny_prior, write_tiny_bundle
from vqserve import AsyncClient, Client, Generation, ProblemError, Row, connection
from vqserve.command_line import main

DIGITS = [PICTURES / f"digit_{n}.png" for n in (0, 1, 7)]


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("with_prior") / "tiny_prior"
    write_tiny_bundle(folder, "tiny_prior", prior=tiny_prior())
    return folder


@pytest.fixture(scope="module")
def url(tiny: Tiny, bundle: Path) -> Iterator[str]:
    with serving(tiny, bundles=(bundle, tiny.grey)) as started:
        yield started


def test_a_stream_grows_into_the_generation(url: str) -> None:
    async def streamed() -> list[Row | Generation]:
        async with AsyncClient(url) as client:
            return [value async for value in client.stream(n=2, seed=5, label=1)]

    with Client(url) as client:
        whole = client.generate(n=2, seed=5, label=1)
        for values in (list(client.stream(n=2, seed=5, label=1)), asyncio.run(streamed())):
            *rows, last = values
            assert isinstance(last, Generation) and last.seed == 5
            grids = np.stack([row.codes for row in rows if isinstance(row, Row)], axis=1)
            for index, (grid, drawn, again) in enumerate(zip(grids, last.items, whole.items, strict=True)):
                assert np.array_equal(grid, drawn.codes) and np.array_equal(grid, again.codes), index
        png = np.asarray(Image.open(io.BytesIO(whole.items[0].png)))
        assert np.array_equal(png, client.decode(whole.items[0].codes)[0, :, :, 0])


def test_a_stream_shows_the_pictures_so_far_where_asked(url: str) -> None:
    with Client(url) as client:
        *rows, last = client.stream(n=2, seed=5, preview=True)
        plain = next(client.stream(n=2, seed=5))
    assert isinstance(plain, Row) and plain.pngs == ()
    assert isinstance(last, Generation)
    assert [len(row.pngs) for row in rows if isinstance(row, Row)] == [2] * len(rows)
    whole = rows[-1]
    assert isinstance(whole, Row) and whole.pngs == tuple(item.png for item in last.items)


def test_a_refused_stream_is_a_problem(url: str) -> None:
    with Client(url) as client, pytest.raises(ProblemError, match="label"):
        list(client.stream(label=99))


def test_a_call_in_the_loop_of_a_stream_finds_a_connection(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Streams took all of them, and the calls in their loops waited without end."""
    monkeypatch.setattr(connection, "MOST_AT_ONCE", 2)

    async def together() -> None:
        async with AsyncClient(url) as client:

            async def stream(seed: int) -> int:
                return len([await client.models() async for _ in client.stream(seed=seed)])

            assert await asyncio.gather(*map(stream, range(4))) == [8] * 4

    asyncio.run(asyncio.wait_for(together(), 30))
    counts: list[int] = []
    with Client(url) as client:

        def stream(seed: int) -> None:
            counts.append(len([client.models() for _ in client.stream(seed=seed)]))

        threads = [threading.Thread(target=stream, args=(seed,), daemon=True) for seed in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(15)
    assert counts == [8] * 4


@pytest.mark.parametrize("wanted", [{}, {"label": 99}])
def test_a_stream_that_ends_early_makes_room_for_the_next(
    url: str, wanted: dict[str, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection, "MOST_AT_ONCE", 2)

    async def one_after_another() -> None:
        async with AsyncClient(url) as client:
            for _ in range(3):
                with suppress(ProblemError):
                    async for _ in client.stream(**wanted):
                        break
            waiting = asyncio.create_task(anext(client.stream()))
            await asyncio.sleep(0)
            waiting.cancel()
            await asyncio.gather(waiting, return_exceptions=True)
            assert len([one async for one in client.stream()]) == 8

    asyncio.run(asyncio.wait_for(one_after_another(), 60))
    with Client(url) as client:
        for _ in range(3):
            with suppress(ProblemError):
                next(client.stream(**wanted))
        assert len(list(client.stream())) == 8


def test_known_codes_are_kept(url: str) -> None:
    with Client(url) as client:
        (encoded,) = client.encode(DIGITS[0])
        known: list[list[int | None]] = [list(row) for row in encoded.codes[:3].tolist()]
        known += [[None] * 7 for _ in range(4)]
        (item,) = client.generate(seed=1, known=known).items
        assert np.array_equal(item.codes[:3], encoded.codes[:3])


def test_a_container_is_no_larger_than_the_bits_of_the_score(url: str) -> None:
    """The bits that the service states, a header, and no more than a byte; less where another mode is shorter."""
    with Client(url) as client:
        drawn = client.generate(n=16, seed=3, temperature=0.3)
        pixels = client.decode(np.stack([item.codes for item in drawn.items]))
        codes = client.encode_array(pixels)
        bits = sum(score.bits for score in client.score(*(_png(one) for one in pixels)))
        container = client.compress_array(pixels)
        assert len(container) <= 11 + bits / 8 + 1 + 16 * 49 * 2**-16
        assert np.array_equal(client.decompress(container), client.decode(codes))


def test_offline_and_online_give_the_same(
    url: str, bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    scores = []
    for name, where in (("offline", ["--bundle", str(bundle)]), ("online", ["--url", url])):
        arguments = ["generate", *where, "--n", "3", "--seed", "11", "--top-k", "5", "-o", str(tmp_path / name)]
        assert main(arguments) == 0
        assert main(["score", *where, *map(str, DIGITS)]) == 0
        scores.append([json.loads(line) for line in capsys.readouterr().out.splitlines()])
    assert scores[0] == scores[1] and len(scores[0]) == 3
    pictures = sorted(path.name for path in (tmp_path / "offline").iterdir())
    assert pictures == [f"seed11-{index:03d}.png" for index in range(3)]
    for name in pictures:
        assert (tmp_path / "offline" / name).read_bytes() == (tmp_path / "online" / name).read_bytes()


def test_wishes_that_cannot_be_met_say_why(bundle: Path, tiny: Tiny, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["generate", "--bundle", str(bundle), "--label", "9"]) == 1
    assert "label" in capsys.readouterr().err
    assert main(["generate", "--bundle", str(tiny.grey)]) == 1
    assert "without a prior" in capsys.readouterr().err


def _png(pixels: np.ndarray[tuple[int, ...], np.dtype[np.uint8]]) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(pixels[:, :, 0]).save(stream, "PNG")
    return stream.getvalue()


def test_labels_may_be_named(url: str, bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Only their numbers could be, and `GET /models`, which lists the names, is no word of the command."""
    for where in (["--bundle", str(bundle)], ["--url", url], ["--url", url, "--model", "tiny_prior"]):
        drawn = []
        for label in ("label 2", "2"):
            assert main(["generate", *where, "--seed", "5", "--label", label, "-o", f"{tmp_path}/drawn.png"]) == 0
            assert main(["score", *where, "--label", label, str(DIGITS[0])]) == 0
            drawn.append(((tmp_path / "drawn.png").read_bytes(), capsys.readouterr().out))
        assert drawn[0] == drawn[1]
        for command in (["generate"], ["score", str(DIGITS[0]), str(DIGITS[1])]):
            for name in ("cat", "1_0", "0x1"):  # 1_0 was label 10
                assert main([*command, *where, "--label", name]) == 1
                said = f"vqserve: no label of the model is called '{name}': vqserve info lists their names\n"
                assert capsys.readouterr().err == said
        assert main(["generate", *where, "--label", "-1"]) == 1
        assert "vqserve info lists the labels' names" in capsys.readouterr().err
    assert main(["generate", "--url", url, "--model", "tiny", "--label", "cat"]) == 1
    assert capsys.readouterr().err == "vqserve: the model has no labels: leave --label out\n"


def test_info_lists_all_labels(
    url: str, bundle: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of more than a hundred it listed none."""
    monkeypatch.setattr("vqserve.command_line._MOST_LISTED", 2)
    for where in (["--bundle", str(bundle)], ["--url", url, "--model", "tiny_prior"]):
        assert main(["info", *where]) == 0
        assert json.loads(capsys.readouterr().out)[0]["labels"] == ["label 0", "label 1", "label 2"]
