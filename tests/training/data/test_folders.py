"""Folders as people have them: of macOS, of links, of names that are no UTF-8, of labels that lost their pictures."""

from __future__ import annotations

import hashlib
import os
import struct
import zlib
from pathlib import Path

import pytest
from PIL import Image

from tests.training.conftest import noise, write_pictures
from training.config import DataConfig
from training.data import DataError, DataSet, load_data
from training.data.dataset import ranked
from training.data.folder import MOST_ENLARGED, _Budget, decode_picture, picture_files, split_files


def loaded(folder: Path, **options: object) -> DataSet:
    return load_data(DataConfig.model_validate({"source": str(folder), **options}))


def pictures_in(data: DataSet) -> int:
    return len(data.train) + len(data.validation) + len(data.test)


# labels


@pytest.mark.parametrize("hidden", ["__MACOSX", ".thumbnails"])
def test_a_folder_that_nobody_made_is_no_label(tmp_path: Path, hidden: str) -> None:
    """A zip of macOS gave the model a label `__MACOSX` that it had never seen a picture of."""
    for label in ("cats", "dogs"):
        write_pictures(tmp_path / label, 10)
    plain = loaded(tmp_path)
    write_pictures(tmp_path / hidden / "cats", 1)
    (tmp_path / hidden / "cats" / "._0.png").write_bytes(b"\0\5\x16\7Mac OS X")
    found = loaded(tmp_path)
    assert (found.label_names, found.skipped, found.digest) == (("cats", "dogs"), (), plain.digest)


def test_what_macos_writes_beside_pictures_is_neither_read_nor_skipped(tmp_path: Path) -> None:
    """Of a camera's card the log had a warning for each picture, and metrics.json an entry."""
    write_pictures(tmp_path / "p", 10)
    plain = loaded(tmp_path / "p")
    for index in range(10):
        (tmp_path / "p" / f"._{index:02}.png").write_bytes(b"\0\5\x16\7Mac OS X")
    assert (loaded(tmp_path / "p").skipped, loaded(tmp_path / "p").digest) == ((), plain.digest)


def test_a_hidden_folder_may_hold_the_data_itself(tmp_path: Path) -> None:
    write_pictures(tmp_path / ".cache" / "p", 10)
    assert pictures_in(loaded(tmp_path / ".cache" / "p")) == 10


def test_labels_are_those_of_the_pictures_that_are_kept(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for label in ("cats", "dogs"):
        write_pictures(tmp_path / label, 10)
    (tmp_path / "birds").mkdir()
    (tmp_path / "birds" / "0.png").write_bytes(b"no picture")
    (tmp_path / "loose.png").write_bytes(b"no picture")
    data = loaded(tmp_path)
    assert data.label_names == ("cats", "dogs") and sorted(set(data.train.labels.tolist())) == [0, 1]
    assert f"{tmp_path / 'birds'} is no label: none of its pictures can be used" in caplog.messages


def test_a_label_whose_one_picture_is_held_out_is_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """It keeps its number, but `/generate?label=` would answer with noise, which nobody was told."""
    for label in ("cats", "dogs"):
        write_pictures(tmp_path / label, 10)
    (tmp_path / "eels").mkdir()
    names = [f"{index}.png" for index in range(99)]
    first = min(names, key=lambda name: hashlib.sha256(f"eels/{name}".encode()).digest())
    Image.fromarray(noise((20, 24, 3))).save(tmp_path / "eels" / first)
    data = loaded(tmp_path)
    assert data.label_names == ("cats", "dogs", "eels") and 2 not in data.train.labels
    assert "no training picture has the labels eels: the model will not know them" in caplog.messages


def test_labels_that_all_have_pictures_are_no_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for label in ("cats", "dogs"):
        write_pictures(tmp_path / label, 10)
    loaded(tmp_path)
    assert [record.message for record in caplog.records if record.levelname == "WARNING"] == []


# sizes


def test_a_thin_picture_is_not_enlarged_to_hundreds_of_tiles(tmp_path: Path) -> None:
    """A spacer of 900x1 pixels became 115,200x128, and its 900 tiles were the test split."""
    for index in range(20):
        Image.fromarray(noise((40, 50, 3), index)).save(tmp_path / f"{index}.png")
    plain = loaded(tmp_path, crop=32)
    Image.new("RGB", (900, 1)).save(tmp_path / "spacer.png")
    data = loaded(tmp_path, crop=32)
    assert data.digest == plain.digest
    assert data.skipped == (
        f"{tmp_path / 'spacer.png'}: 900x1 would be enlarged more than 4 times to have 32 pixels a side",
    )
    files = [path for part in split_files(tmp_path, 0.15, 32) for path in part]
    assert len(files) == 20 and tmp_path / "spacer.png" not in files


@pytest.mark.parametrize("shorter_side", [None, 8 * MOST_ENLARGED])
def test_a_picture_may_be_enlarged_four_times_and_no_more(tmp_path: Path, shorter_side: int | None) -> None:
    side = 8 * MOST_ENLARGED
    options = {"grey": False, "smallest_side": 1 if shorter_side else side, "shorter_side": shorter_side}
    Image.fromarray(noise((8, 10, 3))).save(tmp_path / "enough.png")
    assert decode_picture(tmp_path / "enough.png", **options)[0].shape == (3, side, 10 * MOST_ENLARGED)
    Image.fromarray(noise((7, 10, 3))).save(tmp_path / "small.png")
    with pytest.raises(ValueError, match="10x7 would be enlarged more than 4 times to have 32 pixels"):
        decode_picture(tmp_path / "small.png", **options)


def test_a_large_picture_is_read_without_a_warning_of_pillow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It printed two lines about a decompression bomb; here it would raise them."""
    write_pictures(tmp_path / "p", 10)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 20 * 24 - 1)
    data = loaded(tmp_path / "p", crop=16, memory_mib=0)
    assert data.skipped == () and data.train.images[0].shape == (3, 20, 24)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 20 * 24 // 2 - 1)
    with pytest.raises(DataError, match=r"none of the 10 pictures .*png: it has more than 0 megapixels"):
        loaded(tmp_path / "p", crop=16)


def test_a_picture_beyond_pillows_limit_is_skipped_in_our_words(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a photograph of 200 megapixels the log said that it "could be decompression bomb DOS attack"."""
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1024**3 // 12)  # as Pillow has it; the service takes it away
    write_pictures(tmp_path / "p", 10)
    path = tmp_path / "p" / "03.png"
    content = path.read_bytes()
    header = b"IHDR" + struct.pack(">II", 20_000, 10_000) + content[24:29]
    path.write_bytes(content[:12] + header + struct.pack(">I", zlib.crc32(header)) + content[33:])
    assert loaded(tmp_path / "p").skipped == (f"{path}: it has more than 178 megapixels: save it smaller",)


# names


def test_a_name_that_is_no_utf8_is_a_name(tmp_path: Path) -> None:
    write_pictures(tmp_path / "p", 10)
    (tmp_path / "p" / "00.png").rename(tmp_path / "p" / os.fsdecode(b"caf\xe9.png"))
    assert pictures_in(loaded(tmp_path / "p")) == 10


def test_a_label_that_is_no_utf8_is_refused_before_the_training(tmp_path: Path) -> None:
    """The manifest of the bundle is UTF-8."""
    for label in ("cats", "dogs"):
        write_pictures(tmp_path / label, 10)
    (tmp_path / "dogs").rename(tmp_path / os.fsdecode(b"caf\xe9"))
    with pytest.raises(DataError, match="a label, is not UTF-8: rename it"):
        loaded(tmp_path)


@pytest.mark.parametrize("name", [" ", "\u3000"])
def test_a_blank_label_is_refused_before_the_training(tmp_path: Path, name: str) -> None:
    """No bundle may have it, which only the export found."""
    for label in ("cats", name):
        write_pictures(tmp_path / label, 10)
    with pytest.raises(DataError, match=r"the folder .*, a label, has a blank name: rename it"):
        loaded(tmp_path)


def test_names_rank_as_they_always_did() -> None:
    """By their bytes on the disk: else pictures would change from one split to the other between versions."""
    names = ["a/1.png", "ä/ß.jpg", "猫/😀.webp", "caf\udce9.png", *map(str, range(20))]
    keys = [hashlib.sha256(name.encode("utf-8", "surrogateescape")).digest() for name in names]
    assert ranked(names) == sorted(range(len(names)), key=keys.__getitem__)


# links


def test_a_link_to_a_folder_is_that_folder(tmp_path: Path) -> None:
    """A class vanished without a word."""
    for folder in ("elsewhere", "p/cats", "p/dogs"):
        write_pictures(tmp_path / folder, 10)
    (tmp_path / "p" / "birds").symlink_to(tmp_path / "elsewhere")
    data = loaded(tmp_path / "p")
    assert data.label_names == ("birds", "cats", "dogs") and pictures_in(data) == 30


@pytest.mark.parametrize(
    "links", [{"cats/all": "."}, {"cats/more": "dogs", "dogs/more": "cats"}], ids=["above", "ring"]
)
def test_links_in_a_circle_are_refused(tmp_path: Path, links: dict[str, str]) -> None:
    for label in ("cats", "dogs"):
        write_pictures(tmp_path / label, 2)
    for link, target in links.items():
        (tmp_path / link).symlink_to(tmp_path / target)
    with pytest.raises(DataError, match=r"is a link to .*, which holds it: remove the link"):
        picture_files(tmp_path)


def test_links_to_themselves_are_skipped_and_listed(tmp_path: Path) -> None:
    """Each ended the training with an OSError."""
    for label in ("cats", "dogs"):
        write_pictures(tmp_path / label, 10)
    plain = loaded(tmp_path)
    for link in ("cats/x.png", "dogs/more", "ring"):
        (tmp_path / link).symlink_to(tmp_path / link)
    (tmp_path / "cats" / "y.png").write_bytes(b"no picture")
    data = loaded(tmp_path)
    reason = "Too many levels of symbolic links"
    links = [f"{tmp_path / link}: {reason}" for link in ("cats/x.png", "dogs/more", "ring")]
    assert list(data.skipped[:3]) == links and data.skipped[3].startswith(f"{tmp_path / 'cats' / 'y.png'}: ")
    assert (data.label_names, data.digest, len(data.skipped)) == (("cats", "dogs"), plain.digest, 4)


def test_links_that_lead_nowhere_are_skipped_and_listed(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """They vanished without a word, and with the last picture of a folder all labels."""
    for label in ("cats", "dogs"):
        write_pictures(tmp_path / label, 10)
    (tmp_path / "birds").mkdir()
    links = [tmp_path / name for name in ("birds/x.png", "cats/y.JPG", "cats/notes.txt")]
    for link in links:
        link.symlink_to(tmp_path / "gone")
    data = loaded(tmp_path)
    assert data.skipped == tuple(f"{link}: the link leads nowhere" for link in links[:2])
    assert data.label_names == ("cats", "dogs")
    assert f"{tmp_path / 'birds'} is no label: none of its pictures can be used" in caplog.messages


def test_the_first_unreadable_picture_is_one_of_the_folder_that_has_no_other(tmp_path: Path) -> None:
    write_pictures(tmp_path / "train", 4)
    (tmp_path / "test").mkdir()
    for name in ("train/x.png", "test/y.png"):
        (tmp_path / name).write_bytes(b"no picture")
    with pytest.raises(DataError, match=r"in .*test can be decoded: put others there .* the first: .*test/y\.png"):
        loaded(tmp_path)


def test_a_folder_that_cannot_be_listed_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its pictures were left out without a word."""
    write_pictures(tmp_path / "locked", 2)
    listed = os.scandir

    def scandir(folder: Path) -> object:
        if folder.name == "locked":
            raise PermissionError(13, "Permission denied", str(folder))
        return listed(folder)

    monkeypatch.setattr(os, "scandir", scandir)  # root may list everything
    with pytest.raises(DataError, match=r"locked cannot be listed \(Permission denied\)"):
        picture_files(tmp_path)


def test_files_come_in_the_order_of_their_paths(tmp_path: Path) -> None:
    for name in ("b", "a-b", "a", "a/c"):
        (tmp_path / name).mkdir()
        for file in ("2.PNG", "10.jpg", "x.txt"):
            (tmp_path / name / file).touch()
    expected = sorted(path for path in tmp_path.rglob("*") if path.suffix in (".PNG", ".jpg"))
    (tmp_path / ".hidden.png").mkdir()
    os.mkfifo(tmp_path / "pipe.png")  # nor is this a file: reading it would wait for ever
    assert picture_files(tmp_path) == expected and len(expected) == 8


def test_a_label_only_of_the_test_folder_is_refused(tmp_path: Path) -> None:
    for label in ("train/cats", "train/dogs", "test/cats", "test/eels"):
        write_pictures(tmp_path / label, 4)
    with pytest.raises(
        DataError, match="has the label 'eels', which the training pictures lack: add some, or remove it"
    ):
        loaded(tmp_path)


# splits


@pytest.mark.parametrize(
    "names", [("train", "val"), ("Train", "Test"), ("training", "testing"), ("train", "Valid", "dev")]
)
def test_folders_that_are_nearly_a_split_are_no_labels(tmp_path: Path, names: tuple[str, ...]) -> None:
    """A model had the labels train and val, and its test pictures were drawn from both."""
    for name in names:
        for label in ("cats", "dogs"):
            write_pictures(tmp_path / name / label, 4)
    with pytest.raises(DataError, match="which are no labels: name those of the split train and test"):
        loaded(tmp_path)


def test_pictures_beside_train_and_test_are_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for name, count in (("train", 10), ("test", 4), ("valid", 3)):
        write_pictures(tmp_path / name, count)
    with caplog.at_level("INFO"):
        data = loaded(tmp_path)
    assert pictures_in(data) == 14 and len(data.test) == 4
    train, test = tmp_path / "train", tmp_path / "test"
    assert f"training pictures are those of {train}, test pictures those of {test}" in caplog.messages
    assert f"not used: {tmp_path / 'valid' / '00.png'} and 2 more pictures beside train and test" in caplog.messages


def test_a_loose_test_picture_is_no_label(tmp_path: Path) -> None:
    for label in ("train/cats", "train/dogs", "test/cats"):
        write_pictures(tmp_path / label, 4)
    Image.fromarray(noise((20, 24, 3))).save(tmp_path / "test" / "x.png")
    with pytest.raises(DataError, match=r"test/x\.png has no label: move it into the sub-folder of its label"):
        loaded(tmp_path)


def test_an_empty_test_folder_is_named(tmp_path: Path) -> None:
    """It ended in an IndexError."""
    write_pictures(tmp_path / "train", 4)
    (tmp_path / "test").mkdir()
    with pytest.raises(DataError, match=r"test holds no \.png"):
        loaded(tmp_path)


# what is not read


def test_files_that_are_not_read_are_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_pictures(tmp_path / "p", 10)
    for name in ("a.gif", "b.GIF", "c.heic", "notes.txt", "LICENSE", ".DS_Store", ".hidden/d.gif"):
        (tmp_path / "p" / name).parent.mkdir(exist_ok=True)
        (tmp_path / "p" / name).touch()
    loaded(tmp_path / "p")
    assert any(
        message.startswith(f"not read in {tmp_path / 'p'}: 2 .gif, 1 .heic, 1 .txt, 1 without a suffix: save")
        for message in caplog.messages
    )


def test_what_does_not_fit_into_memory_leaves_its_room_to_smaller_pictures() -> None:
    budget = _Budget(10)
    assert [budget.take(size) for size in (8, 3, 2, 1)] == [True, False, True, False]


def test_a_picture_that_goes_during_the_training_is_named(tmp_path: Path) -> None:
    write_pictures(tmp_path / "p", 10)
    train = loaded(tmp_path / "p", crop=16, memory_mib=0).train
    for path in (tmp_path / "p").iterdir():
        path.unlink()
    with pytest.raises(DataError, match=r"png could be read when the training began .*--resume"):
        train.images[0]
