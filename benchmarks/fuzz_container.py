"""Mutated containers by the million: does the decoder ever answer wrong codes, crash or hang?

    python -m benchmarks.fuzz_container

In: a seed. Out: docs/results/fuzz_container.json, the hardest streams in tests/service/codec/fixtures/nasty.json, and
one line of JSON. The model is `tiny_prior`, so that a decode takes a fraction of a millisecond. A run that is stopped
goes on where it stopped, if the code is still the same; the streams of a batch depend on the seed and the batch's
number only. The exit status is 1 if a stream counts as silent.

A stream counts as silent if it decodes without an error although it is none of the containers that were encoded. A
32-bit checksum lets one altered stream in 2**32 through: expect 0.0002 among a million, so zero is no proof of more.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import random
import sys
import time
import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.report import ROOT, command_line, machine, write_result
from benchmarks.tiny_prior import draw_codes, tiny_model
from service.codec import Limits, decode, encode
from service.codec.codec_model import CodecModel
from service.codec.container import FIXED_BYTES, Mode
from service.codec.container_errors import ContainerError

FIXTURES = ROOT / "tests" / "service" / "codec" / "fixtures" / "nasty.json"
BATCH = 10_000
LIMITS = Limits(max_pictures=64, max_codes=400)  # a hostile header that passes is decoded in milliseconds
FIXTURE_COUNT = 200
SIZES = ((12, 16), (1, 1), (23, 30))

Mutation = Callable[[random.Random, bytearray, list[bytes]], bytes]


def base_containers(model: CodecModel) -> list[bytes]:
    """Every mode and option, one and several pictures, native and other sizes."""
    containers = []
    for seed, size in enumerate(SIZES):
        for pictures in (1, 3):
            codes = draw_codes(model, (pictures, *model.grid_of(size)), seed)
            labels = np.arange(pictures) % 4
            for mode in Mode:
                for indexed in (False, True) if mode != Mode.LABELLED else (False,):
                    options = {"indexed": indexed, "named": pictures == 3 and size != SIZES[0]}
                    containers.append(encode(model, codes, size=size, labels=labels, modes=[mode], **options))
    return containers


def flip_bits(source: random.Random, data: bytearray, _: list[bytes]) -> bytes:
    for _unused in range(source.choice((1, 1, 2, 3, 8))):
        data[source.randrange(len(data))] ^= 1 << source.randrange(8)
    return bytes(data)


def set_bytes(source: random.Random, data: bytearray, _: list[bytes]) -> bytes:
    for _unused in range(source.choice((1, 2, 4))):
        data[source.randrange(len(data))] = source.choice((0, 1, 127, 128, 255, source.randrange(256)))
    return bytes(data)


def truncate(source: random.Random, data: bytearray, _: list[bytes]) -> bytes:
    return bytes(data[: source.randrange(len(data))])


def append(source: random.Random, data: bytearray, _: list[bytes]) -> bytes:
    return bytes(data) + source.choice((bytes(source.randint(1, 9)), source.randbytes(source.randint(1, 9))))


def delete(source: random.Random, data: bytearray, _: list[bytes]) -> bytes:
    start = source.randrange(len(data))
    del data[start : start + source.randint(1, 4)]
    return bytes(data)


def insert(source: random.Random, data: bytearray, _: list[bytes]) -> bytes:
    start = source.randrange(len(data) + 1)
    data[start:start] = source.randbytes(source.randint(1, 4))
    return bytes(data)


def swap(source: random.Random, data: bytearray, _: list[bytes]) -> bytes:
    first, second = source.randrange(len(data)), source.randrange(len(data))
    data[first], data[second] = data[second], data[first]
    return bytes(data)


def splice(source: random.Random, data: bytearray, others: list[bytes]) -> bytes:
    """The head of one container and the tail of another: both halves are plausible."""
    other = source.choice(others)
    return bytes(data[: source.randrange(len(data))]) + other[source.randrange(len(other)) :]


def change_header(source: random.Random, data: bytearray, _: list[bytes]) -> bytes:
    """Flags, extension, count and size, where structure lies; never the checksum."""
    for _unused in range(source.choice((1, 2))):
        position = source.choice((2, *range(FIXED_BYTES, min(len(data), FIXED_BYTES + 6))))
        data[position] = source.randrange(256)
    return bytes(data)


def hostile_header(source: random.Random, data: bytearray, _: list[bytes]) -> bytes:
    """Valid magic and model, random fields and payload."""
    flags = bytes([0x10 | source.randrange(16)])
    return bytes(data[:2]) + flags + bytes(data[3:6]) + source.randbytes(source.randint(0, 24))


def change_payload(source: random.Random, data: bytearray, _: list[bytes]) -> bytes:
    """Random bytes at the end: most are accepted by the range decoder and reach the checksum."""
    count = source.randint(1, max(1, len(data) - FIXED_BYTES))
    return bytes(data[:-count]) + source.randbytes(count)


MUTATIONS: tuple[Mutation, ...] = (
    flip_bits,
    set_bytes,
    truncate,
    append,
    delete,
    insert,
    swap,
    splice,
    change_header,
    hostile_header,
    change_payload,
)


@dataclass
class Outcome:
    error: str | None  # the type of the ContainerError; None where the stream decoded
    seconds: float


def attempt(model: CodecModel, data: bytes) -> Outcome:
    """Decode. Anything but an answer or a `ContainerError` propagates: it is a bug."""
    start, error = time.perf_counter(), None
    try:
        decode(model, data, LIMITS)
    except ContainerError as refused:
        error = refused.type
    return Outcome(error, time.perf_counter() - start)


def code_digest() -> str:
    """Of everything that decides what a stream becomes: the service's modules and this benchmark's."""
    paths = [*sorted((ROOT / "service").rglob("*.py")), ROOT / "benchmarks" / "tiny_prior.py", Path(__file__)]
    return hashlib.sha256(b"\0".join(path.read_bytes() for path in paths)).hexdigest()


def new_state(seed: int) -> dict[str, Any]:
    """What a run keeps between batches, as JSON."""
    numbers = {"seed": seed, "code": code_digest(), "batches": 0, "seconds": 0.0, "slowest_decode_ms": 0.0}
    return {**numbers, "outcomes": {}, "silent": [], "nasty": {}}


def run_batch(model: CodecModel, bases: list[bytes], seed: int, batch: int, state: dict[str, Any]) -> None:
    source = random.Random(f"{seed}:{batch}")
    valid, counts, slowest = set(bases), Counter(state["outcomes"]), float(state["slowest_decode_ms"])
    for _ in range(BATCH):
        mutation = source.choice(MUTATIONS)
        data = mutation(source, bytearray(source.choice(bases)), bases)
        outcome = attempt(model, data)
        slowest = max(slowest, 1000 * outcome.seconds)
        if data in valid:
            counts["unchanged"] += 1
        elif outcome.error is None:
            state["silent"].append(data.hex())
        else:
            counts[outcome.error] += 1
            keep(state["nasty"], outcome.error, mutation.__name__, data)
    state.update(outcomes=dict(sorted(counts.items())), slowest_decode_ms=round(slowest, 2), batches=batch + 1)


def keep(nasty: dict[str, list[str]], error: str, mutation: str, data: bytes) -> None:
    """A few of every kind of error, mutation and mode, so that the fixtures are unlike each other."""
    mode = data[2] & 3 if len(data) > 2 else 0
    kept = nasty.setdefault(f"{error} {mutation} {mode}", [])
    if len(kept) < 3 and data.hex() not in kept:
        kept.append(data.hex())


def write_fixtures(nasty: dict[str, list[str]]) -> None:
    """The streams that got furthest: at the checksum first, then damaged payloads, then impossible headers."""
    order = ("checksum", "damaged", "over-limit", "header", "model", "format-version", "magic")
    kinds = sorted(nasty, key=lambda kind: (order.index(kind.split()[0].removeprefix("container-")), kind))
    ranked = [(kind, nasty[kind][depth]) for depth in range(3) for kind in kinds if depth < len(nasty[kind])]
    entries = [{"error": kind.split()[0], "bytes": data} for kind, data in ranked[:FIXTURE_COUNT]]
    FIXTURES.write_text("[\n" + ",\n".join(map(json.dumps, entries)) + "\n]\n", encoding="ascii")


def main(given: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--streams", type=int, default=1_010_000)  # 0.5 % come out unchanged
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--state", type=Path, default=ROOT / "runs" / "fuzz_container.json")
    arguments = parser.parse_args(given)
    warnings.simplefilter("error")
    np.seterr(all="raise")
    result: dict[str, Any] = {"command": command_line(), "machine": machine()}
    model = tiny_model()
    bases = base_containers(model)
    state = new_state(arguments.seed)
    if arguments.state.exists():
        state = json.loads(arguments.state.read_text())
        if state["seed"] != arguments.seed or state.get("code") != code_digest():
            raise SystemExit(
                f"{arguments.state} belongs to another seed or other code: remove it, or pass another --state"
            )
    arguments.state.parent.mkdir(exist_ok=True)
    for batch in range(state["batches"], -(-arguments.streams // BATCH)):
        start = time.perf_counter()
        run_batch(model, bases, arguments.seed, batch, state)
        state["seconds"] = round(state["seconds"] + time.perf_counter() - start, 1)
        arguments.state.write_text(json.dumps(state))
    write_fixtures(state["nasty"])
    altered = state["batches"] * BATCH - state["outcomes"].get("unchanged", 0)
    result |= {"altered_streams": altered, "silent_corruptions": len(state["silent"])}
    result |= {name: state[name] for name in ("outcomes", "slowest_decode_ms", "seconds", "seed")}
    write_result("fuzz_container", result)
    print(json.dumps(result))
    return 1 if state["silent"] else 0


if __name__ == "__main__":
    sys.exit(main())
