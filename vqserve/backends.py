"""What the command line needs of vqserve, from a service or from a bundle on disk.

In: `--url` or `--bundle`. Out: a `Backend`. The online one needs httpx only; the other is in vqserve/offline.py.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

from vqserve.answers import Encoded, Generation, ModelInfo, Pixels, Score
from vqserve.operations import Wanted
from vqserve.problems import ProblemError, VqserveError
from vqserve.progress import say
from vqserve.retries import RETRIED_ERRORS, RETRIED_STATUSES
from vqserve.synchronous import Client

T = TypeVar("T")
PAUSE_S = 1.0  # between the calls of a service that was there, each of which is tried a few times


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


@dataclass
class Online:
    """A running service. One that has answered, and then is gone or too busy, is waited for, up to `patience_s` each
    time, so that a restart does not end a long list of files. Before, it may be the wrong URL, which is said after
    a few tries, or one wait for a connection."""

    client: Client
    model: str | None
    patience_s: float
    answered: bool = False

    def encode(self, pictures: Sequence[bytes], fit: str, effort: float) -> list[Encoded]:
        return self._ask(lambda: self.client.encode(*pictures, model=self.model, fit=fit, effort=effort))

    def compress(self, pictures: Sequence[bytes], fit: str, effort: float) -> bytes:
        return self._ask(lambda: self.client.compress(*pictures, model=self.model, fit=fit, effort=effort))

    def decompress(self, container: bytes) -> Pixels:
        return self._ask(lambda: self.client.decompress(container, model=self.model))

    def generate(self, wanted: Wanted) -> Generation:
        return self._ask(lambda: self.client.generate(model=self.model, **wanted))

    def score(self, pictures: Sequence[bytes], fit: str, label: int | None, by_label: bool) -> list[Score]:
        return self._ask(
            lambda: self.client.score(*pictures, model=self.model, fit=fit, label=label, by_label=by_label)
        )

    def labels(self) -> Sequence[str]:
        models = self._ask(self._models)
        return next((model.labels or () for model in models if self.model or model.details.get("default")), ())

    def info(self) -> list[dict[str, Any]]:
        return [model.details for model in self._ask(self._models)]

    def _models(self) -> list[ModelInfo]:
        return self.client.models() if self.model is None else [self.client.model(self.model)]

    def _ask(self, call: Callable[[], T]) -> T:
        """Raises as `call`, which has tried a few times itself."""
        ends, said = time.monotonic() + self.patience_s, False
        while True:
            try:
                found = call()
            except (ProblemError, *RETRIED_ERRORS) as error:
                pause_s = PAUSE_S
                if isinstance(error, ProblemError):
                    if error.status not in RETRIED_STATUSES:
                        self.answered = True
                        raise
                    pause_s = max(PAUSE_S, error.retry_after_s or 0)
                if not self.answered or time.monotonic() + pause_s >= ends:
                    raise
                if not said:
                    say(f"the service is gone or too busy ({error}): trying again for up to {self.patience_s:g} s")
                said = True
                time.sleep(pause_s)
            else:
                self.answered = True
                return found


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
            yield Online(client, options.model, options.timeout)
    else:
        raise VqserveError("say where to work: --bundle FOLDER, --url URL, or the variable VQSERVE_URL")


def url_of(options: argparse.Namespace) -> str:
    """Empty where there is none."""
    return options.url or os.environ.get("VQSERVE_URL", "")
