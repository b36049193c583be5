"""How codebooks start, move and restart: averages, windows and what evaluation leaves alone."""

from __future__ import annotations

import math

import pytest
import torch

from tests.training.models.test_quantizers import D, K, latents, rows_of, started
from training.models.quantizers import (
    EMAQuantizer,
    GradientQuantizer,
    VectorQuantizer,
    nearest,
    perplexity,
    spread_sample,
)
from training.models.scalar_quantizer import FiniteScalarQuantizer


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


# the bits of a code


def test_offsets_are_the_bits_of_each_code_and_those_of_a_rare_one_have_an_end() -> None:
    """Shares 3/4, 1/4 and two below 1/4000, which is a thousandth of the equal share and counts in their place."""
    quantizer = EMAQuantizer(4, D, rate_weight=0.5)
    quantizer.cluster_size.copy_(torch.tensor([12.0, 3.9995, 0.0005, 0.0]))
    quantizer.mean_error.fill_(0.25)
    bits = [0.415037, math.log2(16 / 3.9995), 11.965784, 11.965784]
    offsets = quantizer.offsets()
    assert offsets is not None and offsets.tolist() == pytest.approx([0.5 * 0.25 * number for number in bits], rel=1e-5)


@pytest.mark.parametrize(("sizes", "bits"), [([0.0] * 4, math.log2(4000)), ([1e-4] * 4, 2.0)])
def test_bits_are_of_shares_however_small_the_counts(sizes: list[float], bits: float) -> None:
    """Before the codebook starts they are all zero, and no share is a number."""
    quantizer = EMAQuantizer(4, D, rate_weight=1.0)
    quantizer.cluster_size.copy_(torch.tensor(sizes))
    quantizer.mean_error.fill_(1.0)
    offsets = quantizer.offsets()
    assert offsets is not None and offsets.tolist() == pytest.approx([bits] * 4, rel=1e-6)


def test_no_rate_no_offsets() -> None:
    assert EMAQuantizer(4, D).offsets() is None


def test_perplexity_of_no_codes_is_a_number() -> None:
    assert perplexity(torch.zeros(3)).item() == 1


def test_training_weighs_bits_as_the_assignment_does() -> None:
    """The vector of the rare code is slightly nearer."""
    quantizer = EMAQuantizer(2, 1, rate_weight=0.5).eval()
    quantizer.codebook.copy_(torch.tensor([[0.0], [1.0]]))
    quantizer.cluster_size.copy_(torch.tensor([99.0, 1.0]))
    quantizer.mean_error.fill_(0.1)
    quantizer.initialised.fill_(True)
    z = torch.full((1, 1, 1, 1), 0.55)
    assert quantizer(z).codes.item() == quantizer.assign(z).item() == 0


@pytest.mark.parametrize("levels", [(4, 4), (3, 3), (2, 5)])
def test_no_number_is_a_code_of_any_levels(levels: tuple[int, int]) -> None:
    """Of some levels the far too large numbers of a NaN summed up to 0 by themselves."""
    codes = FiniteScalarQuantizer(levels).assign(torch.full((1, 2, 1, 1), math.nan))
    assert 0 <= codes.item() < math.prod(levels)


# averages and types


def test_the_usage_of_a_learned_codebook_decays_too() -> None:
    """3 of each code before; of ten latents two chose code 0 and eight code 1: 0.75 * 3 + 0.25 * n."""
    quantizer = started(GradientQuantizer(K, D, start_step=0, usage_decay=0.75, restart_every=0))
    z = quantizer.codebook.detach()[torch.tensor([0] * 2 + [1] * 8)].T[None, :, :, None]
    quantizer(z)
    assert quantizer.cluster_size.tolist() == [2.75, 4.25] + [2.25] * 6
    quantizer(z)
    assert quantizer.window_counts.tolist() == [4, 16] + [0] * 6


def test_a_code_lies_where_it_was_used_however_seldom_and_where_it_was_if_never() -> None:
    quantizer = started(EMAQuantizer(K, D, start_step=0, usage_decay=0.999, restart_every=0))
    before = quantizer.codebook.clone()
    quantizer.cluster_size.zero_()
    quantizer.cluster_sum.zero_()
    z = before[2] + 0.01
    quantizer(z[None, :, None, None])
    torch.testing.assert_close(quantizer.codebook[2], z)
    others = [index for index in range(K) if index != 2]
    assert torch.equal(quantizer.codebook[others], before[others])


@pytest.mark.parametrize("begun", [False, True])
def test_latents_in_half_precision_are_quantized_in_float32(begun: bool) -> None:
    quantizer = EMAQuantizer(K, D, start_step=0)
    quantizer, z = (started(quantizer) if begun else quantizer).eval(), latents().half()
    quantized = quantizer(z)
    codes = nearest(torch.from_numpy(rows_of(z)).float(), quantizer.codebook)[0]
    assert torch.equal(quantized.codes.flatten(), codes if begun else torch.zeros_like(codes))
    assert quantized.vectors.dtype == torch.float32
    fsq, z = FiniteScalarQuantizer((3, 3)), latents()[:, :2].half()
    assert fsq.bounded(z).dtype == torch.float32 and fsq(z).loss == 0


@pytest.mark.parametrize("kind", [EMAQuantizer, GradientQuantizer])
@pytest.mark.parametrize("cost", [0.25, 2.0])
def test_the_commitment_costs_what_it_is_set_to(kind: type[VectorQuantizer], cost: float) -> None:
    """Latents that are half a unit off in one of five numbers: 0.25 / 5, and as much again for a learned codebook."""
    quantizer = started(kind(K, D, commitment_cost=cost)).eval()
    quantizer.codebook.data.mul_(10)
    z = quantizer.codebook.detach().clone()
    z[:, 0] += 0.5
    loss = quantizer(z.T[None, :, :, None]).loss.item()
    assert loss == pytest.approx(0.05 * cost + (0.05 if kind is GradientQuantizer else 0), rel=1e-4)


@pytest.mark.parametrize(("kind", "own"), [(EMAQuantizer, set()), (GradientQuantizer, {"vq"})])
def test_numbers_before_the_codebook_starts_have_the_names_of_those_after(
    kind: type[VectorQuantizer], own: set[str]
) -> None:
    before, after = (kind(K, D, start_step=step)(latents()).metrics for step in (1, 0))
    assert before.keys() == after.keys() == {"perplexity", "codes_used", "commitment"} | own
    assert not any(before.values())


# restarts


def restarted(wrong: dict[int, float], dead: int) -> torch.Tensor:
    """The codebook after a step in which nothing chose the last `dead` codes, and each other one five latents that
    equal it, but for those of `wrong`, which are so far off."""
    quantizer = started(GradientQuantizer(K, D, start_step=0, restart_every=1))
    quantizer.codebook.data.copy_(torch.eye(K)[:, :D] * 1000 + torch.arange(K)[:, None])
    z = quantizer.codebook.detach()[torch.arange(5 * (K - dead)) % (K - dead)]
    for index, distance in wrong.items():
        z[index, 4] += distance
    quantizer(z.T[None, :, :, None])
    moved: torch.Tensor = quantizer.codebook.detach()
    return moved


@pytest.mark.parametrize("seed", range(3))
def test_a_dead_code_restarts_where_the_error_is(seed: int) -> None:
    """One latent has nearly all of the error; drawn by their number, it would be one of 35."""
    torch.manual_seed(seed)
    wrong = dict.fromkeys(range(14), 2.0**-10) | {10: 64.0}
    codebook, before = restarted(wrong, dead=1), restarted({}, dead=1)
    assert torch.equal(codebook[:7], before[:7])
    assert (codebook[7] - before[3]).tolist() == [0, 0, 0, 0, 64]


@pytest.mark.parametrize("seed", range(3))
def test_dead_codes_restart_on_different_latents(seed: int) -> None:
    """Two are off, one by far: drawn with replacement both codes would restart on that one."""
    torch.manual_seed(seed)
    codebook, before = restarted({0: 64.0, 1: 0.5}, dead=2), restarted({}, dead=2)
    assert torch.equal(codebook[:6], before[:6])
    offsets = [{float((codebook[code] - before[index])[4]) for code in (6, 7)} for index in (0, 1)]
    assert 64.0 in offsets[0] and 0.5 in offsets[1]


def test_a_share_of_nothing_restarts_nothing() -> None:
    quantizer = started(EMAQuantizer(K, D, start_step=0, restart_every=1, restart_below=0.0))
    before = quantizer.codebook.clone()
    quantizer((quantizer.codebook[2] + 0.01)[None, :, None, None])
    others = [index for index in range(K) if index != 2]
    torch.testing.assert_close(quantizer.codebook[others], before[others])


def test_one_busy_code_makes_the_others_no_dead_ones() -> None:
    """30 and 2 of each other: a quarter of the mean is 1.4."""
    quantizer = started(EMAQuantizer(K, D, start_step=0, restart_every=1, restart_below=0.25))
    before = quantizer.codebook.clone()
    often = torch.tensor([30] + [2] * 7)
    quantizer((before.repeat_interleave(often, 0) + 0.01).T[None, :, :, None])
    torch.testing.assert_close(quantizer.codebook, before, atol=0.01, rtol=0)
