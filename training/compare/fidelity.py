"""How close a set of made pictures is to a set of real ones, in the features of a classifier.

In: features (N,F) of both sets. Out: the Frechet distance of the two Gaussians (arXiv:1706.08500), precision and recall
of the two manifolds (arXiv:1904.06991), and the spread of pictures within a class.
"""

from __future__ import annotations

import torch
from torch import Tensor


def frechet_distance(real: Tensor, made: Tensor) -> float:
    """||m_r - m_m||^2 + tr(C_r + C_m - 2 (C_r C_m)^(1/2)), in float64.

    The trace of the root is the sum of the roots of the eigenvalues of C_r^(1/2) C_m C_r^(1/2), which is symmetric.
    """
    mean_real, covariance_real = _moments(real)
    mean_made, covariance_made = _moments(made)
    values, vectors = torch.linalg.eigh(covariance_real)
    root = vectors * values.clamp(min=0).sqrt() @ vectors.T
    cross = torch.linalg.eigvalsh(root @ covariance_made @ root).clamp(min=0).sqrt().sum()
    distance = (mean_real - mean_made).square().sum() + covariance_real.trace() + covariance_made.trace() - 2 * cross
    return float(distance.clamp(min=0))


def _moments(features: Tensor) -> tuple[Tensor, Tensor]:
    features = features.double()
    return features.mean(0), torch.cov(features.T)


def precision_and_recall(real: Tensor, made: Tensor, neighbours: int) -> tuple[float, float]:
    """Part of `made` that lies on the manifold of `real`, and the reverse.

    A manifold is the union of balls around its points, each reaching to the point's `neighbours`-th nearest neighbour.
    """
    real, made = real.double(), made.double()  # the distances of close features are differences of large numbers
    between = torch.cdist(made, real)  # (M,R)
    precision = (between <= _radii(real, neighbours)).any(1).double().mean()
    recall = (_radii(made, neighbours) >= between.T).any(1).double().mean()
    return float(precision), float(recall)


def _radii(points: Tensor, neighbours: int) -> Tensor:
    """(N,F) -> (N,): distance to the `neighbours`-th nearest other point; the nearest of all is the point itself."""
    return torch.cdist(points, points).kthvalue(neighbours + 1, dim=1).values


def spread_within_classes(features: Tensor, labels: Tensor) -> float:
    """Mean distance between two different pictures of one class, averaged over the classes that have at least two."""
    spreads = []
    for label in labels.unique():  # type: ignore[no-untyped-call]
        points = features[labels == label].double()
        if len(points) > 1:
            spreads.append(torch.pdist(points).mean())
    return float(torch.stack(spreads).mean()) if spreads else 0.0
