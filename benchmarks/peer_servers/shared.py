"""What every peer does for one request, the same lines for all. In: the bytes of a picture. Out: `{"codes": [[..]]}`.

No import of `service`: each peer lives in its own environment with onnxruntime, NumPy and Pillow. PEER_ENCODER names
the ONNX file, PEER_PORT the port.
"""

from __future__ import annotations

import io
import os
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray
from PIL import Image


def port() -> int:
    return int(os.environ["PEER_PORT"])


def open_session() -> ort.InferenceSession:
    """One thread, as in the service that is compared."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    return ort.InferenceSession(os.environ["PEER_ENCODER"], options, providers=["CPUExecutionProvider"])


def to_pixels(picture: bytes) -> NDArray[np.uint8]:
    """A grey PNG -> uint8 (H,W,1)."""
    return np.asarray(Image.open(io.BytesIO(picture)).convert("L"))[..., None]


def encode(session: ort.InferenceSession, pictures: list[bytes]) -> list[dict[str, Any]]:
    """One run over all the pictures."""
    codes = session.run(None, {"images": np.stack([to_pixels(picture) for picture in pictures])})[0]
    return [{"codes": one.tolist()} for one in codes]
