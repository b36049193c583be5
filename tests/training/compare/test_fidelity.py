"""Measures of made pictures on a few points, worked out by hand."""

from __future__ import annotations

import pytest
import torch

from training.compare.fidelity import frechet_distance, precision_and_recall, spread_within_classes


def test_frechet_distance_of_two_pairs() -> None:
    """Means (1,0) and (0,2), 5 apart squared; variances 2 along one axis and 8 along the other, with N - 1."""
    real, made = torch.tensor([[0.0, 0], [2, 0]]), torch.tensor([[0.0, 0], [0, 4]])
    assert frechet_distance(real, made) == pytest.approx(5 + 2 + 8)
    along = torch.tensor([[0.0, 0], [4, 0]])  # variance 8 along the first axis too, and a mean 1 away
    assert frechet_distance(real, along) == pytest.approx(1 + 2 + 8 - 2 * (2 * 8) ** 0.5)


def test_frechet_distance_of_fewer_pictures_than_features_is_a_number() -> None:
    """Most eigenvalues are 0, and some of them come out below it."""
    points = torch.randn(6, 20, generator=torch.Generator().manual_seed(0))
    assert 0 <= frechet_distance(points, points) < 1e-6
    assert frechet_distance(points, points + 1) == pytest.approx(20, rel=1e-6)


def test_a_picture_on_the_edge_of_a_ball_is_covered() -> None:
    """Real 0, 1 and 3 reach 1, 1 and 2; of the others -1 is just within reach. They reach 7, 7 and 14."""
    real, made = torch.tensor([[0.0], [1], [3]]), torch.tensor([[-1.0], [6], [20]])
    assert precision_and_recall(real, made, neighbours=1) == pytest.approx((1 / 3, 1))
    assert precision_and_recall(made, real, neighbours=1) == pytest.approx((1, 1 / 3))


def test_features_that_are_large_beside_their_differences_are_told_apart() -> None:
    """In single precision nearly every picture was on the other manifold."""
    random = torch.Generator().manual_seed(0)
    real, made = (torch.randn(60, 16, generator=random) for _ in range(2))
    expected = precision_and_recall(real, made, 3)
    assert precision_and_recall(1e5 + real, 1e5 + made, 3) == pytest.approx(expected, abs=0.1)
    assert max(expected) < 0.9


def test_one_picture_a_class_has_no_spread() -> None:
    assert spread_within_classes(torch.eye(3), torch.arange(3)) == 0
    with_pair = torch.tensor([[0.0, 0], [3, 4], [9, 9]])
    assert spread_within_classes(with_pair, torch.tensor([1, 1, 0])) == 5
