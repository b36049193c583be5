"""The integer prior: what each position sees, and that its arithmetic is exact."""

from __future__ import annotations

import math

import pytest
import torch

from training.models.prior import (
    EMBEDDING_LIMIT,
    HEAD_LIMIT,
    STREAM_LIMIT,
    UNITS_PER_NAT,
    FixedPointLinear,
    GatedLayer,
    PixelCNN,
    gate,
    round_half_even,
    shift,
)

K = 6


def tiny(labels: int = 3) -> PixelCNN:
    torch.manual_seed(0)
    prior = PixelCNN(K, labels, channels=8, vertical_layers=4, horizontal_layers=3, head_channels=12)
    with torch.no_grad():
        prior.label_bias.normal_(0, 0.3)
        prior.embedding.normal_(0, 0.5)
    return prior


def influence(prior: PixelCNN, height: int, width: int) -> torch.Tensor:
    """seen[i,j,a,b]: does the gradient of the logits at (i,j) reach the embedded code at (a,b)?"""
    codes = torch.randint(0, K, (1, height, width))
    embedded: list[torch.Tensor] = []
    original = prior.quantized_embedding

    def recording() -> torch.Tensor:
        table = original().detach()[codes[0]].reshape(-1, prior.channels).requires_grad_()
        embedded.append(table)
        return table

    prior.quantized_embedding = recording  # type: ignore[method-assign]
    positions = torch.arange(height * width).reshape(1, height, width)  # every position has an embedding of its own
    logits = prior(positions, torch.tensor([0]))
    seen = torch.zeros(height, width, height, width, dtype=torch.bool)
    for i in range(height):
        for j in range(width):
            (gradient,) = torch.autograd.grad(logits[0, i, j].sum(), embedded[0], retain_graph=True)
            seen[i, j] = (gradient.abs().sum(1) > 0).reshape(height, width)
    return seen


@pytest.mark.parametrize(("height", "width"), [(5, 5), (3, 6), (6, 3)])
def test_every_earlier_position_is_seen_and_no_later_one(height: int, width: int) -> None:
    """No blind spot, for every pair of positions: within the stacks' reach exactly the raster past is seen."""
    seen = influence(tiny(), height, width)
    for i in range(height):
        for j in range(width):
            for a in range(height):
                for b in range(width):
                    before = (a, b) < (i, j)
                    if not before:
                        assert not seen[i, j, a, b], f"({i},{j}) sees the future ({a},{b})"
                    elif i - a <= 4 and abs(j - b) <= 4:  # four vertical layers reach one row and one column each
                        assert seen[i, j, a, b], f"({i},{j}) is blind to ({a},{b})"


def test_logits_are_integers_and_equal_in_float64() -> None:
    prior = tiny()
    codes, labels = torch.randint(0, K, (4, 5, 7)), torch.randint(0, 4, (4,))
    logits = prior(codes, labels)
    assert torch.equal(logits, logits.round())
    assert torch.equal(prior.double()(codes, labels).float(), logits)


def test_logits_do_not_depend_on_batch_or_threads() -> None:
    prior = tiny()
    codes, labels = torch.randint(0, K, (16, 7, 7)), torch.randint(0, 4, (16,))
    together = prior(codes, labels)
    alone = torch.cat([prior(codes[i : i + 1], labels[i : i + 1]) for i in range(16)])
    assert torch.equal(together, alone)
    threads = torch.get_num_threads()
    torch.set_num_threads(2 if threads == 1 else 1)
    again = prior(codes, labels)
    torch.set_num_threads(threads)
    assert torch.equal(again, together)


def test_labels_matter_and_the_last_one_means_none() -> None:
    prior = tiny()
    codes = torch.randint(0, K, (1, 4, 4)).expand(4, -1, -1)
    logits = prior(codes, torch.arange(4))
    assert len({tuple(row.flatten().tolist()) for row in logits}) == 4


def test_loss_is_the_cross_entropy_in_nats() -> None:
    prior = tiny()
    codes, labels = torch.randint(0, K, (2, 3, 3)), torch.tensor([0, 3])
    log_p = torch.log_softmax(prior(codes, labels) / UNITS_PER_NAT, dim=-1)
    expected = -log_p.gather(-1, codes[..., None]).mean()
    torch.testing.assert_close(prior.loss(codes, labels), expected)


def test_training_lowers_the_loss() -> None:
    """A checkerboard has no entropy once its first code is known: log 2 / 16 nats a code."""
    prior = tiny(labels=0)
    board = (torch.arange(4)[:, None] + torch.arange(4)) % 2
    codes = torch.stack([board, 1 - board]).repeat(8, 1, 1)
    labels = torch.zeros(16, dtype=torch.int64)
    optimizer = torch.optim.Adam(prior.parameters(), 1e-2)
    for _ in range(150):
        optimizer.zero_grad()
        loss = prior.loss(codes, labels)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    assert loss.item() < 2 * math.log(2) / 16


def test_rounding_is_half_to_even_with_a_straight_gradient() -> None:
    x = torch.tensor([-1.5, -0.5, 0.5, 1.5, 2.5], requires_grad=True)
    y = round_half_even(x)
    y.sum().backward()  # type: ignore[no-untyped-call]
    assert y.tolist() == [-2, 0, 0, 2, 2]
    assert x.grad is not None
    assert x.grad.tolist() == [1] * 5


def test_weights_are_fixed_point() -> None:
    linear = FixedPointLinear(3, 2, bias=True)
    with torch.no_grad():
        linear.weight.mul_(10)
    weight = linear.quantized_weight() * 128
    assert torch.equal(weight, weight.round())
    assert weight.abs().max() <= 127


def test_the_gate_is_hard_tanh_times_hard_sigmoid() -> None:
    """In real units: clip(a, -1, 1) * clip(b/4 + 1/2, 0, 1), to the rounding of each factor to 1/64."""
    a, b = torch.linspace(-3, 3, 101), torch.linspace(-4, 4, 101)
    real = torch.clamp(a, -1, 1) * torch.clamp(b / 4 + 0.5, 0, 1)
    integer = gate(torch.cat([a, b]) * 64) / 64 / 64
    torch.testing.assert_close(integer, real, atol=1 / 64, rtol=0)


def test_shift_brings_zero_from_outside() -> None:
    x = torch.arange(1.0, 7).reshape(1, 2, 3, 1)
    assert shift(x, -1, 0)[0, :, :, 0].tolist() == [[0, 0, 0], [1, 2, 3]]
    assert shift(x, 0, 1)[0, :, :, 0].tolist() == [[2, 3, 0], [5, 6, 0]]


def test_streams_embeddings_and_the_hidden_layer_stay_in_their_ranges() -> None:
    """The bounds on which the proof of exactness stands."""
    prior = tiny()
    with torch.no_grad():
        prior.embedding.mul_(1e3)
        prior.hidden.weight.mul_(1e3)
        assert prior.quantized_embedding().abs().max() == EMBEDDING_LIMIT
        inputs: list[torch.Tensor] = []
        prior.head.register_forward_pre_hook(lambda module, given: inputs.append(given[0]))
        prior(torch.randint(0, 6, (1, 4, 4)), torch.tensor([0]))
        assert inputs[0].min() == 0 and inputs[0].max() == HEAD_LIMIT
        layer = GatedLayer(2, 1)
        stream = torch.tensor([[STREAM_LIMIT, -STREAM_LIMIT]], dtype=torch.float32)
        layer.out.weight.copy_(torch.tensor([[1.0, -1.0], [1.0, -1.0]]))
        gates = torch.full((1, 4), 1e4)  # both open: an update of about 127 outwards
        assert layer(stream, stream, gates).tolist() == stream.tolist()
