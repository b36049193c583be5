"""Array files as people have them: arrays under other names, damaged, encrypted, compressed in other ways."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path

import numpy as np
import pytest

from tests.training.conftest import DIGITS, digits, noise
from training.config import DataConfig
from training.data import DataError, load_data
from training.data.arrays import IDX_PARTS, parse_idx, read_npz

HEADER = "{'descr': '|u1', 'fortran_order': False, 'shape': %s}"


def npy(header: str, body: bytes = b"", version: int = 1) -> bytes:
    """An array as numpy stores it: magic, version, the header's length and text, the items."""
    text = header.encode("latin1")
    return b"\x93NUMPY" + bytes([version, 0]) + len(text).to_bytes(2 if version == 1 else 4, "little") + text + body


def packed(compression: int = zipfile.ZIP_STORED, **members: bytes) -> bytes:
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w", compression) as file:
        for name, content in members.items():
            file.writestr(f"{name}.npy", content)
    return archive.getvalue()


def changed(content: bytes, position: int, value: int) -> bytes:
    return content[:position] + bytes([value]) + content[position + 1 :]


GOOD = npy(HEADER % "(9, 8, 8)", noise((9, 8, 8)).tobytes())
DIRECTORY = packed(images=GOOD).rindex(b"PK\1\2")  # of the zip: its flags are at 8, the compression at 10
FIRST_BYTE = 30 + len("images.npy")  # of the first member, behind its local header


# npz: names


@pytest.mark.parametrize(
    ("names", "ignored"),
    [
        (("x_train", "labels"), "labels"),
        (("images", "labels", "x_test", "y_test"), "x_test, y_test"),
        (("images", "x_train"), "images"),
        (("x_train", "y_train", "weights"), "weights"),
        (("x_train", "y_test"), "y_test"),
        (("images", "test_labels"), "test_labels"),
    ],
)
def test_an_array_that_would_be_ignored_is_refused(tmp_path: Path, names: tuple[str, ...], ignored: str) -> None:
    """x_train beside `labels` trained a model without labels, and nobody was told."""
    pictures, labels = noise((9, 8, 8)), np.zeros(9, np.int64)
    pictures_too = ("images", "x_train", "x_test")
    np.savez(tmp_path / "d.npz", **{name: pictures if name in pictures_too else labels for name in names})
    understood = "x_train, y_train, x_test, y_test or images, labels, test_images, test_labels"
    with pytest.raises(DataError, match=rf"d\.npz: {ignored} would be ignored beside .*: remove .*{understood}"):
        read_npz(tmp_path / "d.npz")


def test_an_array_that_would_be_ignored_is_not_read(tmp_path: Path) -> None:
    (tmp_path / "d.npz").write_bytes(packed(images=GOOD, more=npy(HEADER % f"({2**62},)")))
    with pytest.raises(DataError, match="more would be ignored"):
        read_npz(tmp_path / "d.npz")


def test_the_gaps_between_the_labels_of_an_npz_are_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    labels = np.array([1, 2, 7] * 20)
    np.savez(tmp_path / "d.npz", x_train=noise((60, 8, 8)), y_train=labels, x_test=noise((3, 8, 8)), y_test=labels[:3])
    data = load_data(DataConfig(source=str(tmp_path / "d.npz")))
    assert data.label_names == tuple("01234567") and sorted(set(data.train.labels.tolist())) == [1, 2, 7]
    assert "no training picture has the labels 0, 3, 4, 5, 6: the model will not know them" in caplog.messages


# npz: damage


ODD = {
    "text": (packed(images=b"hello"), "images is no array"),
    "empty": (packed(images=b""), "images is no array"),
    "cut": (packed(images=GOOD[:-1]), "EOF: reading array data, expected 576 bytes got 575"),
    "cut header": (packed(images=GOOD[:20]), "EOF: reading array header"),
    "4 EiB": (packed(images=npy(HEADER % f"({2**62},)")), "Unable to allocate 4.00 EiB .*: save .* fewer pictures"),
    "beyond 64 bits": (packed(images=npy(HEADER % f"({2**70},)")), "too large to convert"),
    "long header": (packed(images=npy("x" * 20_000)), r"length \(20000\) is large [^\n]* securely\.:"),
    "deep header": (packed(images=npy("-" * 9000 + "1")), "MemoryError|recursion|nest|complex: .*savez"),  # by Python
    "keys of two types": (packed(images=npy("{1: 2, 'a': 3}")), "not supported between"),
    "no dtype": (packed(images=npy("{'descr': (), 'fortran_order': False, 'shape': (4,)}")), "out of range"),
    "comma for a dtype": (packed(images=npy("{'descr': ',', 'fortran_order': False, 'shape': (4,)}")), "syntax"),
    "open bracket": (packed(images=npy("((")), "EOF in multi-line statement"),
    "encrypted": (changed(packed(images=GOOD), DIRECTORY + 8, 1), "images.npy' is encrypted"),
    "compression 99": (changed(packed(images=GOOD), DIRECTORY + 10, 99), "compression method is not supported"),
    "deflate": (changed(packed(zipfile.ZIP_DEFLATED, images=GOOD), FIRST_BYTE, 255), "invalid block type"),
    "lzma": (changed(packed(zipfile.ZIP_LZMA, images=GOOD), FIRST_BYTE + 12, 255), "Corrupt input data"),
    "cut archive": (packed(images=GOOD)[:400], "not a zip file"),
    "another item": (changed(packed(images=GOOD), 300, GOOD[300 - FIRST_BYTE] ^ 1), "Bad CRC-32"),
}


@pytest.mark.parametrize(("content", "message"), ODD.values(), ids=ODD.keys())
def test_an_odd_npz_is_refused_with_what_to_do(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "d.npz"
    path.write_bytes(content)
    with pytest.raises(DataError, match=rf"d\.npz cannot be read as a .npz of plain arrays: .*({message})") as caught:
        read_npz(path)
    assert ": save it again with" in str(caught.value)
    assert "\n" not in str(caught.value) and "pickle=True" not in str(caught.value)


@pytest.mark.parametrize("compression", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_LZMA])
@pytest.mark.filterwarnings("ignore")  # of numpy, of headers that Python 2 may have written
def test_whatever_byte_of_an_npz_is_wrong_the_error_is_ours(tmp_path: Path, compression: int) -> None:
    """Fuzz: each byte in turn, set to a value of its own and to one that opens a bracket; and each length."""
    path = tmp_path / "d.npz"
    content = packed(compression, images=npy(HEADER % "(4, 1, 1)", b"abcd"))
    odd = [changed(content, index, value) for index in range(len(content)) for value in (index * 37 % 256, ord("("))]
    refused = 0
    for broken in [*odd, *(content[:length] for length in range(len(content)))]:
        path.write_bytes(broken)
        try:
            read_npz(path)
        except DataError:
            refused += 1
    assert refused > len(content)  # of three times as many: a time, say, may be wrong


def test_a_file_that_may_not_be_opened_is_no_damaged_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def denied(path: Path, mode: str) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "open", denied)  # root may open everything
    with pytest.raises(DataError, match=r"d\.npz cannot be .*: Permission denied: correct its permissions"):
        read_npz(tmp_path / "d.npz")


# IDX


def idx(*axes: int, body: bytes = b"") -> bytes:
    return bytes([0, 0, 8, len(axes)]) + b"".join(axis.to_bytes(4, "big") for axis in axes) + body


@pytest.mark.parametrize(
    ("content", "message"),
    [
        # 2**64 bytes, which are 0 to an int64
        (idx(2**31, 2**31, 4), rf"is damaged: .*, {2**64} bytes, but 0 bytes follow: fetch it again"),
        (idx(2, 3, 3, body=b"12345"), r"is damaged: .*\(2, 3, 3\), 18 bytes, but 5 bytes follow: fetch it again"),
        (idx(0, 2**32 - 1, 2**32 - 1), r"is empty: its header says \(0, 4294967295, 4294967295\): fetch it again"),
        (idx(*[1] * 100, body=b"x"), "not an IDX file of unsigned bytes in 1 to 4 axes: put one there"),
        (idx(body=b"x"), "not an IDX file of unsigned bytes in 1 to 4 axes: put one there"),
        (digits(IDX_PARTS[2])[:-1], "is damaged: its header says"),
        (digits(IDX_PARTS[2]) + b"x", "is damaged: its header says"),
        (b"not an idx file", "not an IDX file"),
        (b"\x00\x00\x08\x03\x00\x00", "not an IDX file"),
        ((DIGITS / f"{IDX_PARTS[2]}.gz").read_bytes()[:-9], "damaged gzip"),
    ],
    ids=["2**64 bytes", "cut", "no pictures", "100 axes", "no axes", "short", "long", "text", "no header", "cut gzip"],
)
def test_a_damaged_idx_file_is_refused_by_name(tmp_path: Path, content: bytes, message: str) -> None:
    """Sizes were multiplied in 64 bits, in which 2**64 bytes are as many as none; numpy then failed without a name."""
    for part in IDX_PARTS:
        (tmp_path / part).write_bytes(digits(part))
    (tmp_path / IDX_PARTS[2]).write_bytes(content)
    with pytest.raises(DataError, match=rf"{IDX_PARTS[2]} .*{message}"):
        load_data(DataConfig(source=str(tmp_path)))


def test_an_idx_array_has_the_shape_of_its_header() -> None:
    found = parse_idx(idx(2, 1, 3, body=b"abcdef"), Path("d"))
    assert found.dtype == np.uint8 and found.tolist() == [[[97, 98, 99]], [[100, 101, 102]]]
