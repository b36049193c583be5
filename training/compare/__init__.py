"""`compare`: AE, VAE, CVAE and VQ-VAE on one data set, at one budget, measured by the same yardsticks.

In: a config whose autoencoder is the VQ-VAE to compare with, and a folder. Out: one run folder a system, `compare.json`
with every number, and a sheet of samples a system. A second call goes on where the first stopped.

The autoencoders have the same steps and nearly the same number of parameters; only `vqvae-fsq` has fewer, since FSQ has
no codebook and its latents one number a level. The VQ-VAEs have a trained prior on top; so `vae-large` and `cvae-large`
get as many parameters and steps as a VQ-VAE and its prior have together. The latent vectors of a VAE are linear in all
of a picture's codes: of larger pictures each has more parameters than that, which the log says.
"""

from __future__ import annotations

import logging
from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import seed_everything
from torch import Tensor, nn

from training.compare.classifier import CLASSIFIER_FILE, LEAST_SIDE, fit_classifier
from training.compare.yardstick import Fidelity, Yardstick, yardstick_count
from training.config import AutoencoderConfig, ConfigError, RunConfig
from training.data import DataSet, load_data, to_unit
from training.fit import fit, require_own_folder, require_place
from training.models.autoencoders import VAE, VQVAE
from training.models.building import build_autoencoder, build_prior
from training.models.limits import require_apart, require_exportable
from training.report import LIBRARIES
from training.report.evaluation import BOUND, sample_codes
from training.report.sheets import sheet, write_png
from training.runs import AUTOENCODER_FILE, METRICS_FILE, PRIOR_FILE, Run, hold_folder, load_run, read_json, write_json

logger = logging.getLogger(__name__)

COMPARE_FILE = "compare.json"
SAMPLE_BATCH = 250
LATENT_PICTURES = 2000  # of which an AE's latents have their mean and deviation
SHEET_COLUMNS = 10
GUIDANCE = 2.0  # of the priors, for a second measurement of their samples
Sampler = Callable[[Tensor], Tensor]


def compare(config: RunConfig, folder: Path, command: str) -> dict[str, Any]:
    """Train and measure every system; returns the content of compare.json, where `command` says how it was made.

    Raises:
        ConfigError: the config cannot be compared, or the folder is another process's, holds runs of another config or
            cannot be written to.
    """
    config = on_one_device(config)
    _require_whole_pictures(config)
    require_place(folder)
    data = load_data(config.data, begun=(folder / CLASSIFIER_FILE).exists())
    _require_comparable(config, data)
    to_train = variants(config, data)
    require_own_folders(to_train, data, folder)
    hold_folder(folder)  # the classifier and the sheets; `fit` holds the folder of each run
    classifier = fit_classifier(config, data, folder)
    yardstick = Yardstick(config, data, classifier)
    systems, guided = {}, {}
    for name, variant in to_train.items():
        run = _trained(variant, folder / name)
        systems[name] = measure_system(run, data, yardstick, folder / f"samples-{name}.png")
        if run.prior is not None:
            guided[name] = asdict(measure_samples(sampler(run, data, GUIDANCE), yardstick))
    result = {
        "command": command,
        "config": config.model_dump(mode="json"),
        "data": {"digest": data.digest, "test_pictures": len(data.test)},
        "samples": yardstick.count,
        "libraries": {name: version(name) for name in LIBRARIES},
        "classifier": {"test_accuracy": yardstick.accuracy, "parameters": count_parameters(classifier)},
        "real": asdict(yardstick.real),
        "systems": systems,
        "guidance": GUIDANCE,
        "guided": guided,
    }
    write_json(folder / COMPARE_FILE, result)
    return result


def _trained(config: RunConfig, folder: Path) -> Run:
    """Of this folder, where it is finished; the seed is set again for what is drawn from it."""
    if not _is_finished(folder, config):
        fit(config, folder, resume=True)
    seed_everything(config.trainer.seed, verbose=False)
    return load_run(folder)


def _is_finished(folder: Path, config: RunConfig) -> bool:
    """Weights may be gone: whoever reads damaged ones says to delete them and train again."""
    needed = [METRICS_FILE, AUTOENCODER_FILE, *([] if config.prior is None else [PRIOR_FILE])]
    return all((folder / name).exists() for name in needed)


def on_one_device(config: RunConfig) -> RunConfig:
    """What is measured between the trainings runs once, so it cannot be one of several processes."""
    if config.trainer.nodes > 1 or config.trainer.devices not in ("auto", 1):
        raise ConfigError("compare trains on one device: leave trainer.devices and trainer.nodes out")
    return config.model_copy(update={"trainer": config.trainer.model_copy(update={"devices": 1})})


def _require_whole_pictures(config: RunConfig) -> None:
    if config.data.crop is not None:
        raise ConfigError(
            "compare measures whole pictures: leave data.crop out, and bring picture files to one size beforehand"
        )


def _require_comparable(config: RunConfig, data: DataSet) -> None:
    if not data.label_names:
        raise ConfigError("compare needs labels: choose data with labels, such as mnist")
    if min(data.picture[1:]) < LEAST_SIDE:
        raise ConfigError(f"compare needs pictures of {LEAST_SIDE} pixels a side at least: bring larger ones")
    data.require_multiple_of(config.autoencoder.downsampling)
    count, least = yardstick_count(config, data), max(config.compare.neighbours, len(data.label_names)) + 1
    if count < least:
        raise ConfigError(
            f"compare would measure {count} pictures a system, and needs {least} at least, one more than "
            f"compare.neighbours and than labels: raise compare.samples, now {config.compare.samples}, or bring more "
            f"than {len(data.train)} training and {len(data.test)} test pictures"
        )


def require_own_folders(systems: dict[str, RunConfig], data: DataSet, folder: Path) -> None:
    """Runs of an earlier call count only if they are of this configuration and of these pictures."""
    for name, config in systems.items():
        require_own_folder(config, folder / name, resume=True)
        finished = folder / name / METRICS_FILE
        if finished.exists() and not data.is_that_of(read_json(finished)["data"]):
            raise ConfigError(
                f"{folder / name} was trained on other pictures of {config.data.source}: choose another --out"
            )


def variants(config: RunConfig, data: DataSet) -> dict[str, RunConfig]:
    """The systems by name. Every one starts from `config` and differs in what its name says.

    Raises:
        ConfigError: `config` is none to start from, or a bundle could not hold one of them, as `fit` finds too late.
    """
    if config.prior is None or config.autoencoder.system != "vqvae" or config.autoencoder.quantizer.kind != "ema":
        raise ConfigError("compare starts from a vqvae with an ema quantizer and a prior: correct the config")
    vqvae = _parameters(config.autoencoder, data)
    codebook_size = config.autoencoder.quantizer.codebook_size
    prior = count_parameters(build_prior(config.prior, codebook_size, len(data.label_names)))
    systems = {"ae": _single(config, data, "ae", vqvae)}
    for system in ("vae", "cvae"):
        systems[system] = _single(config, data, system, vqvae)
        systems[f"{system}-large"] = _large(config, data, system, vqvae + prior)
    for kind in ("gradient", "ema", "fsq"):
        quantizer = config.autoencoder.quantizer.model_copy(update={"kind": kind})
        systems[f"vqvae-{kind}"] = _with(config, quantizer=quantizer)
    for variant in systems.values():
        require_exportable(variant, data.picture)
        require_apart(variant.autoencoder)
    return {name: variant.model_copy(update={"name": name}) for name, variant in systems.items()}


def _with(config: RunConfig, **autoencoder: object) -> RunConfig:
    return config.model_copy(update={"autoencoder": config.autoencoder.model_copy(update=autoencoder)})


def _single(config: RunConfig, data: DataSet, system: str, parameters: int) -> RunConfig:
    """A system without a prior; its latents are as wide as brings its size nearest to `parameters`."""
    candidates = [_with(config, system=system, dimension=width) for width in range(4, 129, 4)]
    return _nearest(candidates, data, parameters).model_copy(update={"prior": None})


def _large(config: RunConfig, data: DataSet, system: str, parameters: int) -> RunConfig:
    """A system of `parameters` in all, trained for the steps of both stages."""
    widths = range(16, 1025, 8)
    wide = [_with(config, system=system, dimension=16, channels=width, decoder_channels=None) for width in widths]
    trainer = config.trainer
    steps = trainer.autoencoder.steps + trainer.prior.steps
    stage = trainer.autoencoder.model_copy(update={"steps": steps})
    return _nearest(wide, data, parameters).model_copy(
        update={"prior": None, "trainer": trainer.model_copy(update={"autoencoder": stage})},
    )


def _nearest(variants: Sequence[RunConfig], data: DataSet, parameters: int) -> RunConfig:
    """Of variants in the order of their sizes, the one nearest to `parameters`; few of them are built."""

    def size(variant: RunConfig) -> int:
        return _parameters(variant.autoencoder, data)

    above = bisect_left(variants, parameters, key=size)
    best = min(variants[max(0, above - 1) : above + 1], key=lambda variant: abs(size(variant) - parameters))
    if not 0.8 < size(best) / parameters < 1.25:
        system, most = best.autoencoder.system, f"{size(best):,} parameters, not about {parameters:,}"
        logger.warning("%s of these pictures has %s: they are not compared at one budget", system, most)
    return best


def _parameters(config: AutoencoderConfig, data: DataSet) -> int:
    with torch.device("meta"):
        return count_parameters(build_autoencoder(config, data.picture, len(data.label_names)))


def count_parameters(module: nn.Module) -> int:
    """All that training learns: the parameters, and a codebook kept by moving averages."""
    codebooks = (tensor for name, tensor in module.named_buffers() if name == "quantizer.codebook")
    return sum(tensor.numel() for tensor in (*module.parameters(), *codebooks))


def measure_system(run: Run, data: DataSet, yardstick: Yardstick, sheet_path: Path) -> dict[str, Any]:
    """The numbers of one system, and its sheet: a row of ten samples for each label."""
    conditional = run.prior is not None or (isinstance(run.autoencoder, VAE) and run.autoencoder.label_count > 0)
    draw = sampler(run, data)
    fidelity = measure_samples(draw, yardstick, conditional=conditional)
    rows = torch.arange(len(data.label_names)).repeat_interleave(SHEET_COLUMNS)
    write_png(sheet(draw(rows), SHEET_COLUMNS), sheet_path)
    quality, stages = run.metrics.get("quality", {}), run.config.trainer
    codes_a_picture = run.config.grid(data.picture)[0] * run.config.grid(data.picture)[1]
    bits_per_code = quality.get("bits_per_code")
    return {
        "parameters": count_parameters(run.autoencoder),
        "prior_parameters": count_parameters(run.prior) if run.prior else 0,
        "steps": stages.autoencoder.steps,
        "prior_steps": stages.prior.steps if run.prior else 0,
        "mse": run.metrics["test"]["mse"],
        "psnr_db": run.metrics["test"]["psnr_db"],
        **{name: run.metrics["test"].get(name) for name in BOUND},  # a run from before they were measured has fewer
        "perplexity": quality.get("perplexity"),
        "bits_per_code": bits_per_code,
        "bits_per_picture": bits_per_code * codes_a_picture if bits_per_code is not None else None,
        **asdict(fidelity),
        "seconds": sum(run.metrics["seconds"].values()),
    }


def measure_samples(draw: Sampler, yardstick: Yardstick, *, conditional: bool = True) -> Fidelity:
    """As many samples as the yardstick has pictures, with their labels: with each label as often, where some are rare,
    they would not be what the pictures are."""
    samples = torch.cat([draw(part) for part in torch.split(yardstick.labels, SAMPLE_BATCH)])
    return yardstick.measure(samples, yardstick.labels if conditional else None)


def sampler(run: Run, data: DataSet, guidance: float = 1.0) -> Sampler:
    """labels (B,) -> pictures (B,C,H,W) in [0,1]; a system without labels ignores them. `guidance`: of a prior."""
    model, prior = run.autoencoder, run.prior
    if isinstance(model, VAE):
        return lambda labels: model.sample(len(labels), labels)
    if isinstance(model, VQVAE):
        assert prior is not None
        height, width = run.config.grid(data.picture)
        generator = torch.Generator().manual_seed(run.config.trainer.seed)
        return lambda labels: model.decode(sample_codes(prior, labels, height, width, generator, guidance))
    return _gaussian_sampler(model.encoder, model.decoder, data)


@torch.no_grad()
def _gaussian_sampler(encoder: nn.Module, decoder: nn.Module, data: DataSet) -> Callable[[Tensor], Tensor]:
    """An AE has no distribution of its latents: take each as normal, with its mean and deviation on real pictures."""
    assert isinstance(data.train.images, Tensor)
    chosen = torch.randperm(len(data.train), generator=torch.Generator().manual_seed(1))[:LATENT_PICTURES]
    parts = torch.split(data.train.images[chosen], SAMPLE_BATCH)
    latents = torch.cat([encoder(to_unit(part)) for part in parts])  # (N,D,h,w)
    mean, deviation = latents.mean(0), latents.std(0)

    @torch.no_grad()
    def draw(labels: Tensor) -> Tensor:
        made: Tensor = decoder(mean + deviation * torch.randn(len(labels), *mean.shape)).clamp(0, 1)
        return made

    return draw
