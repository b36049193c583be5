"""Data sets with a name: where their files come from, and that they are the right ones."""

from __future__ import annotations

import gzip
import hashlib
import io
import tarfile
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest

from tests.training.conftest import DIGITS, all_images, digits, noise
from training.config import DataConfig
from training.data import DataError, load_data
from training.data import named as named_module
from training.data.arrays import CIFAR_ARCHIVE, CIFAR_LABELS, IDX_PARTS
from training.data.named import NAMED, File, Named

# CIFAR-10


def write_cifar(folder: Path, pixels: np.ndarray, labels: np.ndarray) -> Path:
    """The binary archive: label byte, then the three colour planes; `pixels` (60,32,32,3) are ten pictures a file."""
    folder.mkdir(parents=True)
    path = folder / CIFAR_ARCHIVE
    with tarfile.open(path, "w:gz") as archive:
        names = [f"data_batch_{number}.bin" for number in range(1, 6)] + ["test_batch.bin"]
        for start, name in zip(range(0, 60, 10), names, strict=True):
            planes = pixels[start : start + 10].transpose(0, 3, 1, 2).reshape(10, -1)
            content = np.concatenate([labels[start : start + 10, None], planes], axis=1).tobytes()
            info = tarfile.TarInfo(f"cifar-10-batches-bin/{name}")
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return path


def test_cifar10_colours_and_labels(tmp_path: Path) -> None:
    pixels, labels = noise((60, 32, 32, 3)), (np.arange(60) % 10).astype(np.uint8)
    write_cifar(tmp_path / "c", pixels, labels)
    data = load_data(DataConfig(source=str(tmp_path / "c")))
    assert np.array_equal(all_images(data.test).permute(0, 2, 3, 1).numpy(), pixels[50:])
    assert data.test.labels.tolist() == labels[50:].tolist() and data.label_names == CIFAR_LABELS


# downloads, from a server on this machine


class QuietHandler(SimpleHTTPRequestHandler):
    def log_message(self, *arguments: object) -> None:
        """No access log in the tests' output."""


@pytest.fixture
def mirror(tmp_path: Path) -> Iterator[tuple[str, Path]]:
    folder = tmp_path / "mirror"
    (folder / "good").mkdir(parents=True)
    (folder / "bad").mkdir()
    for part in IDX_PARTS:
        (folder / "good" / f"{part}.gz").write_bytes((DIGITS / f"{part}.gz").read_bytes())
        (folder / "bad" / f"{part}.gz").write_bytes(gzip.compress(b"something else"))
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(QuietHandler, directory=str(folder)))
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}", folder
    server.shutdown()
    thread.join()
    server.server_close()


def as_named(monkeypatch: pytest.MonkeyPatch, *mirrors: str) -> None:
    md5s = {part: hashlib.md5(digits(part), usedforsecurity=False).hexdigest() for part in IDX_PARTS}
    files = tuple(File(f"{part}.gz", md5, of_content=True) for part, md5 in md5s.items())
    monkeypatch.setitem(NAMED, "mnist", Named(mirrors, files, "CC BY-SA 3.0"))


def test_a_named_data_set_comes_from_the_first_mirror_with_the_right_checksum(
    tmp_path: Path, mirror: tuple[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    url, served = mirror
    as_named(monkeypatch, f"{url}/absent/", f"{url}/bad/", f"{url}/good/")
    config = DataConfig(source="mnist", root=str(tmp_path / "data"))
    downloaded = load_data(config)
    assert downloaded.digest == load_data(DataConfig(source=str(DIGITS))).digest
    assert sorted(path.name for path in (tmp_path / "data" / "mnist").iterdir()) == sorted(f"{p}.gz" for p in IDX_PARTS)
    for path in served.rglob("*.gz"):
        path.unlink()
    assert load_data(config).digest == downloaded.digest  # from disk, the mirror is empty now


def test_with_no_mirror_the_error_says_which_file_to_put_where(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(named_module, "TIMEOUT_S", 2.0)
    as_named(monkeypatch, "http://127.0.0.1:9/")  # the discard port: refused
    with pytest.raises(DataError, match=r"Put the file at .*data/mnist/train-images-idx3-ubyte\.gz"):
        load_data(DataConfig(source="mnist", root=str(tmp_path / "data")))
    assert list((tmp_path / "data" / "mnist").iterdir()) == []


def test_a_changed_file_of_a_named_data_set_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    as_named(monkeypatch)
    folder = tmp_path / "mnist"
    folder.mkdir()
    for part in IDX_PARTS:
        (folder / part).write_bytes(digits(part))  # decompressed by hand: accepted
    assert len(load_data(DataConfig(source="mnist", root=str(tmp_path))).test) == 100
    (folder / IDX_PARTS[3]).write_bytes(digits(IDX_PARTS[3])[:-1] + b"\x05")
    for part in IDX_PARTS:  # a good compressed file beside it is no reason to read it unchecked
        (folder / f"{part}.gz").write_bytes((DIGITS / f"{part}.gz").read_bytes())
        with pytest.raises(DataError, match=f"{IDX_PARTS[3]} has another MD5"):
            load_data(DataConfig(source="mnist", root=str(tmp_path)))


def test_a_named_data_set_is_read_from_the_files_that_were_checked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Fashion-MNIST's checksums are of the .gz: a raw file beside them was not checked, and read."""
    folder = tmp_path / "fashion_mnist"
    folder.mkdir()
    files = []
    for part in IDX_PARTS:
        packed = (DIGITS / f"{part}.gz").read_bytes()
        (folder / f"{part}.gz").write_bytes(packed)
        files.append(File(f"{part}.gz", hashlib.md5(packed, usedforsecurity=False).hexdigest()))
    names = NAMED["fashion_mnist"].label_names
    monkeypatch.setitem(NAMED, "fashion_mnist", Named((), tuple(files), "MIT", names))
    (folder / IDX_PARTS[3]).write_bytes(digits(IDX_PARTS[3])[:-1] + b"\x05")
    (folder / CIFAR_ARCHIVE).write_bytes(b"another reader's")
    data = load_data(DataConfig(source="fashion_mnist", root=str(tmp_path)))
    assert data.digest == load_data(DataConfig(source=str(DIGITS))).digest and data.label_names == names


def test_a_named_cifar10_is_its_archive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pixels, labels = noise((60, 32, 32, 3)), (np.arange(60) % 10).astype(np.uint8)
    packed = write_cifar(tmp_path / "cifar10", pixels, labels).read_bytes()
    files = (File(CIFAR_ARCHIVE, hashlib.md5(packed, usedforsecurity=False).hexdigest()),)
    monkeypatch.setitem(NAMED, "cifar10", Named((), files, "none"))
    data = load_data(DataConfig(source="cifar10", root=str(tmp_path)))
    assert data.label_names == CIFAR_LABELS and data.test.labels.tolist() == labels[50:].tolist()
