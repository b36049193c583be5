"""What the command line needs of vqserve, from a service or from a bundle on disk.

In: `--url` or `--bundle`. Out: a `Backend`. The online one needs httpx only; the other is in vqserve/offline.py.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from vqserve.answers import Encoded, Generation, Score
from vqserve.operations import Wanted
from vqserve.problems import VqserveError
from vqserve.synchronous import Client

Pixels = NDArray[np.uint8]


class Backend(Protocol):
    def encode(self, pictures: Sequence[bytes], fit: str, effort: float) -> list[Encoded]:
        """Picture files -> codes (h,w) of each, with its size."""

    def compress(self, pictures: Sequence[bytes], fit: str, effort: float) -> bytes:
        """Picture files of one size -> one container."""

    def decompress(self, container: bytes) -> Pixels:
        """-> uint8 (B,H,W,C)."""

    def generate(self, wanted: Wanted) -> Generation: ...

    def score(self, pictures: Sequence[bytes], fit: str, label: int | None, by_label: bool) -> list[Score]: ...

    def labels(self) -> Sequence[str]:
        """Their names, in the order of their numbers; none of a model without labels."""

    def info(self) -> list[dict[str, Any]]:
        """What the models are."""


@dataclass(frozen=True)
class Online:
    """A running service."""

    client: Client
    model: str | None

    def encode(self, pictures: Sequence[bytes], fit: str, effort: float) -> list[Encoded]:
        return self.client.encode(*pictures, model=self.model, fit=fit, effort=effort)

    def compress(self, pictures: Sequence[bytes], fit: str, effort: float) -> bytes:
        return self.client.compress(*pictures, model=self.model, fit=fit, effort=effort)

    def decompress(self, container: bytes) -> Pixels:
        return self.client.decompress(container, model=self.model)

    def generate(self, wanted: Wanted) -> Generation:
        return self.client.generate(model=self.model, **wanted)

    def score(self, pictures: Sequence[bytes], fit: str, label: int | None, by_label: bool) -> list[Score]:
        return self.client.score(*pictures, model=self.model, fit=fit, label=label, by_label=by_label)

    def labels(self) -> Sequence[str]:
        if self.model is not None:
            return self.client.model(self.model).labels or ()
        return next((model.labels or () for model in self.client.models() if model.details.get("default")), ())

    def info(self) -> list[dict[str, Any]]:
        models = self.client.models() if self.model is None else [self.client.model(self.model)]
        return [model.details for model in models]


@contextmanager
def backend_of(options: argparse.Namespace) -> Iterator[Backend]:
    """Raises VqserveError where neither a service nor a bundle is named, or the one that is cannot be used."""
    url = url_of(options)
    if options.bundle is not None:
        if options.model is not None:
            raise VqserveError("--model chooses one of a service: leave it out, --bundle has one")
        try:
            from vqserve.offline import Offline
        except ModuleNotFoundError as missing:
            fix = "pip install '.[service,cpu]' in the repository, or pass --url"
            raise VqserveError(f"{missing}: to use a bundle, {fix}") from missing
        yield Offline(options.bundle)
    elif url:
        key = options.key or os.environ.get("VQSERVE_KEY")
        with Client(url, key=key, timeout_s=options.timeout) as client:
            yield Online(client, options.model)
    else:
        raise VqserveError("say where to work: --bundle FOLDER, --url URL, or the variable VQSERVE_URL")


def url_of(options: argparse.Namespace) -> str:
    """Empty where there is none."""
    return options.url or os.environ.get("VQSERVE_URL", "")
