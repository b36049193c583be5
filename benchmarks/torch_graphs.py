"""PyTorch in the place of a bundle's prior graphs: the oracle of the codec's portability.

In: a trained `PixelCNN`. Out: `PriorGraphs` of the codec. The vertical stack runs over all rows so far once a row, the
horizontal stack over the whole row once a code: nothing is remembered but the codes, so it decodes one group at a time.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from service.codec.prior_coding import Codes, Floats, Logits
from training.models.prior import PixelCNN


class TorchGraphs:
    def __init__(self, prior: PixelCNN) -> None:
        self._prior = prior.eval()
        self._codes = torch.zeros((0, 0, 0), dtype=torch.int64)  # (B, rows so far and the one to decode, w)
        self._biases: tuple[Tensor, ...] = ()
        self._contexts: tuple[Tensor, ...] = ()  # (B,1,w,2C) a horizontal layer, of the row to decode
        self._column = 0

    @torch.no_grad()
    def logits(self, codes: Codes, labels: Codes) -> Logits:
        return _integers(self._prior(torch.from_numpy(np.ascontiguousarray(codes)), torch.from_numpy(labels)))

    @torch.no_grad()
    def context(self, codes_above: Codes, labels: Codes, caches: Floats) -> tuple[Floats, Floats]:
        above = torch.from_numpy(codes_above)[:, None]
        known = above[:, :0] if (codes_above < 0).all() else torch.cat([self._codes[:, :-1], above], dim=1)
        self._codes = torch.cat([known, torch.zeros_like(above)], dim=1)
        self._biases = self._prior.label_biases(torch.from_numpy(labels))
        contexts = self._prior.down_rows(self._embedded(self._codes), self._biases)
        self._contexts = tuple(context[:, -1:] for context in contexts)
        self._column = 0
        return np.zeros((*codes_above.shape, 1), np.float32), caches

    @torch.no_grad()
    def pixel(self, context: Floats, previous_codes: Codes, left: Floats) -> tuple[Logits, Floats]:
        if self._column:
            self._codes[:, -1, self._column - 1] = torch.from_numpy(previous_codes)
        row = self._embedded(self._codes[:, -1:])
        logits = self._prior.along_rows(row, self._contexts, self._biases)[:, 0, self._column]
        self._column += 1
        return _integers(logits), left

    def _embedded(self, codes: Tensor) -> Tensor:
        """(B,h,w) -> (B,h,w,C); what stands for codes to come is seen by none of them."""
        return self._prior.quantized_embedding()[codes]


def _integers(logits: Tensor) -> Logits:
    return np.ascontiguousarray(logits.numpy().astype(np.int32))
