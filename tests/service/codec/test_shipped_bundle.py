"""The bundle that ships: the bytes of real digits against the information that its prior says they carry."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from benchmarks.picture_codecs import Vqserve
from benchmarks.rate_distortion import MNIST_TEST, read_mnist
from service.codec import decode, encode
from service.codec.container import Mode
from service.prior.likelihood import bits_of
from tests.conftest import PICTURES

BUNDLE = Path(__file__).parents[3] / "models" / "mnist"


@pytest.fixture(scope="module")
def vqserve() -> Vqserve:
    return Vqserve(BUNDLE)


def test_bytes_are_within_one_percent_of_the_ideal_code_length(vqserve: Vqserve) -> None:
    """100 test digits in one container; the ideal is the sum of -log2 p in floating point."""
    digits = np.stack(read_mnist(PICTURES.parent / "mnist" / MNIST_TEST))
    codes = vqserve.encode(digits)
    assert vqserve.model.prior is not None
    ideal_bytes = bits_of(vqserve.model, codes, np.full(len(codes), vqserve.model.prior.no_label)).sum() / 8
    data = encode(vqserve.model, codes, modes=[Mode.PRIOR])
    assert ideal_bytes <= len(data) - 11 + 1 <= 1.01 * ideal_bytes + 1
    assert np.array_equal(decode(vqserve.model, data).codes, codes)


def test_the_prior_is_the_shortest_mode_for_digits(vqserve: Vqserve) -> None:
    digits = np.stack(read_mnist(PICTURES.parent / "mnist" / MNIST_TEST)[:64])
    codes = vqserve.encode(digits)
    lengths = [len(encode(vqserve.model, codes, modes=[mode])) for mode in (Mode.PRIOR, Mode.TABLE, Mode.RAW)]
    assert lengths == sorted(lengths)
    assert len(encode(vqserve.model, codes)) == lengths[0]
