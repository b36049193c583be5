"""How codebooks start, move and restart: averages, windows and what evaluation leaves alone."""

from __future__ import annotations

import pytest
import torch

from tests.training.test_quantizers import D, K, latents, rows_of, started
from training.quantizers import EMAQuantizer, FiniteScalarQuantizer, GradientQuantizer, nearest, spread_sample


@pytest.mark.parametrize("begun", [False, True])
def test_evaluation_changes_nothing(begun: bool) -> None:
    quantizer = EMAQuantizer(K, D, start_step=0)
    quantizer = (started(quantizer) if begun else quantizer).eval()
    before = {name: value.clone() for name, value in quantizer.state_dict().items()}
    quantizer(latents())
    assert all(torch.equal(value, before[name]) for name, value in quantizer.state_dict().items())


def test_a_spread_sample_of_fewer_points_repeats_them() -> None:
    points = torch.tensor([[1.0] * D, [2.0] * D]).repeat(5, 1)
    chosen = spread_sample(points, K)
    assert chosen.shape == (K, D)
    assert sorted(set(chosen[:, 0].tolist())) == [1, 2]


def test_a_code_that_nothing_has_chosen_can_still_be_chosen() -> None:
    quantizer = EMAQuantizer(K, D, rate_weight=0.5)
    quantizer.cluster_size[0] = 100.0  # the others have never been used
    for mean_error in (0.0, 0.1):
        quantizer.mean_error.fill_(mean_error)
        offsets = quantizer.offsets()
        assert offsets is not None and offsets.isfinite().all()


def test_a_codebook_starts_once() -> None:
    quantizer = GradientQuantizer(K, D, start_step=0)
    quantizer(latents(1))
    begun = quantizer.codebook.detach().clone()
    quantizer(latents(2))  # nothing but an optimiser moves it now
    assert begun.abs().sum() > 0 and torch.equal(quantizer.codebook, begun)


def test_averages_start_from_the_first_codebook() -> None:
    """m_i = N_i e_i, and all N_i together are the latents of the first batch."""
    quantizer = EMAQuantizer(K, D, start_step=0, usage_decay=1.0)
    z = latents()
    quantizer(z)
    assert quantizer.cluster_size.tolist() == [z.numel() / D / K] * K
    torch.testing.assert_close(quantizer.cluster_sum, quantizer.codebook * quantizer.cluster_size[:, None])
    assert quantizer.codebook.abs().sum() > 0


def test_the_mean_error_is_that_of_a_latent_and_a_moving_average() -> None:
    quantizer = started(EMAQuantizer(K, D, start_step=0, usage_decay=0.9, restart_every=0))
    expected = 0.0
    for seed in range(3):
        _, errors = nearest(torch.from_numpy(rows_of(latents(seed))).float(), quantizer.codebook)
        expected = 0.9 * expected + 0.1 * errors.mean().item() if expected else errors.mean().item()
        quantizer(latents(seed))
    assert quantizer.mean_error.item() == pytest.approx(expected, rel=1e-5)


def test_a_code_is_dead_by_what_chose_it_since_the_last_look() -> None:
    quantizer = started(EMAQuantizer(K, D, start_step=0, restart_every=2))
    busy = quantizer.codebook[torch.arange(16) % K].T[None, :, :, None] + 0.01  # every vector is chosen twice
    for _ in range(4):
        quantizer(busy)
    assert quantizer.window_counts.tolist() == [0] * K
    before = quantizer.codebook.clone()
    quantizer(busy)
    quantizer(busy)
    torch.testing.assert_close(quantizer.codebook, before, atol=0.01, rtol=0)  # none has restarted
    few = busy[:, :, :15]  # code 7 once and not twice
    for _ in range(2):
        quantizer(few)
    torch.testing.assert_close(quantizer.codebook, before, atol=0.02, rtol=0)
    vector = quantizer.codebook[7].clone()
    for _ in range(2):
        quantizer(busy[:, :, :7])
    assert (quantizer.codebook[7] - vector).abs().max() > 0.1, "nothing has chosen it for two steps"
    assert quantizer.cluster_size[7] == pytest.approx(quantizer.cluster_size.mean().item(), rel=0.2)
    torch.testing.assert_close(quantizer.cluster_sum, quantizer.codebook * quantizer.cluster_size[:, None])


def test_a_code_restarts_below_its_part_of_the_mean_count_and_with_the_mean_size() -> None:
    quantizer = started(EMAQuantizer(K, D, start_step=0, usage_decay=1.0, restart_every=1, restart_below=0.25))
    often = torch.tensor([8, 8, 8, 8, 8, 8, 2, 1])  # the mean is 51 / 8, a quarter of it 1.6
    z = (quantizer.codebook.repeat_interleave(often, 0) + 0.01).T[None, :, :, None]
    before, quantizer.cluster_size[7] = quantizer.codebook.clone(), 0.5
    quantizer(z)
    moved = (quantizer.codebook - before).abs().amax(1) > 0.1
    assert moved.tolist() == [False] * 7 + [True]
    assert quantizer.cluster_size[7] == pytest.approx((7 * 3 + 0.5) / 8)


def test_no_more_codes_restart_than_latents_are_wrong() -> None:
    quantizer = started(EMAQuantizer(K, D, start_step=0, restart_every=1))
    same = quantizer.codebook[2][None, :, None, None].expand(1, D, 3, 3)
    before = quantizer.codebook.clone()
    quantizer(same.clone())
    torch.testing.assert_close(quantizer.codebook, before)


def test_codes_used_are_those_that_occur() -> None:
    quantizer = started(EMAQuantizer(K, D)).eval()
    z = quantizer.codebook[torch.tensor([2, 2, 5])].T[None, :, :, None]
    assert quantizer(z).metrics["codes_used"] == 2
    fsq = FiniteScalarQuantizer((2, 3))
    assert fsq(torch.tensor([[-9.0, 9.0], [0.0, 0.0]])[None, :, :, None]).metrics["codes_used"] == 2


def test_two_levels_are_the_fewest() -> None:
    assert FiniteScalarQuantizer((2, 2)).codebook.tolist() == [[-1, -1], [1, -1], [-1, 1], [1, 1]]
