"""The configuration: overrides, defaults, and messages that name the key."""

from __future__ import annotations

from inspect import signature
from pathlib import Path

import pytest
from torch import nn

from training.__main__ import _options
from training.config import (
    AutoencoderConfig,
    ConfigError,
    PriorConfig,
    QuantizerConfig,
    RunConfig,
    _Section,
    differing_keys,
    load_config,
    parse_config,
)
from training.models.autoencoders import VQVAE
from training.models.networks import Decoder, Encoder
from training.models.prior import PixelCNN
from training.models.quantizers import VectorQuantizer

CONFIGS = sorted((Path(__file__).parents[2] / "training" / "configs").glob("*.yaml"))


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_shipped_config_is_valid_and_named_after_its_file(path: Path) -> None:
    assert load_config(path).name == path.stem


def test_an_empty_file_is_the_defaults(tmp_path: Path) -> None:
    path = tmp_path / "empty.yaml"
    path.write_text("")
    assert load_config(path) == RunConfig()


@pytest.mark.parametrize(
    ("module", "section", "count"),
    [
        (Encoder, AutoencoderConfig(), 3),
        (Decoder, AutoencoderConfig(), 3),
        (VQVAE, AutoencoderConfig(), 1),
        (VectorQuantizer, QuantizerConfig(), 6),
        (PixelCNN, PriorConfig(), 4),
    ],
)
def test_a_module_has_the_defaults_of_its_section(module: type[nn.Module], section: _Section, count: int) -> None:
    """They were written in both."""
    options = signature(module).parameters.values()
    found = {one.name: one.default for one in options if one.default is not one.empty and hasattr(section, one.name)}
    assert len(found) == count
    assert found == {name: getattr(section, name) for name in found}


def test_overrides_are_yaml_values_of_dotted_keys(tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_text("trainer: {seed: 5}\n")
    overrides = ["trainer.autoencoder.learning_rate=3e-4", "autoencoder.quantizer.levels=[4, 4]", "prior=null"]
    config = load_config(path, overrides)
    assert config.trainer.seed == 5 and config.trainer.autoencoder.learning_rate == 3e-4
    assert config.autoencoder.quantizer.levels == (4, 4) and config.prior is None


def test_a_resolved_config_reads_back_as_itself() -> None:
    config = parse_config({"data": {"crop": 64}, "trainer": {"seed": 3}})
    assert parse_config(config.model_dump(mode="json")) == config


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("trainr.seed=1", "trainr is unknown; the nearest name is trainer"),
        ("trainer.autoencoder.learning_rat=1", "nearest name is trainer.autoencoder.learning_rate"),
        ("prior.chanels=4", "nearest name is prior.channels"),
        ("trainer.seed=many", "trainer.seed: .*integer.*'many'"),
        ("autoencoder.downsampling=3", "autoencoder.downsampling: .*2, 4 or 8"),
        ("data.validation_fraction=1.5", "data.validation_fraction: .*less than 1"),
        ("trainer.seed", "is not section.key=value"),
        (".seed=2", "is not section.key=value"),
        ("trainer..seed=2", "is not section.key=value"),
        ("data.source.path=x", "source has no keys of its own"),
        ("data.source=[", "the value is not YAML"),
        ("name=2024-31-12", "the value is not YAML: month must be in 1..12"),
        (f"trainer.seed={'1' * 5000}", "the value is not YAML: Exceeds the limit"),
        ("trainer.prior.steps=3000000000", "trainer.prior.steps: .*less than 2147483648"),
        ("trainer.prior.batch_size=70000", "trainer.prior.batch_size: .*less than or equal to 65536"),
        ("autoencoder.quantizer.start_step=50", "start_step 50 must be below"),
        ("autoencoder.quantizer.levels=[8,1]", r"autoencoder.quantizer.levels.1: .*greater than 1"),
        ("trainer.precision=bf16-true", "trainer.precision: .*'32-true', 'bf16-mixed' or '16-mixed'"),
        ("trainer.seed=5000000000", "trainer.seed: .*less than 4294967296"),
        ("autoencoder.channels=1", "autoencoder.channels: .*greater than or equal to 2"),
        ("trainer={seed: 1, seed: 2}", "seed stands there twice"),
        ("autoencoder.quantizer.levels=[]", "autoencoder.quantizer.levels: .*at least 1 item"),
        ("autoencoder.quantizer.levels=8,8", r"levels: Input should be a list, such as \[8, 8, 8\], got '8,8'"),
        ("seed=2", "seed is unknown; the nearest name is trainer.seed$"),
        ("autoencoder.codebook_size=8", "nearest name is autoencoder.quantizer.codebook_size$"),
        (
            "trainer.steps=8",
            "nearest names are trainer.autoencoder.steps, trainer.prior.steps, compare.classifier.steps$",
        ),
        ("prior=no", "prior is a section: give its keys, such as prior.channels, or null for none; got False"),
        ("data=5", "data is a section: give its keys, such as data.source; got 5"),
        (
            "autoencoder.quantizer.restart_every=yes",
            "^autoencoder.quantizer.restart_every: a number, not yes or no, got True",
        ),
        ("autoencoder.quantizer.levels=[8, true]", "quantizer.levels: a number, not yes or no"),
        ("trainer.devices=on", "^trainer.devices: a number, not yes or no, got True$"),
        ("data.crop=no", "data.crop: a number, not yes or no, got False"),
        ("trainer.prior.learning_rate=true", "trainer.prior.learning_rate: a number, not yes or no"),
        ("autoencoder.quantizer.restart_every=3000000000", "restart_every: .*less than 2147483648"),
        ("trainer.devices=two", r"^trainer.devices: .*integer.*'two'; trainer.devices: .*'auto', got 'two'$"),
    ],
)
def test_a_wrong_override_is_refused_with_the_fix(override: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_config(CONFIGS[-1].with_name("tiny.yaml"), ["data.source=x", override])


def test_overrides_may_stand_before_between_and_after_the_options() -> None:
    """Those of a second place were "unrecognized arguments"."""
    words = ["trainer.seed=2", "--config", "c.yaml", "prior=null", "--out", "runs/x", "trainer.seed=3"]
    options = _options(["fit", *words])
    assert options.overrides == ["trainer.seed=2", "prior=null", "trainer.seed=3"]
    assert (options.config, options.out) == (Path("c.yaml"), Path("runs/x"))


@pytest.mark.parametrize(
    "words",
    [
        ("fit", "--config", "c.yaml", "--steps=5"),
        ("fit", "a=1", "--config", "c.yaml", "seed"),
        ("evaluate", "--run", "r", "trainer.seed=3"),
    ],
)
def test_what_is_no_override_is_still_refused(words: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        _options(list(words))
    assert f"unrecognized arguments: {words[-1]}\n" in capsys.readouterr().err


@pytest.mark.parametrize("without", ["autoencoder.system=ae", "autoencoder.quantizer.kind=fsq"])
def test_what_has_no_codebook_to_start_needs_no_step_for_it(without: str) -> None:
    tiny = CONFIGS[-1].with_name("tiny.yaml")
    config = load_config(tiny, [without, "trainer.autoencoder.steps=5"])
    assert config.trainer.autoencoder.steps < config.autoencoder.quantizer.start_step


def test_a_section_that_is_written_twice_is_refused(tmp_path: Path) -> None:
    """Its first half was left out without a word."""
    path = tmp_path / "c.yaml"
    path.write_text("trainer: {seed: 5}\nprior: {channels: 8}\ntrainer: {devices: 1}\n")
    with pytest.raises(ConfigError, match=r"trainer stands there twice(.|\n)*line 3"):
        load_config(path)


def test_a_key_may_replace_one_that_is_merged_in(tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_text("trainer:\n  autoencoder: &stage {steps: 500, batch_size: 8}\n  prior: {<<: *stage, steps: 900}\n")
    stages = load_config(path).trainer
    assert (stages.autoencoder.steps, stages.prior.steps, stages.prior.batch_size) == (500, 900, 8)


def test_an_empty_section_is_its_defaults(tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_text("data:\ntrainer:\nautoencoder:\n  quantizer:\n")
    assert load_config(path) == RunConfig()
    assert load_config(path, ["trainer.seed=5"]).trainer.seed == 5
    path.write_text("prior:\n")
    assert load_config(path).prior is None
    with pytest.raises(ConfigError, match="prior has no keys of its own"):
        load_config(path, ["prior.channels=4"])


@pytest.mark.parametrize("source", ["bilder \U0001f600", "a: b", "7", "~", "x\x85y"])
def test_a_data_source_is_taken_as_it_stands(source: str) -> None:
    """Written as YAML, an emoji became two halves of one, and the folder was not found."""
    tiny = CONFIGS[-1].with_name("tiny.yaml")
    assert load_config(tiny, [], source).data.source == source


@pytest.mark.parametrize("content", [b"a: [", b"- 1\n", b"\xff\xfe\x00"])
def test_a_file_that_is_no_yaml_mapping_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "c.yaml"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=r"c\.yaml"):
        load_config(path)


def test_a_file_that_is_not_there_is_told_in_one_line(tmp_path: Path) -> None:
    """It was said not to be YAML, and named twice."""
    with pytest.raises(ConfigError) as refused:
        load_config(tmp_path / "c.yaml")
    expected = "c.yaml cannot be read (No such file or directory): --config is a YAML file, such as "
    assert str(refused.value) == f"{tmp_path}/{expected}training/configs/mnist.yaml"


def test_an_override_changes_its_own_section_only(tmp_path: Path) -> None:
    """Two sections that a YAML anchor makes alike are one object for PyYAML."""
    path = tmp_path / "anchor.yaml"
    path.write_text("trainer:\n  autoencoder: &stage {steps: 900, batch_size: 8}\n  prior: *stage\n")
    trainer = load_config(path, ["trainer.prior.batch_size=4"]).trainer
    assert (trainer.autoencoder.batch_size, trainer.prior.batch_size) == (8, 4)
    assert (trainer.autoencoder.steps, trainer.prior.steps) == (900, 900)


def test_yaml_with_a_date_that_there_is_not_is_refused(tmp_path: Path) -> None:
    """It was a traceback."""
    (tmp_path / "date.yaml").write_text("data: {licence: 2023-02-30}")
    with pytest.raises(ConfigError, match=r"date\.yaml cannot be read as YAML: day is out of range"):
        load_config(tmp_path / "date.yaml")


def test_yaml_without_an_end_of_brackets_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "deep.yaml"
    path.write_text("data: " + "[" * 5000)
    with pytest.raises(ConfigError, match="cannot be read as YAML"):
        load_config(path)
    path.write_text("")
    with pytest.raises(ConfigError, match="the value is not YAML"):
        load_config(path, ["data.source=" + "[" * 5000])


def test_what_differs_between_two_runs_is_named_by_its_keys() -> None:
    """Where the pictures lie is none of it: that they are the same, their digest says. Nor is the text of their
    licence, which a release changed in a shipped configuration: its runs could not go on."""
    one = parse_config({"data": {"source": "a", "root": "b", "licence": "c"}})
    other = {"data": {"source": "c", "crop": 8}, "autoencoder": {"quantizer": {"levels": [4]}}, "prior": None}
    assert differing_keys(one, parse_config({})) == []
    assert differing_keys(one, parse_config(other)) == [
        "data.crop",
        "autoencoder.quantizer.levels",
        *(f"prior.{key}" for key in PriorConfig.model_fields),
    ]
