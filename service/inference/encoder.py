"""The encoder of a bundle as one thing to run: images uint8 (B,H,W,C) in, codes int64 (B,h,w) out.

At full precision it is the fused graph `encoder_quantizer`. Where the settings let the encoder use TF32 or fp16 on a
GPU it is two sessions, since the search for the nearest vector must not: `encoder` at that precision, then `quantizer`
in float32. The latents between them stay on the device.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import onnxruntime as ort

from service.bundle import Bundle
from service.inference.sessions import CUDA, Session, SessionMaker
from service.settings import Settings


class EncoderThenQuantizer:
    """Two sessions behind the interface of one."""

    def __init__(self, encoder: ort.InferenceSession, quantizer: ort.InferenceSession, device: str) -> None:
        self._encoder, self._quantizer, self._device = encoder, quantizer, device

    def run(self, output_names: None, input_feed: Mapping[str, Any]) -> Any:
        """{"images": (B,H,W,C)} -> [codes (B,h,w)]. Bindings of its own a call: threads may share the sessions."""
        first, second = self._encoder.io_binding(), self._quantizer.io_binding()
        first.bind_cpu_input("images", input_feed["images"])
        first.bind_output("latents", self._device)
        self._encoder.run_with_iobinding(first)
        second.bind_ortvalue_input("latents", first.get_outputs()[0])
        second.bind_output("codes", "cpu")
        self._quantizer.run_with_iobinding(second)
        return second.copy_outputs_to_cpu()


def open_encoder(bundle: Bundle, settings: Settings, maker: SessionMaker) -> Session:
    if maker.provider != CUDA or settings.encoder_precision == "float32":
        fused: Session = maker.open(bundle.graph_path("encoder_quantizer"))
        return fused
    encoder = maker.open(bundle.graph_path("encoder"), settings.encoder_precision)
    return EncoderThenQuantizer(encoder, maker.open(bundle.graph_path("quantizer")), maker.device)
