"""The `vqserve` command: pictures to containers and back, new pictures, and how likely a picture is.

    vqserve encode --bundle models/mnist digits/ -o codes/
    vqserve decode --url http://localhost:8000 codes/ -o pictures/
    cat digit.png | vqserve encode --url http://localhost:8000 - > digit.vqc
    vqserve generate --url http://localhost:8000 --n 16 --label 3 -o threes/
    vqserve score --bundle models/mnist digits/
    vqserve info digit.vqc

In: files, folders or `-` for standard input. Out: files beside the inputs or at `--output`, `-` for standard output.
The exit status is 0, or 1 with a message when something could not be done, or 2 when an option could not be read; of
many files, those that can be done are. Refused before any work: two results of one name, several results for one file,
and, without `--force`, a result that would replace an input or a file that `--output` does not name.
"""

from __future__ import annotations

import argparse
import io
import json
import os.path
import signal
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import httpx
from PIL import Image

from vqserve.answers import Encoded, Pixels, Score
from vqserve.backends import Backend, backend_of, url_of
from vqserve.connection import proxies_set
from vqserve.files import (
    CONTAINER_SUFFIX,
    PICTURE_SUFFIXES,
    STANDARD,
    Files,
    in_words_of_options,
    is_one_file,
    named_files,
    read,
    stem_of,
)
from vqserve.operations import Wanted
from vqserve.options import Command, parse, parser
from vqserve.outputs import Output, let_go_of_standard_output, print_json
from vqserve.problems import FileError, VqserveError, without_userinfo
from vqserve.progress import Progress, say
from vqserve.together import encode_together

if TYPE_CHECKING:  # the header needs the service's modules, which online only `decode` loads
    from service.codec.container import Header

_MOST_LISTED = 100
_MOST_LOOKED_FOR = 1024  # drawn pictures, as many as a bundle draws at once
INTERRUPTED, READER_LEFT = 130, 141  # 128 and the signal, as of other programs: SIGINT, SIGPIPE


def main(arguments: Sequence[str] | None = None) -> int:
    """Without `arguments` it is the command of this process, which Ctrl-C then ends."""
    options = parse(parser(__doc__, SUMMARIES), arguments)
    try:
        options.run(options)
        if sys.stdout is not None:  # it may be closed
            sys.stdout.flush()  # here, where a reader that has left is expected, and not at the end of the process
    except KeyboardInterrupt:
        say("stopped")
        if arguments is None:  # by the signal itself: a shell's loop goes on after a command that ends with a status
            signal.signal(signal.SIGINT, signal.SIG_DFL)
            signal.raise_signal(signal.SIGINT)
        return INTERRUPTED
    except BrokenPipeError:
        let_go_of_standard_output()
        return READER_LEFT
    except httpx.TimeoutException as error:
        say(f"{without_userinfo(url_of(options))}{proxies_set()}: {in_words_of_options(error)}")
    except httpx.HTTPError as error:
        say(f"no answer from {without_userinfo(url_of(options))}{proxies_set()}: {error}")
    except (VqserveError, MemoryError) as error:
        say(in_words_of_options(error))
    except (OSError, Image.DecompressionBombError) as error:
        say(str(error))
    else:
        return 0
    return 1


def encode(options: argparse.Namespace) -> None:
    inputs = list(named_files(options.inputs, PICTURE_SUFFIXES))
    if options.together:
        encode_together(inputs, options)
        return
    suffix = ".json" if options.codes else CONTAINER_SUFFIX
    output = Output.of(options, is_one_file(options.inputs), inputs)
    targets = output.places([(path, stem_of(path) + suffix) for path in inputs])
    with backend_of(options) as backend, Files(len(inputs)) as files:
        for path, target in Progress(list(zip(inputs, targets, strict=True)), "encode"):
            with files.one(path):
                output.write(target, _encode_one(backend, read(path), options))


def _encode_one(backend: Backend, picture: bytes, options: argparse.Namespace) -> bytes:
    if options.codes:
        return _json_of(backend.encode([picture], options.fit, options.effort)[0])
    return backend.compress([picture], options.fit, options.effort)


def decode(options: argparse.Namespace) -> None:
    inputs, one = list(named_files(options.inputs, (CONTAINER_SUFFIX,))), is_one_file(options.inputs)
    results = [(path, name) for path in inputs for name in _names_by_header(path)]
    output = Output.of(options, one and len(results) <= 1, inputs)
    output.require_png("decode")
    output.places(results)
    for path in inputs:
        output.require_folder_of(path)
    taken: dict[str, Path] = {}
    with backend_of(options) as backend, Files(len(inputs)) as files:
        for path in Progress(inputs, "decode"):
            with files.one(path):
                pictures = backend.decompress(read(path))
                if one:  # of standard input it is known only now how many it holds
                    output = Output.of(options, len(pictures) == 1, inputs)
                targets = output.places([(path, name) for name in _picture_names(path, len(pictures))], taken)
                for target, pixels in zip(targets, pictures, strict=True):
                    output.write(target, _png(pixels))


def _names_by_header(container: Path) -> list[str]:
    """None for standard input and pipes, which can be read only once. None for what cannot be read: it is refused when
    its turn comes."""
    if str(container) == STANDARD or not os.path.isfile(container):  # noqa: PTH113 - False where it may not look
        return []
    try:
        header, _ = _header(read(container))
    except FileError:
        return []
    return _picture_names(container, header.pictures)


def _picture_names(container: Path, count: int) -> list[str]:
    stem = stem_of(container)
    return [f"{stem}.png"] if count == 1 else [f"{stem}-{index:03d}.png" for index in range(count)]


def generate(options: argparse.Namespace) -> None:
    wishes = {name: getattr(options, name) for name in Wanted.__annotations__ if name in options}
    given = {name: value for name, value in wishes.items() if value is not None}
    output = Output.of(options, single=options.n <= 1)
    output.require_png("generate")
    if options.seed is not None:  # where one of its pictures is there, it is refused before they are drawn
        _places_of_drawn(output, options.seed, min(options.n, _MOST_LOOKED_FOR))
    with backend_of(options) as backend:
        if options.label is not None:
            given["label"] = _number_of(options.label, backend)
        generation = backend.generate(cast(Wanted, given))
    targets = _places_of_drawn(output, generation.seed, len(generation.items))
    for target, item in zip(targets, generation.items, strict=True):
        output.write(target, item.png)


def _places_of_drawn(output: Output, seed: int, count: int) -> list[Path | None]:
    names = [f"seed{seed}-{index:03d}.png" for index in range(count)]
    return output.places([(Path(name), name) for name in names])


def score(options: argparse.Namespace) -> None:
    """One line of JSON a picture, so that the output sorts and filters with other tools."""
    inputs = list(named_files(options.inputs, PICTURE_SUFFIXES))
    with backend_of(options) as backend, Files(len(inputs)) as files:
        label = _number_of(options.label, backend)
        for path in Progress(inputs, "score", prints=True):
            with files.one(path):
                found = backend.score([read(path)], options.fit, label, options.by_label)[0]
                print_json(_score_fields(path, found))


def _number_of(label: int | str | None, backend: Backend) -> int | None:
    """Raises VqserveError where no label of the model has this name."""
    if label is None or isinstance(label, int):
        return label
    names = list(backend.labels())
    if not names:
        raise VqserveError("the model has no labels: leave --label out")
    if label not in names:
        raise VqserveError(f"no label of the model is called {label!r}: vqserve info lists their names")
    return names.index(label)


def _score_fields(path: Path, found: Score) -> dict[str, object]:
    numbers = {"bits": round(found.bits, 3), "bits_per_code": round(found.bits_per_code, 4)}
    if found.bits_by_label is None:
        return {"file": str(path), **numbers}
    return {"file": str(path), **numbers, "bits_by_label": [round(bits, 3) for bits in found.bits_by_label]}


def info(options: argparse.Namespace) -> None:
    """Of a container: its header, which needs no model. Otherwise: the models of the service or the bundle."""
    inputs = list(named_files(options.inputs, (CONTAINER_SUFFIX,)))
    with Files(len(inputs)) as files:
        for path in inputs:
            with files.one(path):
                print_json(_header_fields(path))
    if not inputs:
        with backend_of(options) as backend:
            print_json([_without_lists_of_codes(model) for model in backend.info()], indent=2)


def _header(data: bytes) -> tuple[Header, int]:
    """The header of a container, and its length in bytes."""
    from service.codec.container import read_header
    from service.codec.container_errors import ContainerError

    try:
        return read_header(data)
    except ContainerError as error:
        raise FileError(str(error)) from error


def _header_fields(path: Path) -> dict[str, object]:
    data = read(path)
    header, start = _header(data)
    fields = {
        "file": str(path),
        "mode": header.mode.name.lower(),
        "model": header.model.hex(),
        "name": header.name,
        "pictures": header.pictures,
        "size": header.size,
        "indexed": header.indexed,
        "header_bytes": start,
        "bytes": len(data),
    }
    return {name: value for name, value in fields.items() if value is not None}


def _png(pixels: Pixels) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels).save(stream, "PNG")
    return stream.getvalue()


def _json_of(encoded: Encoded) -> bytes:
    """What /decode takes, which checks the model and crops to the size."""
    return (json.dumps({**asdict(encoded), "codes": encoded.codes.tolist()}) + "\n").encode("ascii")


def _without_lists_of_codes(model: dict[str, Any]) -> dict[str, Any]:
    """What has a line for every code of a codebook is for programs: they ask the service, or read the manifest."""
    short: dict[str, Any] = {}
    for name, value in model.items():
        if not isinstance(value, list) or len(value) <= _MOST_LISTED or name == "labels":
            short[name] = _without_lists_of_codes(value) if isinstance(value, dict) else value
    return short


SUMMARIES: dict[Command, str] = {
    encode: "pictures to containers",
    decode: "containers to PNG pictures",
    generate: "new pictures from the prior",
    score: "bits that the prior needs for a picture",
    info: "the header of a container, or the models there are",
}

if __name__ == "__main__":
    sys.exit(main())
