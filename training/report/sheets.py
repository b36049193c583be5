"""Sheets: many pictures as one PNG.

In: pictures float32 (N,C,H,W) in [0,1]. Out: one uint8 picture (H',W',C) with a grid of them, or a PNG file.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from training.runs.writing import AGAIN, written_whole

GAP = 2  # pixels between pictures


def sheet(images: Tensor, columns: int) -> NDArray[np.uint8]:
    """Pictures (N,C,H,W) in [0,1], row by row -> (H',W',C) uint8 on a mid-grey ground."""
    count, channels, height, width = images.shape
    rows = -(-count // columns)
    canvas = torch.full((channels, rows * (height + GAP) + GAP, columns * (width + GAP) + GAP), 128, dtype=torch.uint8)
    pixels = (images.detach().float().cpu().clamp(0, 1) * 255).round().to(torch.uint8)
    for index in range(count):
        top = GAP + index // columns * (height + GAP)
        left = GAP + index % columns * (width + GAP)
        canvas[:, top : top + height, left : left + width] = pixels[index]
    return np.ascontiguousarray(canvas.permute(1, 2, 0).numpy())


def interleave(originals: Tensor, reconstructions: Tensor, columns: int) -> Tensor:
    """(N,C,H,W) twice -> (2N,C,H,W): a row of originals, the row of their reconstructions, and so on. `columns` | N."""
    rows = [images.reshape(-1, columns, *images.shape[1:]) for images in (originals, reconstructions)]
    return torch.stack(rows, dim=1).flatten(0, 2)


def write_png(pixels: NDArray[np.uint8], path: Path) -> None:
    """Pixels (H,W,C), C 1 or 3.

    Raises:
        WriteError: the file cannot be written; what was there stays.
    """
    picture = Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels)
    with written_whole(path, AGAIN) as partial:
        picture.save(partial, format="PNG")
