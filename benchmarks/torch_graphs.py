"""PyTorch in the place of a bundle's prior graphs: the oracle of the codec's portability.

In: a trained `PixelCNN`. Out: `PriorGraphs` of the codec. For every position it computes the whole forward pass over
the rows that the position can see; what it keeps between calls are the codes so far, so it decodes one group at a time.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from service.prior_coding import Codes, Floats, Logits
from training.prior import PixelCNN


class TorchGraphs:
    def __init__(self, prior: PixelCNN) -> None:
        self._prior = prior.eval()
        self._seen_rows = len(prior.vertical) + 2  # its own, the one above, and one more a vertical layer
        self._codes = torch.zeros((0, 0, 0), dtype=torch.int64)  # (B, rows so far and the one to decode, w)
        self._labels = torch.zeros(0, dtype=torch.int64)
        self._column = 0

    def logits(self, codes: Codes, labels: Codes) -> Logits:
        return self._forward(torch.from_numpy(np.ascontiguousarray(codes)), torch.from_numpy(labels))

    def context(self, codes_above: Codes, labels: Codes, caches: Floats) -> tuple[Floats, Floats]:
        above = torch.from_numpy(codes_above)[:, None]
        known = above[:, :0] if (codes_above < 0).all() else torch.cat([self._codes[:, :-1], above], dim=1)
        self._codes = torch.cat([known, torch.zeros_like(above)], dim=1)
        self._labels = torch.from_numpy(labels)
        self._column = 0
        return np.zeros((*codes_above.shape, 1), np.float32), caches

    def pixel(self, context: Floats, previous_codes: Codes, left: Floats) -> tuple[Logits, Floats]:
        if self._column:
            self._codes[:, -1, self._column - 1] = torch.from_numpy(previous_codes)
        logits = self._forward(self._codes[:, -self._seen_rows :], self._labels)[:, -1, self._column]
        self._column += 1
        return np.ascontiguousarray(logits), left

    def _forward(self, codes: Tensor, labels: Tensor) -> Logits:
        with torch.no_grad():
            logits: Logits = self._prior(codes, labels).numpy().astype(np.int32)
        return logits
