"""What the quantizers of several processes tell each other; the other processes are made up."""

from __future__ import annotations

import pytest
import torch
import torch.distributed as dist

from tests.training.models.test_quantizers import D, K, latents, started
from training.models import quantizers
from training.models.quantizers import EMAQuantizer, GradientQuantizer
from training.models.scalar_quantizer import FiniteScalarQuantizer


def of_two(tensor: torch.Tensor) -> torch.Tensor:
    return torch.cat([tensor, tensor])


def test_two_processes_that_see_the_same_are_one_that_sees_it_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    """Start, averages and restarts: the last code is far from all latents, and dies."""

    def trained(batches: list[torch.Tensor]) -> dict[str, torch.Tensor]:
        torch.manual_seed(0)
        quantizer = EMAQuantizer(K, D, start_step=0, restart_every=2)
        for step, z in enumerate(batches):
            if step == 1:
                quantizer.codebook[7] = 100.0
                quantizer.cluster_sum[7] = 100.0 * quantizer.cluster_size[7]
            quantizer(z)
        return quantizer.state_dict()

    batches = [latents(seed) for seed in range(4)]
    alone = trained([of_two(z) for z in batches])
    monkeypatch.setattr(quantizers, "sum_over_ranks", lambda tensor: tensor.mul_(2))
    monkeypatch.setattr(quantizers, "gather_over_ranks", of_two)
    together = trained(batches)
    assert alone["codebook"].abs().max() < 10, "code 7 has restarted"
    for name, value in alone.items():
        torch.testing.assert_close(together[name], value)


def test_what_is_drawn_is_drawn_by_the_first_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """The start of the codebook, and vectors for dead codes."""
    monkeypatch.setattr(quantizers, "from_first_rank", lambda tensor: torch.full_like(tensor, 7.0))
    quantizer = GradientQuantizer(K, D, start_step=0, restart_every=2)
    quantizer(latents())
    assert torch.equal(quantizer.codebook, torch.full((K, D), 7.0))
    quantizer.codebook.data[:] = torch.arange(K)[:, None] * 100.0
    quantizer.window_counts.zero_()
    quantizer(latents())
    assert quantizer.codebook[:, 0].tolist() == [0] + [7] * 7


@pytest.mark.parametrize("quantizer", [started(EMAQuantizer(K, D)), FiniteScalarQuantizer((4, 3, 2, 2, 2))])
def test_processes_add_up_histograms_of_one_length(
    quantizer: EMAQuantizer | FiniteScalarQuantizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whichever codes each of them has seen."""
    summed: list[tuple[int, ...]] = []

    def told(counts: torch.Tensor) -> torch.Tensor:
        summed.append(tuple(counts.shape))
        return counts

    monkeypatch.setattr(f"{type(quantizer).__module__}.sum_over_ranks", told)
    quantizer.eval()(torch.full((1, D, 2, 2), -9.0))
    assert summed == [(quantizer.codebook_size,)]


def test_a_dead_code_may_restart_on_a_latent_of_another_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """All errors are in the other one, whose latents lie 50 away."""
    quantizer = started(GradientQuantizer(K, D, start_step=0, restart_every=1))
    quantizer.codebook.data[5] = 1000.0
    elsewhere = {1: torch.ones_like, 2: lambda rows: rows + 50}  # errors (N,), latents (N,D)
    monkeypatch.setattr(quantizers, "gather_over_ranks", lambda tensor: elsewhere[tensor.ndim](tensor))
    quantizer(latents())
    assert quantizer.codebook[5].min() > 40 and quantizer.codebook[5].max() < 60


def test_usage_entropy_is_that_of_the_batch_of_all_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each maximised the entropy of its own share of the batch, which is less the more processes there are."""
    quantizer = FiniteScalarQuantizer((4, 3))
    whole = torch.rand(4, 2, 3, 3).mul(2).sub(1).requires_grad_()
    alone = quantizer.usage_entropy(whole)
    alone.backward()
    shares: list[torch.Tensor] = []
    monkeypatch.setattr(dist, "is_initialized", lambda: True)
    monkeypatch.setattr(dist, "get_world_size", lambda: 2)
    monkeypatch.setattr(dist, "all_reduce", lambda usage: shares.append(usage.clone()))
    halves = [half.clone().requires_grad_() for half in whole.detach().chunk(2)]
    for half in halves:
        quantizer.usage_entropy(half)
    for half, other in zip(halves, reversed(shares), strict=True):
        monkeypatch.setattr(dist, "all_reduce", lambda usage, other=other: usage.add_(other))
        entropy = quantizer.usage_entropy(half)
        torch.testing.assert_close(entropy, alone)
        entropy.backward()
    assert whole.grad is not None
    torch.testing.assert_close(torch.cat([half.grad for half in halves]) / 2, whole.grad)  # what DDP makes of them
