"""The table from which a sampler draws: how often a code comes, by how far its logit lies below the largest."""

from __future__ import annotations

import torch
from torch import Tensor

from training.models.prior import UNITS_PER_NAT


def frequency_table(codebook_size: int) -> Tensor:
    """int32 (L,): the frequency of a code whose logit lies d below the largest, round(2^F * exp(-d / 64)), at least 1.

    F is the largest with K * 2^F < 2^31, so that a cumulative table fits int32; the table ends where it reaches 1.
    """
    top = 31 - codebook_size.bit_length()
    distances = torch.arange(UNITS_PER_NAT * 24, dtype=torch.float64)
    table = torch.round(2**top * torch.exp(-distances / UNITS_PER_NAT)).clamp(min=1).to(torch.int32)
    first_one = int((table == 1).nonzero()[0])
    return table[: first_one + 1]
