"""The prior's graphs against PyTorch and against the naive sampler, bit for bit, in every configuration."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from numpy.typing import NDArray
from onnx.reference import ReferenceEvaluator

from export.graphs.prior_graphs import PriorGraphWriter
from export.reference_sampler import Codes, Controls, draw, sample
from export.sessions import Sessions
from export.verify_prior import pixel_by_pixel_logits, sample_rows
from service.bundle.fields import GraphName
from tests.export.conftest import LABELS, TABLE, WIDTH, K
from training.models.prior import PixelCNN

Models = dict[GraphName, onnx.ModelProto]
LEVELS = (ort.GraphOptimizationLevel.ORT_DISABLE_ALL, ort.GraphOptimizationLevel.ORT_ENABLE_ALL)
CONFIGURATIONS = [(threads, level) for threads in (1, 2) for level in LEVELS]


def sessions(models: Models, threads: int = 1, level: ort.GraphOptimizationLevel = LEVELS[1]) -> Sessions:
    options = ort.SessionOptions()
    options.intra_op_num_threads, options.graph_optimization_level = threads, level
    providers = ["CPUExecutionProvider"]
    return Sessions(
        {n: ort.InferenceSession(m.SerializeToString(), options, providers=providers) for n, m in models.items()}
    )


def inputs(batch: int, height: int = 5, width: int = WIDTH) -> tuple[Codes, Codes, NDArray[np.float32]]:
    random = np.random.default_rng(batch)
    codes, labels = random.integers(0, K, (batch, height, width)), random.integers(0, LABELS + 1, batch)
    uniforms = (random.integers(0, 1 << 24, (batch, height, width)) / (1 << 24)).astype(np.float32)
    return codes, labels, uniforms


@torch.no_grad()
def torch_logits(prior: PixelCNN, codes: Codes, labels: Codes) -> NDArray[np.int32]:
    logits: NDArray[np.int32] = prior(torch.from_numpy(codes), torch.from_numpy(labels)).numpy().astype(np.int32)
    return logits


@pytest.mark.parametrize(("threads", "level"), CONFIGURATIONS)
@pytest.mark.parametrize("batch", [1, 7, 64])
def test_logits_are_bit_equal(
    prior: PixelCNN, models: Models, batch: int, threads: int, level: ort.GraphOptimizationLevel
) -> None:
    codes, labels, _ = inputs(batch)
    found = sessions(models, threads, level).run("prior", codes=codes, labels=labels)[0]
    assert np.array_equal(found, torch_logits(prior, codes, labels))


def test_the_reference_evaluator_of_onnx_agrees(prior: PixelCNN, models: Models) -> None:
    codes, labels, _ = inputs(3)
    (found,) = ReferenceEvaluator(models["prior"]).run(None, {"codes": codes, "labels": labels})
    assert np.array_equal(found, torch_logits(prior, codes, labels))


@pytest.mark.parametrize("width", [1, 4, WIDTH, 9])
def test_pixel_by_pixel_is_the_whole_grid(prior: PixelCNN, models: Models, width: int) -> None:
    """Tiles at the edge of a picture are narrower, so the decoder's graphs take any width."""
    codes, labels, _ = inputs(5, 4, width)
    steps = list(pixel_by_pixel_logits(sessions(models), codes, labels))
    expected = torch_logits(prior, codes, labels)
    assert np.array_equal(np.stack(steps, axis=1).reshape(expected.shape), expected)


def expected_samples(prior: PixelCNN, batch: int, controls: Controls) -> Codes:
    _, labels, uniforms = inputs(batch)
    return sample(lambda codes, labels: torch_logits(prior, codes, labels), uniforms, labels, TABLE, controls)


@pytest.mark.parametrize(("threads", "level"), CONFIGURATIONS)
def test_rows_are_the_naive_samplers(
    prior: PixelCNN, models: Models, threads: int, level: ort.GraphOptimizationLevel
) -> None:
    _, labels, uniforms = inputs(16)
    controls = Controls.off(16, K)
    run = sessions(models, threads, level)
    expected = expected_samples(prior, 16, controls)
    for graph in ("prior_row", "prior_row_unfiltered"):
        assert np.array_equal(sample_rows(run, graph, uniforms, labels, controls), expected)


@pytest.mark.parametrize(
    ("temperature", "top_k", "top_p"),
    [(0.5, K, 1.0), (2.0, K, 1.0), (1.0, 1, 1.0), (1.0, 5, 1.0), (1.0, K, 0.3), (1.0, K, 1e-6), (0.8, 7, 0.6)],
)
def test_controls_are_the_naive_samplers(
    prior: PixelCNN, models: Models, temperature: float, top_k: int, top_p: float
) -> None:
    _, labels, uniforms = inputs(8)
    inverse = np.full(8, 1 / temperature, np.float32)
    controls = Controls(inverse, np.full(8, top_k), np.full(8, top_p, np.float32))
    found = sample_rows(sessions(models), "prior_row", uniforms, labels, controls)
    assert np.array_equal(found, expected_samples(prior, 8, controls))


def test_top_k_of_one_is_the_most_likely_code(prior: PixelCNN, models: Models) -> None:
    _, labels, uniforms = inputs(8)
    controls = Controls(np.ones(8, np.float32), np.ones(8, np.int64), np.ones(8, np.float32))
    found = sample_rows(sessions(models), "prior_row", uniforms, labels, controls)
    logits = torch_logits(prior, found, labels)
    assert np.array_equal(np.take_along_axis(logits, found[..., None], -1)[..., 0], logits.max(-1))


def test_a_sample_does_not_know_its_neighbours(models: Models) -> None:
    """The same uniforms give the same codes alone, among strangers, and whatever the strangers' settings are."""
    run = sessions(models)
    _, labels, uniforms = inputs(9)
    together = sample_rows(run, "prior_row_unfiltered", uniforms, labels, Controls.off(9, K))
    for index in range(9):
        one = slice(index, index + 1)
        alone = sample_rows(run, "prior_row_unfiltered", uniforms[one], labels[one], Controls.off(1, K))
        assert np.array_equal(alone, together[one])
    strangers = Controls(
        np.array([1, *[1.7] * 8], np.float32), np.array([K, *[3] * 8]), np.array([1, *[0.5] * 8], np.float32)
    )
    mixed = sample_rows(run, "prior_row", uniforms, labels, strangers)
    assert np.array_equal(mixed[:1], together[:1])
    assert not np.array_equal(mixed[1:], together[1:])


def test_known_codes_are_kept_and_condition_the_rest(prior: PixelCNN, models: Models) -> None:
    run = sessions(models)
    codes, labels, uniforms = inputs(4)
    inputs_of_row = {
        "labels": labels,
        "inverse_temperature": np.ones(4, np.float32),
        "caches": np.zeros((4, 4, WIDTH, 12), np.float32),
    }
    mask = np.zeros((4, WIDTH), np.bool_)
    mask[:, ::2] = True
    row, _ = run.run(
        "prior_row_unfiltered",
        uniforms=uniforms[:, 0].copy(),
        known_codes=codes[:, 0].copy(),
        known_mask=mask,
        **inputs_of_row,
    )
    assert np.array_equal(row[:, ::2], codes[:, 0, ::2])
    grid = row[:, None].astype(np.int64)
    logits = torch_logits(prior, grid, labels)[:, 0]
    one = np.float32(1)
    for b, j in itertools.product(range(4), range(1, WIDTH, 2)):
        assert row[b, j] == draw(logits[b, j], uniforms[b, 0, j], TABLE, one, K, one)


def test_sampled_frequencies_follow_the_prior(prior: PixelCNN, models: Models) -> None:
    """The first code of 20,000 samples against its exact distribution: chi-square below the 0.999 quantile (23 dof)."""
    count = 20000
    uniforms = (np.random.default_rng(0).integers(0, 1 << 24, (count, 1, WIDTH)) / (1 << 24)).astype(np.float32)
    labels = np.zeros(count, np.int64)
    codes = sample_rows(sessions(models), "prior_row_unfiltered", uniforms, labels, Controls.off(count, K))
    logits = torch_logits(prior, codes[:1], labels[:1])[0, 0, 0]
    frequencies = TABLE[np.minimum(logits.max() - logits, len(TABLE) - 1)].astype(np.float64)
    expected = frequencies / frequencies.sum() * count
    observed = np.bincount(codes[:, 0, 0], minlength=K)
    likely = expected >= 5
    assert (((observed - expected)[likely] ** 2) / expected[likely]).sum() < 49.73


@pytest.mark.parametrize(("threads", "level"), CONFIGURATIONS)
def test_guided_rows_are_the_naive_samplers(
    prior: PixelCNN, models: Models, threads: int, level: ort.GraphOptimizationLevel
) -> None:
    """With and without filters, at every strength, alone as among others."""
    _, labels, uniforms = inputs(12)
    random = np.random.default_rng(2)
    guidance = np.array([1, 1.0625, 8, *random.integers(16, 129, 9) / 16], np.float32)
    temperature, top_k = random.uniform(0.5, 2, 12).astype(np.float32), random.integers(1, K + 1, 12)
    controls = Controls(temperature, top_k, random.uniform(0.3, 1, 12).astype(np.float32), guidance)
    run = sessions(models, threads, level)
    expected = sample(
        lambda codes, labels: torch_logits(prior, codes, labels), uniforms, labels, TABLE, controls, no_label=LABELS
    )
    assert np.array_equal(sample_rows(run, "prior_row_guided", uniforms, labels, controls), expected)
    alone = replace(controls, **{name: value[3:4] for name, value in vars(controls).items()})
    assert np.array_equal(sample_rows(run, "prior_row_guided", uniforms[3:4], labels[3:4], alone), expected[3:4])


def test_guidance_of_one_is_none(models: Models) -> None:
    _, labels, uniforms = inputs(8)
    run, off = sessions(models), Controls.off(8, K)
    plain = sample_rows(run, "prior_row", uniforms, labels, off)
    one = replace(off, guidance=np.ones(8, np.float32))
    assert np.array_equal(sample_rows(run, "prior_row_guided", uniforms, labels, one), plain)
    three = replace(off, guidance=np.full(8, 3, np.float32))
    assert not np.array_equal(sample_rows(run, "prior_row_guided", uniforms, labels, three), plain)


def test_a_prior_without_labels_has_no_guided_graph() -> None:
    unlabelled = PixelCNN(K, 0, channels=8, vertical_layers=1, horizontal_layers=1, head_channels=8)
    assert "prior_row_guided" not in PriorGraphWriter(unlabelled).all(WIDTH, TABLE)
