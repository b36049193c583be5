"""Settings of the data that would be ignored, or would mean another folder, are refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from export.build import build_bundle
from tests.training.conftest import DIGITS, TINY, copied, noise, numbered, tiny_config, write_pictures
from training.__main__ import main
from training.config import DataConfig
from training.data import DataError, licence_of, load_data
from training.data.dataset import Source, TooFewError, split_source
from training.fit import fit
from training.report import evaluate
from training.runs import CONFIG_FILE, read_json, write_json

EMPTY = "data.source, or --data, is empty: name a folder, a file or one of mnist"


@pytest.mark.parametrize("setting", [{"grey": True}, {"shorter_side": 16}])
@pytest.mark.parametrize("kind", ["npz", "idx", "named"])
def test_settings_of_picture_files_are_refused_for_arrays(tmp_path: Path, kind: str, setting: dict[str, int]) -> None:
    """They were ignored without a word. Nothing is downloaded before."""
    np.savez(tmp_path / "d.npz", images=noise((20, 8, 8, 3)))
    source = {"npz": str(tmp_path / "d.npz"), "idx": str(DIGITS), "named": "mnist"}[kind]
    config = DataConfig.model_validate({"source": source, "root": str(tmp_path / "none"), **setting})
    with pytest.raises(DataError, match=r"data\.grey and data\.shorter_side are for picture files; convert the arrays"):
        load_data(config)


def test_a_shorter_side_below_the_crop_is_refused(tmp_path: Path) -> None:
    """It was the crop without a word."""
    write_pictures(tmp_path / "p", 10)
    config = DataConfig(source=str(tmp_path / "p"), crop=16, shorter_side=15)
    with pytest.raises(DataError, match=r"shorter_side 15 is below data\.crop 16, .*: make it data\.crop at least, or"):
        load_data(config)
    assert load_data(config, begun=True).digest == load_data(config.model_copy(update={"shorter_side": 16})).digest


def test_a_run_that_ignored_a_setting_can_still_go_on(tiny_run: Path, tmp_path: Path) -> None:
    run = copied(tiny_run, tmp_path / "run")
    config = read_json(run / CONFIG_FILE)
    config["data"]["grey"] = True
    write_json(run / CONFIG_FILE, config)
    evaluate(run)
    fit(tiny_config("data.grey=true"), run, resume=True)
    assert build_bundle(run, tmp_path / "bundle").manifest.name == "tiny"


def test_a_run_that_failed_before_its_first_checkpoint_can_still_be_told(tmp_path: Path) -> None:
    """The ignored settings of a second attempt, in the folder of the first, were taken without a word."""
    write_json(tmp_path / CONFIG_FILE, tiny_config().model_dump(mode="json"))
    with pytest.raises(DataError, match="are for picture files"):
        fit(tiny_config("data.grey=true"), tmp_path)


def test_a_comparison_in_an_empty_folder_is_a_new_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """It trained the classifier, and then its first run was refused."""
    words = ["compare", "--config", str(TINY), "--data", str(DIGITS), "--out", str(tmp_path), "data.grey=true"]
    assert main(words) == 2
    assert "error: data.grey and data.shorter_side are for picture files" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_an_empty_source_is_no_folder(
    tiny_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """It was the current folder, or, as --data, the source of the config."""
    write_pictures(tmp_path / "here", 10)
    monkeypatch.chdir(tmp_path / "here")
    with pytest.raises(DataError, match=EMPTY):
        fit(tiny_config("data.source=''"), tmp_path / "run")
    for words in (
        ["fit", "--config", str(TINY), "--data", "", "--out", str(tmp_path / "run")],
        ["compare", "--config", str(TINY), "--data", "", "--out", str(tmp_path / "run")],
        ["evaluate", "--run", str(tiny_run), "--data", ""],
    ):
        assert main(words) == 2
        assert EMPTY in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("option", ["--out", "--run", "--docs"])
def test_a_variable_of_the_shell_that_is_not_set_is_no_folder(capsys: pytest.CaptureFixture[str], option: str) -> None:
    """The current folder was."""
    job = ["evaluate"] if option == "--run" else ["compare", "--config", str(TINY)]
    with pytest.raises(SystemExit):
        main([*job, option, ""])
    assert f"argument {option}: it is empty: name a folder" in capsys.readouterr().err


def test_a_folder_with_the_name_of_a_data_set_has_not_its_licence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Own pictures in a folder `mnist`, which are read as such, went out under the licence of MNIST."""
    monkeypatch.chdir(tmp_path)
    config = DataConfig(source="mnist")
    assert licence_of(config).startswith("MNIST")
    write_pictures(tmp_path / "mnist", 10)
    assert len(load_data(config).train) == 7
    assert licence_of(config) == "unknown: set data.licence in the config"


@pytest.mark.parametrize(
    ("count", "fractions", "own_test", "message"),
    [
        (50, (0.02, 0.99), False, r" 51 are held out, by .*_fraction=0\.02 and .*_fraction=0\.99, .* or lower these$"),
        (50, (0.99, 0.15), True, r" 50 are held out, by data\.validation_fraction=0\.99, and one .* or lower these$"),
        (2, (0.02, 0.15), False, r", 2: 3 are the fewest, one each for training, validation, test\. Add .*source$"),
        (1, (0.02, 0.15), True, r", 1: 2 are the fewest, one each for training, validation\. Add .*source$"),
    ],
)
def test_fractions_are_named_where_they_hold_out_too_many(
    count: int, fractions: tuple[float, float], own_test: bool, message: str
) -> None:
    """The advice was to add pictures, of which the same share would be held out; or, of two pictures, to lower
    fractions that hold out one each at least."""
    source = Source(numbered(count), [str(index) for index in range(count)], numbered(7) if own_test else None, ())
    with pytest.raises(TooFewError, match=message):
        split_source(source, *fractions)
