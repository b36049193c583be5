"""The configuration of a run: one YAML file, checked, with the default of every key of a run.

In: a YAML file and `section.key=value` overrides. Out: a `RunConfig`, or a `ConfigError` that names the key and, for an
unknown one, the nearest valid name.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, ValidationInfo, field_validator, model_validator
from pydantic_core import PydanticCustomError

from training.config_faults import explain
from training.errors import TrainingError


class ConfigError(TrainingError):
    """The configuration is not valid; the message names the key and says what to write instead."""


def _kinds(annotation: Any) -> set[Any]:
    """The annotation, what it is a union or a tuple of, and so on."""
    return {annotation}.union(*map(_kinds, get_args(annotation)))


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _empty_sections_are_the_defaults(cls, values: Any) -> Any:
        """`trainer:` with nothing below it is null in YAML."""
        if not isinstance(values, dict):
            return values
        return {name: value for name, value in values.items() if value is not None or not cls._is_section(name)}

    @field_validator("*", mode="before")
    @classmethod
    def _yes_is_no_number(cls, value: Any, info: ValidationInfo) -> Any:
        """`restart_every: yes` was a restart at each step."""
        given = value if isinstance(value, list | tuple) else [value]
        kinds = _kinds(cls.model_fields[info.field_name or ""].annotation)
        if any(isinstance(one, bool) for one in given) and not kinds.isdisjoint((int, float)):
            raise PydanticCustomError("yes_or_no", "a number, not yes or no")
        return value

    @classmethod
    def _is_section(cls, name: str) -> bool:
        annotation = cls.model_fields[name].annotation if name in cls.model_fields else None
        return isinstance(annotation, type) and issubclass(annotation, _Section)


Downsampling = Literal[2, 4, 8]


class DataConfig(_Section):
    """Where the pictures come from. `source` is a path, or mnist, fashion_mnist or cifar10."""

    source: str = "mnist"
    root: str = "data"  # where named data sets lie, and are downloaded to
    crop: int | None = Field(default=None, gt=0)  # side of random training crops, in pixels; None: whole pictures
    flip: bool = False  # mirror half of the training pictures
    grey: bool = False  # picture files become one channel
    shorter_side: int | None = Field(default=None, gt=0)  # scale picture files to this shorter side, in pixels
    validation_fraction: float = Field(default=0.02, gt=0, lt=1)  # of all pictures but those of a test split of its own
    test_fraction: float = Field(default=0.15, gt=0, lt=1)  # where the source has no test split of its own
    # With crop, picture files decoded beyond this are decoded again at each use; the tiles of validation and test stay
    # in memory beside it. Without crop all pictures do.
    memory_mib: int = Field(default=4096, ge=0)
    licence: str | None = None  # None: that of the named data set


class QuantizerConfig(_Section):
    """The codebook of `vqvae`: by moving averages (ema), by the VQ loss (gradient), or a fixed grid (fsq)."""

    kind: Literal["ema", "gradient", "fsq"] = "ema"
    codebook_size: int = Field(default=512, gt=1)  # K; not for fsq, whose K is the product of its levels
    commitment_cost: float = Field(default=0.25, ge=0)  # beta, eq. 3 of arXiv:1711.00937
    rate_weight: float = Field(default=0.0, ge=0)  # lambda of the entropy-constrained assignment
    usage_decay: float = Field(default=0.99, gt=0, lt=1)  # gamma, appendix A.1 of arXiv:1711.00937
    start_step: int = Field(default=200, ge=0)  # steps before the codebook starts from the encoder's latents
    restart_every: int = Field(default=50, ge=0, lt=1 << 31)  # steps; 0: no restarts
    restart_below: float = Field(default=0.03, ge=0, lt=1)  # of the mean count since the last look
    restart_until: float = Field(default=0.75, ge=0, le=1)  # of the steps; a code restarted later could not settle
    levels: tuple[Annotated[int, Field(gt=1)], ...] = Field(default=(8, 8, 8), min_length=1)  # fsq only
    usage_weight: float = Field(default=0.0, ge=0)  # of the entropy of a batch's codes, in nats; fsq only
    context_rate_weight: float = Field(default=0.0, ge=0)  # of the nats of a code after those before it; fsq only


OF_CODEBOOK = (  # keys that fsq does not read
    "codebook_size",
    "commitment_cost",
    "rate_weight",
    "usage_decay",
    "start_step",
    "restart_every",
    "restart_below",
    "restart_until",
)
OF_GRID = ("levels", "usage_weight", "context_rate_weight")  # keys that only fsq reads


class AutoencoderConfig(_Section):
    """Encoder and decoder, and which of the systems of `training.models.autoencoders` is made of them."""

    system: Literal["ae", "vae", "cvae", "vqvae"] = "vqvae"
    channels: int = Field(default=128, ge=2)  # of the encoder's last layers; those before have 32 at least
    decoder_channels: int | None = Field(default=None, ge=2)  # None: as many as the encoder
    residual_blocks: int = Field(
        default=2, ge=0, le=5
    )  # with more, a code would see beyond service.inference.windows.MARGIN
    downsampling: Downsampling = 4
    dimension: int = Field(default=64, gt=0)  # D, channels of the latents; fsq has as many as it has levels
    latent_dimension: int = Field(default=32, gt=0)  # d, size of the latent vector of vae and cvae
    data_variance: float = Field(default=0.1, gt=0)  # of the pixels on [0,1]; scales the reconstruction term of vqvae
    quantizer: QuantizerConfig = QuantizerConfig()


class PriorConfig(_Section):
    """The PixelCNN over the codes (arXiv:1606.05328): C, the depth of both stacks, and the width before the logits."""

    channels: int = Field(default=64, gt=0)
    vertical_layers: int = Field(default=6, gt=0)
    horizontal_layers: int = Field(default=3, gt=0)
    head_channels: int = Field(default=128, gt=0)
    label_dropout: float = Field(default=0.1, ge=0, lt=1)  # part of the training codes whose label is hidden


class StageConfig(_Section):
    """AdamW with linear warm-up and cosine decay to zero over `steps`."""

    steps: int = Field(default=8000, gt=0, lt=1 << 31)
    batch_size: int = Field(default=128, gt=0, le=1 << 16)  # over all processes
    learning_rate: float = Field(default=1e-3, gt=0)
    warmup_steps: int = Field(default=100, ge=0)  # a stage of no more steps than these ends in its warm-up
    weight_decay: float = Field(default=0.0, ge=0)
    gradient_clip: float = Field(default=1.0, ge=0)  # largest norm of the gradient; 0: no clipping
    validate_every: int = Field(default=500, gt=0)  # steps between validations; a checkpoint follows each


class TrainerConfig(_Section):
    """What both stages share, and the steps of each."""

    seed: int = Field(default=1, ge=0, lt=2**32)
    accelerator: str = "auto"  # Lightning's accelerator, devices, nodes and strategy
    devices: int | Literal["auto"] = "auto"
    nodes: int = Field(default=1, gt=0)
    strategy: str = "auto"
    precision: Literal["32-true", "bf16-mixed", "16-mixed"] = "32-true"  # of the autoencoder; the prior's is 32-true
    compile: bool = False  # torch.compile of what a step computes; needs a C++ compiler, pays off in long runs
    pin_memory: bool = True  # batches in page-locked memory, where the device is a GPU
    log_every: int = Field(default=50, gt=0)  # steps between log lines and between looks for a NaN
    sample_every: int = Field(
        default=1, ge=0
    )  # validations between sheets of samples in the log; 0: none before the end
    autoencoder: StageConfig = StageConfig()
    prior: StageConfig = StageConfig()


class CompareConfig(_Section):
    """What `compare` needs beyond the runs of the systems it compares."""

    samples: int = Field(default=5000, gt=0)  # drawn from each system, and taken of the real pictures
    neighbours: int = Field(default=3, gt=0)  # k of the manifolds of precision and recall
    classifier: StageConfig = StageConfig(steps=2000, validate_every=1000)


class RunConfig(_Section):
    """Everything that `fit` needs beside the code and the data."""

    name: str = Field(default="run", pattern=r"^[a-z0-9][a-z0-9._-]{0,63}$")
    data: DataConfig = DataConfig()
    autoencoder: AutoencoderConfig = AutoencoderConfig()
    prior: PriorConfig | None = PriorConfig()  # null: the autoencoder alone
    trainer: TrainerConfig = TrainerConfig()
    compare: CompareConfig = CompareConfig()

    @model_validator(mode="after")
    def _codebook_is_trained(self) -> RunConfig:
        quantizer, steps = self.autoencoder.quantizer, self.trainer.autoencoder.steps
        start = quantizer.start_step
        if self.autoencoder.system == "vqvae" and quantizer.kind != "fsq" and start >= steps:
            raise ValueError(
                f"autoencoder.quantizer.start_step {start} must be below trainer.autoencoder.steps {steps}"
            )
        return self

    def grid(self, picture: tuple[int, int, int]) -> tuple[int, int]:
        """(h, w) of the codes of a picture of (C, H, W)."""
        return picture[1] // self.autoencoder.downsampling, picture[2] // self.autoencoder.downsampling


class _UniqueKeys(yaml.SafeLoader):
    """Of two equal keys PyYAML keeps the last: a section that is written twice would lose its first half."""

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        node = super().compose_mapping_node(anchor)
        seen: set[str] = set()
        for key, _ in node.value:
            if str(key.value) in seen:
                raise yaml.composer.ComposerError(None, None, f"{key.value} stands there twice", key.start_mark)
            seen.add(str(key.value))
        return node


def load_config(path: Path, overrides: Iterable[str] = (), source: str | None = None) -> RunConfig:
    """Read a YAML file, apply `section.key=value` overrides (values are YAML too) and check the result.

    `source` is data.source as it stands, which may be no YAML.

    Raises:
        ConfigError: the file cannot be read, is no YAML, or a key or value is wrong; the message says which.
    """
    try:
        values = yaml.load(path.read_text(encoding="utf-8"), _UniqueKeys) or {}  # noqa: S506 - a safe loader
    except OSError as error:
        raise ConfigError(
            f"{path} cannot be read ({error.strerror}): --config is a YAML file, such as training/configs/mnist.yaml"
        ) from error
    except (ValueError, yaml.YAMLError, RecursionError) as error:  # as 2024-31-12, which looks like a date
        raise ConfigError(f"{path} cannot be read as YAML: {error}") from error
    if not isinstance(values, dict):
        raise ConfigError(f"{path} is not a mapping of sections")
    for override in overrides:
        _apply(values, override)
    if source is not None:
        _set(values, ["data"], "source", source, f"--data {source}")
    return parse_config(values)


def parse_config(values: Mapping[str, Any]) -> RunConfig:
    """Nested sections as YAML or JSON have them, checked; what is missing has its default.

    Raises:
        ConfigError: a key is unknown or a value is wrong; the message names every one.
    """
    try:
        return RunConfig.model_validate(values)
    except ValidationError as error:
        raise ConfigError("; ".join(explain(RunConfig, problem) for problem in error.errors())) from error


# which change no training: data may move, as the digest tells whether it is the same, and its licence be told better
NOT_OF_THE_TRAINING = ("data.source", "data.root", "data.licence")


def differing_keys(one: RunConfig, other: RunConfig) -> list[str]:
    """The dotted keys in which the training of two runs differs."""
    values, others = _by_key(one.model_dump()), _by_key(other.model_dump())
    keys = dict.fromkeys((*values, *others))
    return [key for key in keys if key not in NOT_OF_THE_TRAINING and values.get(key) != others.get(key)]


def _by_key(values: Mapping[str, Any], above: str = "") -> dict[str, Any]:
    """Nested sections -> values by dotted key."""
    flat: dict[str, Any] = {}
    for name, value in values.items():
        flat |= _by_key(value, f"{above}{name}.") if isinstance(value, dict) else {above + name: value}
    return flat


def _apply(values: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    *sections, last = key.split(".")
    if not equals or not all((*sections, last)):
        raise ConfigError(f"{override!r} is not section.key=value, for example trainer.seed=2")
    try:
        value = yaml.load(text, _UniqueKeys)  # noqa: S506 - a safe loader
    except (ValueError, yaml.YAMLError, RecursionError) as error:
        raise ConfigError(f"{override!r}: the value is not YAML: {error}") from error
    _set(values, sections, last, value, override)


def _set(values: dict[str, Any], sections: Iterable[str], last: str, value: object, given: str) -> None:
    for section in sections:
        if values.get(section) is None and section != "prior":  # null is a value of that one: no prior
            values[section] = {}
        inner = values.setdefault(section, {})
        if not isinstance(inner, dict):
            raise ConfigError(f"{given!r}: {section} has no keys of its own")
        values[section] = dict(inner)  # a copy: a YAML anchor may have put `inner` into other sections too
        values = values[section]
    values[last] = value
