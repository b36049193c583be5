"""Quantizers against numpy oracles that write the lecture's equations literally, and against the gradients of eq. 3."""

from __future__ import annotations

import math
from typing import TypeVar

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from training.models.quantizers import (
    EMAQuantizer,
    GradientQuantizer,
    VectorQuantizer,
    nearest,
    perplexity,
    spread_sample,
)

Quantizer = TypeVar("Quantizer", bound=VectorQuantizer)
K, D = 8, 5
SHAPE = (3, D, 4, 6)  # (B,D,h,w): not square


def started(quantizer: Quantizer, seed: int = 0) -> Quantizer:
    """A quantizer whose codebook is set, as if it had trained for a while."""
    random = torch.Generator().manual_seed(seed)
    quantizer.codebook.data.copy_(torch.randn(K, D, generator=random))
    quantizer.initialised.fill_(True)
    quantizer.cluster_size.fill_(3)
    if isinstance(quantizer, EMAQuantizer):
        quantizer.cluster_sum.copy_(3 * quantizer.codebook)
    return quantizer


def latents(seed: int = 1) -> torch.Tensor:
    return torch.randn(SHAPE, generator=torch.Generator().manual_seed(seed))


def rows_of(z: torch.Tensor) -> NDArray[np.float64]:
    return z.detach().movedim(1, -1).reshape(-1, D).double().numpy()


def oracle_codes(z: NDArray[np.float64], codebook: NDArray[np.float64]) -> NDArray[np.int64]:
    """k = argmin_j ||z - e_j||_2, one row at a time."""
    return np.array([min(range(len(codebook)), key=lambda j: float(((row - codebook[j]) ** 2).sum())) for row in z])


def test_codes_are_the_nearest_vectors() -> None:
    quantizer = started(EMAQuantizer(K, D, start_step=0))
    z = latents()
    expected = oracle_codes(rows_of(z), quantizer.codebook.double().numpy())
    codes = quantizer.eval()(z).codes
    assert codes.shape == (3, 4, 6)
    assert codes.flatten().tolist() == expected.tolist()
    assert torch.equal(quantizer.assign(z), codes)


def test_a_tie_goes_to_the_lowest_index() -> None:
    codes, distances = nearest(torch.zeros(1, 2), torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0]]))
    assert (codes.item(), distances.item()) == (0, 1.0)


def test_ema_update_is_the_lectures() -> None:
    """N_i, m_i and e_i = m_i / N_i after three batches, in float64; float32 sums of 72 rows differ by rounding."""
    gamma = 0.9
    quantizer = started(EMAQuantizer(K, D, start_step=0, usage_decay=gamma, restart_every=0))
    n, m = np.full(K, 3.0), 3 * quantizer.codebook.double().numpy()
    e = quantizer.codebook.double().numpy()
    for seed in range(3):
        z = latents(seed)
        rows = rows_of(z)
        codes = oracle_codes(rows, e)
        for i in range(K):
            mine = rows[codes == i]
            n[i] = n[i] * gamma + len(mine) * (1 - gamma)
            m[i] = m[i] * gamma + mine.sum(0) * (1 - gamma)
        e = m / n[:, None]
        quantizer(z)
    np.testing.assert_allclose(quantizer.cluster_size.numpy(), n, rtol=1e-5)
    np.testing.assert_allclose(quantizer.cluster_sum.numpy(), m, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(quantizer.codebook.numpy(), e, rtol=1e-4, atol=1e-5)


def test_straight_through_passes_the_decoders_gradient_unchanged() -> None:
    quantizer = started(EMAQuantizer(K, D, start_step=0, commitment_cost=0.0))
    z = latents().requires_grad_()
    upstream = torch.randn(SHAPE, generator=torch.Generator().manual_seed(3))
    (quantizer(z).vectors * upstream).sum().backward()
    assert torch.equal(z.grad, upstream)  # type: ignore[arg-type]


def test_commitment_reaches_only_the_encoder_and_vq_only_the_codebook() -> None:
    z = latents().requires_grad_()
    committed = started(GradientQuantizer(K, D, start_step=0, commitment_cost=0.25))
    loss = committed(z).loss
    (encoder_gradient, codebook_gradient) = torch.autograd.grad(loss, [z, committed.codebook])
    vectors = committed.lookup(committed.assign(z.detach())).detach()
    expected = 0.25 * 2 * (z.detach() - vectors) / z.numel()  # d/dz of beta * mean (z - sg[e])^2
    torch.testing.assert_close(encoder_gradient, expected)
    per_row = (2 * (vectors - z.detach()) / z.numel()).movedim(1, -1).reshape(-1, D)  # d/de of mean (sg[z] - e)^2
    by_code = torch.zeros(K, D).index_add_(0, committed.assign(z.detach()).flatten(), per_row)
    torch.testing.assert_close(codebook_gradient, by_code)
    ema = started(EMAQuantizer(K, D, start_step=0))
    assert not list(ema.parameters())


def test_kl_of_the_one_hot_posterior_to_a_uniform_prior_is_log_k() -> None:
    """The lecture: sum_k q log(q / p) with q one-hot and p = 1/K; why the KL term is left out of eq. 3."""
    one_hot = torch.distributions.OneHotCategorical(probs=torch.eye(K)[2])
    uniform = torch.distributions.OneHotCategorical(probs=torch.full((K,), 1 / K))
    assert torch.distributions.kl_divergence(one_hot, uniform).item() == pytest.approx(math.log(K), rel=1e-5)


def test_perplexity_counts_equally_used_codes() -> None:
    assert perplexity(torch.tensor([5.0, 5, 5, 5, 0, 0])).item() == pytest.approx(4)
    assert perplexity(torch.tensor([7.0, 0, 0])).item() == pytest.approx(1)


def test_the_codebook_starts_from_data_after_the_warm_up() -> None:
    quantizer = EMAQuantizer(K, D, start_step=2)
    z = latents()
    for _ in range(2):
        assert torch.equal(quantizer(z).vectors, z)
        assert not quantizer.initialised
    quantizer(z)
    distances = torch.cdist(quantizer.codebook, torch.from_numpy(rows_of(z)).float())
    assert quantizer.initialised
    assert distances.min(dim=1).values.max() < 1.0  # one EMA step away from latents of the batch


@pytest.mark.parametrize("kind", [EMAQuantizer, GradientQuantizer])
def test_a_validation_before_the_codebook_starts_quantizes_nothing(kind: type[VectorQuantizer]) -> None:
    """Every latent became the zeros of a codebook that had not started: the error was that of a grey picture."""
    quantizer = kind(K, D, start_step=2)
    z = latents()
    quantizer(z)
    quantized = quantizer.eval()(z)
    assert torch.equal(quantized.vectors, z) and quantized.metrics["perplexity"] == 0
    assert quantizer.step == 1 and not quantizer.initialised
    quantizer.train()
    for _ in range(2):
        quantizer(z)
    assert not torch.equal(quantizer.eval()(z).vectors, z)


def test_a_spread_sample_of_distances_without_end_is_a_sample() -> None:
    """torch.multinomial refused them, with a traceback in the place of the message of a run that diverges."""
    rows = torch.randn(20, D, generator=torch.Generator().manual_seed(0)) * 1e30  # the squares are infinite
    assert spread_sample(rows, 4).shape == (4, D)


def test_no_code_restarts_on_an_error_without_end() -> None:
    quantizer = started(EMAQuantizer(K, D, start_step=0, restart_every=1))
    quantizer.codebook[5] = 100.0
    quantizer.cluster_sum.copy_(3 * quantizer.codebook)
    quantizer(latents() * 1e30)
    assert quantizer.step == 1


def test_a_spread_sample_gives_the_background_one_code() -> None:
    """Half of all latents are the same; drawn uniformly, half of the codebook would be spent on them."""
    background = torch.zeros(500, D)
    rest = torch.randn(500, D, generator=torch.Generator().manual_seed(0)) + 3
    chosen = spread_sample(torch.cat([background, rest]), 16)
    assert int((chosen.abs().sum(1) == 0).sum()) <= 1


def test_a_dead_code_restarts_on_a_badly_quantized_latent() -> None:
    quantizer = started(EMAQuantizer(K, D, start_step=0, restart_every=2))
    quantizer.codebook[5] = 100.0  # nothing is near
    quantizer.cluster_sum.copy_(3 * quantizer.codebook)
    z = latents()
    for _ in range(2):
        quantizer(z)
    assert quantizer.codebook[5].abs().max() < 10
    differences = quantizer.codebook[5] - torch.from_numpy(rows_of(z)).float()  # cdist would round by 1e-3 here
    assert differences.abs().amax(dim=1).min() < 1e-5


def test_the_rate_term_prefers_the_frequent_code() -> None:
    """Two vectors, the rare one slightly nearer: the plain quantizer takes it, the entropy-constrained one does not."""
    codebook = torch.tensor([[0.0] * D, [1.0] + [0.0] * (D - 1)])
    z = torch.zeros(1, D, 1, 1)
    z[0, 0] = 0.55
    codes = []
    for rate_weight in (0.0, 0.5):
        quantizer = EMAQuantizer(2, D, rate_weight=rate_weight)
        quantizer.codebook.copy_(codebook)
        quantizer.cluster_size.copy_(torch.tensor([99.0, 1.0]))
        quantizer.mean_error.fill_(0.1)
        codes.append(quantizer.assign(z).item())
    assert codes == [1, 0]


def test_rate_offsets_are_one_more_dimension() -> None:
    """argmin ||z - e||^2 + offset is the nearest vector with z extended by 0 and e by sqrt(offset)."""
    random = torch.Generator().manual_seed(4)
    z, codebook = torch.randn(200, D, generator=random), torch.randn(K, D, generator=random)
    offsets = torch.rand(K, generator=random) * 3
    longer = torch.cat([codebook, offsets.sqrt()[:, None]], dim=1).double().numpy()
    expected = oracle_codes(np.pad(z.double().numpy(), ((0, 0), (0, 1))), longer)
    assert nearest(z, codebook, offsets)[0].tolist() == expected.tolist()


def test_the_quantizer_keeps_float32_distances_under_mixed_precision() -> None:
    """bfloat16 has 8 bits of mantissa. The few latents that were compared before have the same codes at either."""
    generator = torch.Generator().manual_seed(0)
    quantizer = EMAQuantizer(512, 8).eval()
    quantizer.codebook.copy_(torch.randn(512, 8, generator=generator))
    quantizer.initialised.fill_(True)
    latents = torch.randn(4, 8, 71, 71, generator=generator)
    rows, codebook = latents.movedim(1, -1), quantizer.codebook
    plain = quantizer(latents).codes
    with torch.autocast("cpu", torch.bfloat16):
        rounded = (0.5 * codebook.square().sum(1) - rows @ codebook.T).argmin(-1)
        assert (rounded != plain).sum() > 100
        assert torch.equal(quantizer(latents).codes, plain)
