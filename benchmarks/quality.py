"""How good a decoded picture is, and how rate-distortion curves compare. In: uint8 pictures or curves. Out: numbers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import avg_pool2d, conv2d

Pixels = NDArray[np.uint8]

# The weights of MS-SSIM's five scales (Wang, Simoncelli and Bovik, 2003).
SCALE_WEIGHTS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)
WINDOW = 11  # pixels of the Gaussian window at every scale
WINDOW_SIGMA = 1.5
FEWEST_POINTS = 4  # that a cubic through a curve needs
LEAST_OVERLAP_DB = 1.0


def mean_squared_error(first: Pixels, second: Pixels) -> float:
    """Mean over pixels and channels, on [0,1]."""
    difference = first.astype(np.float64) - second
    return float((difference**2).mean() / 255**2)


def psnr_db(mse: float) -> float:
    return math.inf if mse == 0 else -10 * math.log10(mse)


def ms_ssim(first: Pixels, second: Pixels) -> float:
    """uint8 (H,W,C), sides of at least `WINDOW`. A small picture uses as many of the scales as the window fits, their
    weights made to sum to 1.

    Means, variances and covariance under the window, which is separable; only where it lies inside the picture.
    """
    # a scale is half of the one before, rounded down
    scales = sum(min(first.shape[:2]) >> scale >= WINDOW for scale in range(len(SCALE_WEIGHTS)))
    weights = np.array(SCALE_WEIGHTS[:scales]) / sum(SCALE_WEIGHTS[:scales])
    # float32: its error is a thousandth of the constants that SSIM adds; torch convolves float64 far slower.
    x, y = (torch.from_numpy(pixels / np.float32(255)).permute(2, 0, 1)[:, None] for pixels in (first, second))
    product = 1.0
    for scale, weight in enumerate(weights):
        luminance, contrast = _similarities(x, y)
        last = scale == scales - 1
        similarity = (luminance * contrast if last else contrast).mean()
        product *= max(float(similarity), 0.0) ** weight
        x, y = avg_pool2d(x, 2), avg_pool2d(y, 2)
    return float(product)


def _similarities(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """The two factors of SSIM, everywhere."""
    mean_x, mean_y = _blurred(x), _blurred(y)
    variances = _blurred(x * x) - mean_x**2 + _blurred(y * y) - mean_y**2
    covariance = _blurred(x * y) - mean_x * mean_y
    luminance = (2 * mean_x * mean_y + 0.01**2) / (mean_x**2 + mean_y**2 + 0.01**2)
    return luminance, (2 * covariance + 0.03**2) / (variances + 0.03**2)


def _blurred(x: Tensor) -> Tensor:
    distance = torch.arange(WINDOW, dtype=x.dtype) - WINDOW // 2
    window = torch.exp(-(distance**2) / (2 * WINDOW_SIGMA**2))
    window = window / window.sum()
    return conv2d(conv2d(x, window.reshape(1, 1, -1, 1)), window.reshape(1, 1, 1, -1))


def at_rate(curve: Sequence[tuple[float, float]], rate: float) -> float | None:
    """The quality of a curve of (rate, quality) at `rate`, linear in the logarithm of the rate; None outside it."""
    points = sorted(curve)
    rates = [point[0] for point in points]
    if not points or not rates[0] <= rate <= rates[-1]:
        return None
    return float(np.interp(math.log(rate), np.log(rates), [point[1] for point in points]))


@dataclass(frozen=True)
class BDRate:
    """Over the qualities that two curves have in common, in dB."""

    bd_rate_percent: float
    low_db: float
    high_db: float


def bd_rate(curve: Sequence[tuple[float, float]], reference: Sequence[tuple[float, float]]) -> BDRate | None:
    """Bjontegaard's delta: how many percent more bytes `curve` takes than `reference` at equal quality, on average.

    Both are points (rate, quality in dB), through which cubics are fitted. None where one has fewer than four points or
    they have less than `LEAST_OVERLAP_DB` in common: a mean over less would speak of a point, not of a curve.
    """
    if min(len(curve), len(reference)) < FEWEST_POINTS:
        return None
    low = max(min(quality for _, quality in one) for one in (curve, reference))
    high = min(max(quality for _, quality in one) for one in (curve, reference))
    if high - low < LEAST_OVERLAP_DB:
        return None
    means = []
    for one in (curve, reference):
        integral = np.polynomial.Polynomial.fit([q for _, q in one], [math.log(r) for r, _ in one], 3).integ()
        means.append((integral(high) - integral(low)) / (high - low))
    return BDRate(100 * (math.exp(means[0] - means[1]) - 1), low, high)
