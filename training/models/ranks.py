"""Tensors of all processes of a training, which alone has its own. In: a tensor of each. Out: the same one in all."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor


def sum_over_ranks(tensor: Tensor) -> Tensor:
    """The sum, in place of the tensor given: one shape in all processes."""
    if dist.is_available() and dist.is_initialized():
        dist.all_reduce(tensor)
    return tensor


def mean_over_ranks(tensor: Tensor) -> Tensor:
    """The mean, with the gradient of this process's own tensor: DDP takes the mean of the gradients."""
    if not (dist.is_available() and dist.is_initialized()):
        return tensor
    mean = sum_over_ranks(tensor.detach().clone()) / dist.get_world_size()
    return tensor + (mean - tensor).detach()


def on_any_rank(told: bool, device: torch.device) -> bool:
    """Whether any process is told so; all of them ask at the same point, on the device that they train on."""
    if not (dist.is_available() and dist.is_initialized()):
        return told
    return bool(sum_over_ranks(torch.tensor(float(told), device=device)))


def gather_over_ranks(rows: Tensor) -> Tensor:
    """(N, ...) of each -> (processes * N, ...), in the order of the processes."""
    if not (dist.is_available() and dist.is_initialized()):
        return rows
    parts = [torch.empty_like(rows) for _ in range(dist.get_world_size())]
    dist.all_gather(parts, rows.contiguous())
    return torch.cat(parts)


def from_first_rank(tensor: Tensor) -> Tensor:
    """That of the first process, in place of the tensor given."""
    if dist.is_available() and dist.is_initialized():
        dist.broadcast(tensor, 0)
    return tensor
