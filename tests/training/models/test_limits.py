"""What no bundle can hold is refused before it is trained."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.training.conftest import DIGITS, tiny_config
from training.compare import compare
from training.config import ConfigError
from training.fit import fit
from training.models.limits import require_apart, require_exportable

WORDS = {
    "side": "autoencoder.downsampling=8",
    "grid": "autoencoder.downsampling=2",
    "dimension": "autoencoder.dimension=%d",
    "codebook": "autoencoder.quantizer.codebook_size=%d",
    "fsq": "autoencoder.quantizer={kind: fsq, levels: [64, 64, %d]}",
    "rows": "prior={vertical_layers: 3, channels: %d}",  # 4 * 256 codes * channels
    "context": "prior={horizontal_layers: 1, channels: %d}",
}
SMALL = (1, 8, 8)


@pytest.mark.parametrize(
    ("name", "fits", "picture", "exceeds", "larger", "said"),
    [
        ("side", None, (1, 8, 4096), None, (1, 8, 4104), "the longer side of the pictures would be 4,104"),
        ("side", None, (3, 4096, 8), None, (3, 4104, 8), "the longer side of the pictures would be 4,104"),
        ("grid", None, (1, 8, 2048), None, (1, 8, 2050), "the longer side of the code grid would be 1,025"),
        ("codebook", 1 << 16, SMALL, (1 << 16) + 1, SMALL, r"size would be 65,537, .*lower .*\.codebook_size"),
        ("fsq", 16, SMALL, 20, SMALL, r"size would be 81,920, and a bundle holds at most 65,536, .*lower .*\.levels"),
        ("dimension", 1 << 16, SMALL, (1 << 16) + 1, SMALL, r"vector would be 65,537, .*lower autoencoder\.dimension"),
        ("rows", 4096, (1, 8, 1024), 4097, (1, 8, 1024), "the rows above a code would be 4,195,328"),
        ("context", 1 << 15, SMALL, (1 << 15) + 1, SMALL, "channels of the prior's context would be 65,538"),
    ],
)
def test_each_limit_of_the_manifest_is_kept_to_its_last_number(
    name: str,
    fits: int | None,
    picture: tuple[int, int, int],
    exceeds: int | None,
    larger: tuple[int, int, int],
    said: str,
) -> None:
    """The numbers of docs/bundle-format.md. FSQ's 81,920 codes were exported and held up the start of the service."""
    word = WORDS[name]
    require_exportable(tiny_config(word if fits is None else word % fits), picture)
    with pytest.raises(ConfigError, match=said):
        require_exportable(tiny_config(word if exceeds is None else word % exceeds), larger)


@pytest.mark.parametrize(
    ("fits", "exceeds", "said"),
    [
        (
            "{kind: fsq, levels: [8, 64]}",
            "{kind: fsq, levels: [8, 65]}",
            r"levels has a number of 65 levels, .*most 64",
        ),
        (
            "{start_step: 1, codebook_size: 64}",
            "{start_step: 1, codebook_size: 65}",
            r"size is 65, .*set autoencoder\.dimension to 2 or more",
        ),
        (
            "{start_step: 1, codebook_size: 64, kind: gradient}",
            "{start_step: 1, codebook_size: 65, kind: gradient}",
            "at most 64 codes",
        ),
    ],
)
def test_codes_that_float32_cannot_tell_apart_are_refused(fits: str, exceeds: str, said: str) -> None:
    """They were trained to the end, and the export then said of a code that "this is no rounding"."""
    require_apart(tiny_config("autoencoder.dimension=1", f"autoencoder.quantizer={fits}").autoencoder)
    finer = tiny_config("autoencoder.dimension=1", f"autoencoder.quantizer={exceeds}")
    with pytest.raises(ConfigError, match=said):
        require_apart(finer.autoencoder)
    require_apart(finer.autoencoder.model_copy(update={"system": "vae"}))
    wider = exceeds.replace("[8, 65]", "[8, 9, 8]")
    require_apart(tiny_config("autoencoder.dimension=2", f"autoencoder.quantizer={wider}").autoencoder)


def test_a_run_of_an_earlier_release_goes_on_though_its_codes_may_not_be_apart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Some of them are, and are exported: the run could neither go on nor be trained with other levels."""
    config = tiny_config("autoencoder.quantizer={kind: fsq, levels: [80, 5]}", "prior=null")
    with pytest.raises(ConfigError, match="too fine for float32"):
        fit(config, tmp_path)
    with monkeypatch.context() as earlier:
        earlier.setattr("training.fit.require_apart", lambda _: None)
        fit(config, tmp_path)
    assert fit(config, tmp_path, resume=True)["data"]


@pytest.mark.parametrize("word", ["autoencoder.system=vae", "prior=null"])
def test_what_has_no_codes_or_no_prior_has_no_limits_of_theirs(word: str) -> None:
    picture = (1, 8, 4104) if "vae" in word else (1, 8, 4096)
    require_exportable(tiny_config(word, "autoencoder.downsampling=8"), picture)


def test_a_run_that_could_not_be_exported_is_not_begun(tmp_path: Path) -> None:
    """It was trained to its end, and the export then ended in a traceback."""
    np.savez(tmp_path / "d.npz", images=np.zeros((8, 4104, 8), np.uint8))
    with pytest.raises(ConfigError, match=r"could not be exported: set a smaller data\.crop"):
        fit(tiny_config(f"data.source={tmp_path / 'd.npz'}", "prior=null"), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_comparison_is_not_begun_where_one_system_could_not_be_trained(tmp_path: Path) -> None:
    """The systems before it would be trained first."""
    config = tiny_config(f"data.source={DIGITS}", "autoencoder.quantizer.levels=[64,64,20]")
    with pytest.raises(ConfigError, match="codebook's size would be 81,920"):
        compare(config, tmp_path / "out", "")
    assert not (tmp_path / "out").exists()
