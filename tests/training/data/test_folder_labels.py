"""What the log says of the sub-folders of a folder of pictures: those that are labels, and those that are none."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from tests.training.conftest import noise, write_pictures
from training.config import DataConfig
from training.data import DataSet, load_data


def loaded(folder: Path) -> DataSet:
    return load_data(DataConfig(source=str(folder)))


@pytest.mark.parametrize("name", ["0.gif", "0.dcm", "0", "deep/0.tif"])
def test_a_folder_of_files_that_are_not_read_is_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, name: str
) -> None:
    """It vanished without a word, and the labels after it had other numbers."""
    for label in ("cats", "dogs"):
        write_pictures(tmp_path / label, 10)
    (tmp_path / "birds" / name).parent.mkdir(parents=True)
    (tmp_path / "birds" / name).touch()
    (tmp_path / "empty").mkdir()
    (tmp_path / "hidden").mkdir()
    (tmp_path / "hidden" / ".DS_Store").touch()
    assert loaded(tmp_path).label_names == ("cats", "dogs")
    said = [message for message in caplog.messages if "is no label" in message]
    assert said == [f"{tmp_path / 'birds'} is no label: none of its pictures can be used"]


def test_one_usable_folder_of_several_is_no_label_and_the_log_says_so(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write_pictures(tmp_path / "cats", 10)
    assert loaded(tmp_path).label_names == () and "no labels" not in caplog.text
    (tmp_path / "dogs").mkdir()
    (tmp_path / "dogs" / "0.gif").touch()
    assert loaded(tmp_path).label_names == ()
    assert "no labels: of 2 sub-folders only cats has pictures that can be used" in caplog.messages


@pytest.mark.parametrize("inner", ["cats", "train/cats"])
def test_a_folder_around_the_labels_or_the_split_is_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, inner: str
) -> None:
    """As of a zip that was packed with its folder: no label and no word, and test pictures were trained on."""
    write_pictures(tmp_path / "zip" / inner, 10)
    write_pictures(tmp_path / "zip" / inner.replace("train", "test").replace("cats", "dogs"), 10)
    assert loaded(tmp_path).label_names == ()
    first = inner.replace("train", "test").partition("/")[0]
    said = f"{tmp_path / 'zip'}; if its sub-folders, such as {first}, are labels or a split, move them up"
    assert f"no labels: all pictures lie in {said}" in caplog.messages


def test_numbers_whose_order_is_that_of_their_names_are_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for number in range(12):
        write_pictures(tmp_path / "plain" / str(number), 3)
        write_pictures(tmp_path / "padded" / f"{number:02}", 3)
    assert loaded(tmp_path / "padded").label_names == tuple(f"{number:02}" for number in range(12))
    assert "pad the names" not in caplog.text
    assert loaded(tmp_path / "plain").label_names[:5] == ("0", "1", "10", "11", "2")
    assert "label 2 is the folder '10': pad the names with zeros" in caplog.messages


def test_names_that_are_not_all_numbers_need_no_zeros(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for name in ("10", "2", "cats"):
        write_pictures(tmp_path / name, 5)
    loaded(tmp_path)
    assert "pad the names" not in caplog.text


@pytest.mark.parametrize("suffix", ["jfif", "jpe", "JFIF"])
def test_other_suffixes_of_jpeg_are_read(tmp_path: Path, suffix: str) -> None:
    for index in range(10):
        Image.fromarray(noise((20, 24, 3), index)).save(tmp_path / f"{index}.{suffix}", "JPEG")
    data = loaded(tmp_path)
    assert len(data.train) + len(data.validation) + len(data.test) == 10 and data.skipped == ()


def test_the_count_of_files_that_are_not_read_is_one_short_line(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Names such as `scan.0001` have a suffix each."""
    write_pictures(tmp_path / "p", 10)
    for index in range(30):
        (tmp_path / "p" / f"scan.{index:04}").touch()
    loaded(tmp_path / "p")
    said = [message for message in caplog.messages if message.startswith("not read")]
    assert len(said) == 1 and "1 .0009, 20 of other suffixes: save" in said[0]
