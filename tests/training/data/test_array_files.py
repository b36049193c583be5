"""Pictures in arrays, as users have them: IDX files and .npz."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.training.conftest import DIGITS, all_images, digits, noise
from training.config import DataConfig
from training.data import DataError, load_data
from training.data.arrays import IDX_PARTS

# IDX


def test_idx_pixels_and_labels_are_those_in_the_file() -> None:
    data = load_data(DataConfig(source=str(DIGITS)))
    raw = np.frombuffer(digits("t10k-images-idx3-ubyte"), np.uint8, offset=16).reshape(-1, 28, 28)
    assert np.array_equal(all_images(data.test)[:, 0].numpy(), raw)
    assert data.test.labels.tolist() == list(digits("t10k-labels-idx1-ubyte")[8:])
    assert data.label_names == tuple("0123456789")
    assert (len(data.train), len(data.validation), len(data.test)) == (392, 8, 100)


def test_raw_idx_files_and_dotted_names_read_as_the_compressed_ones(tmp_path: Path) -> None:
    for part in IDX_PARTS:
        (tmp_path / part.replace("-idx", ".idx")).write_bytes(digits(part))
    assert load_data(DataConfig(source=str(tmp_path))).digest == load_data(DataConfig(source=str(DIGITS))).digest


def test_a_missing_idx_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "train-images-idx3-ubyte").write_bytes(digits("train-images-idx3-ubyte"))
    with pytest.raises(DataError, match="lacks train-labels-idx1-ubyte, t10k-images"):
        load_data(DataConfig(source=str(tmp_path)))


# npz


def test_npz_with_keras_names_keeps_its_test_split(tmp_path: Path) -> None:
    train, test = noise((30, 8, 8)), noise((5, 8, 8), 1)
    labels = np.arange(30) % 3
    np.savez(tmp_path / "d.npz", x_train=train, y_train=labels, x_test=test, y_test=np.zeros(5, np.uint8))
    data = load_data(DataConfig(source=str(tmp_path / "d.npz"), validation_fraction=0.1))
    assert np.array_equal(all_images(data.test)[:, 0].numpy(), test)
    assert data.label_names == ("0", "1", "2")
    for picture, label in zip(all_images(data.train), data.train.labels, strict=True):
        (index,) = np.flatnonzero((train == picture[0].numpy()).all((1, 2)))
        assert labels[index] == label


def test_a_zip_of_pictures_is_to_be_unpacked(tmp_path: Path) -> None:
    """Every name in it was in the message, half a megabyte of twenty thousand, and it was told to name the arrays."""
    np.savez(tmp_path / "d.npz", **{f"cats/{number}.png": np.zeros(1) for number in range(500)})
    with pytest.raises(DataError) as told:
        load_data(DataConfig(source=str(tmp_path / "d.npz")))
    assert str(told.value).endswith("cats/9.png and 490 more: unpack it and name the folder")
    assert len(str(told.value)) < 400


def test_npz_without_labels_or_test_split(tmp_path: Path) -> None:
    np.savez_compressed(tmp_path / "d.npz", images=noise((40, 8, 12, 3)))
    data = load_data(DataConfig(source=str(tmp_path / "d.npz")))
    assert data.label_names == () and data.picture == (3, 8, 12)
    assert (len(data.train), len(data.validation), len(data.test)) == (33, 1, 6)


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"images": np.zeros((4, 8, 8), np.float32)}, r"float32 \(4, 8, 8\): save them as uint8 .*; floats in \[0,1\]"),
        ({"images": np.zeros((4, 8, 8), np.int64)}, r"int64 \(4, 8, 8\): save them as uint8 .*1 or 3\)$"),
        ({"images": np.array([object()])}, "plain arrays"),
        ({"pictures": np.zeros((4, 8, 8), np.uint8)}, "name the pictures x_train or images"),
        (
            {"images": np.zeros((4, 8, 8), np.uint8), "labels": np.zeros(3, np.int64)},
            "int64 .*: give each picture one integer",
        ),
        ({"images": np.zeros((4, 8, 8), np.uint8), "labels": np.full(4, -1)}, r"labels must lie in 0\.\.0: correct"),
        (
            {"images": noise((9, 8, 8)), "labels": np.zeros(9, np.int64), "test_images": noise((4, 8, 8))},
            "labels for one of",
        ),
        (
            {"images": noise((9, 8, 8)), "test_images": noise((4, 8, 8)), "test_labels": np.zeros(4, np.int64)},
            "labels for one of",
        ),
        (
            {
                "images": noise((9, 8, 8)),
                "labels": np.zeros(9, np.int64),
                "test_images": noise((4, 8, 8)),
                "test_labels": np.array([0, 1, 0, 0]),
            },
            r"labels must lie in 0\.\.0",
        ),
        ({"images": noise((9, 8, 8)), "labels": np.arange(9) * 50_000_000}, "9 different labels reach up to 400000000"),
        ({"images": noise((9, 8, 8)), "labels": np.arange(9) * 32}, "9 different labels reach up to 256"),
        ({"images": noise((9, 8, 8)), "labels": np.arange(2017, 2026)}, "renumber those of training and test together"),
        ({"images": noise((9, 8, 8)), "labels": np.full(9, 2**63 + 5, np.uint64)}, f"reach up to {2**63 + 5}"),
        (
            {"images": np.zeros((9, 0, 8), np.uint8)},
            r"has no pictures: an array of them is \(9, 0, 8\): save it again with some",
        ),
        ({"images": noise((9, 8, 8)), "test_images": noise((4, 8, 12))}, r"\(1, 8, 8\).*\(1, 8, 12\): make them alike"),
        (
            {"images": noise((9, 8, 8)), "test_images": noise((4, 8, 8, 3))},
            "have 1 channels, test pictures 3",
        ),
    ],
)
def test_an_unusable_npz_is_refused_with_its_reason(tmp_path: Path, arrays: dict[str, object], message: str) -> None:
    np.savez(tmp_path / "d.npz", allow_pickle=True, **arrays)  # type: ignore[arg-type]
    with pytest.raises(DataError, match=message):
        load_data(DataConfig(source=str(tmp_path / "d.npz")))


def test_an_npz_may_have_more_labels_than_a_byte(tmp_path: Path) -> None:
    labels = np.arange(600) // 2
    np.savez(tmp_path / "d.npz", images=noise((600, 4, 4)), labels=labels)
    assert len(load_data(DataConfig(source=str(tmp_path / "d.npz"))).label_names) == 300


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("d.npz", b"", "cannot be read as a .npz"),
        ("d.png", b"\x89PNG\r\n\x1a\n", "data.source is a folder of picture files, or a .npz$"),
        ("d.npy", None, "is one array: save a .npz"),
    ],
)
def test_a_file_that_is_no_npz_is_refused(tmp_path: Path, name: str, content: bytes | None, message: str) -> None:
    path = tmp_path / name
    if content is None:
        np.save(path, noise((9, 8, 8)))
    else:
        path.write_bytes(content)
    with pytest.raises(DataError, match=message):
        load_data(DataConfig(source=str(path)))
