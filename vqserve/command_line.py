"""The `vqserve` command: pictures to containers and back, new pictures, and how likely a picture is.

    vqserve encode --bundle models/mnist digits/ -o codes/
    vqserve decode --url http://localhost:8000 codes/ -o pictures/
    cat digit.png | vqserve encode --url http://localhost:8000 - > digit.vqc
    vqserve generate --url http://localhost:8000 --n 16 --label 3 -o threes/
    vqserve score --bundle models/mnist digits/
    vqserve info digit.vqc

In: files, folders or `-` for standard input. Out: files beside the output's name, `-` for standard output. The exit
status is 0, or 1 with a message when something could not be done; of many files, those that can be done are. Before any
work it is refused that two results have one name, and that one beside its input would replace a file, unless `--force`
says so.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, cast

import httpx
import numpy as np
from PIL import Image

from vqserve.backends import Backend, Online, Pixels
from vqserve.files import (
    CONTAINER_SUFFIX,
    PICTURE_SUFFIXES,
    STANDARD,
    Files,
    in_words_of_options,
    named_files,
    place,
    places,
    read,
    write,
)
from vqserve.operations import Wanted
from vqserve.problems import VqserveError
from vqserve.progress import Progress
from vqserve.synchronous import Client

if TYPE_CHECKING:  # the header needs the service's modules, which the online command does not load
    from service.container import Header

FITS = ("exact", "resize", "pad")
TOGETHER = 256  # pictures a container: the service's limit of one request


def main(arguments: Sequence[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    try:
        options.run(options)
    except httpx.HTTPError as error:
        print(f"vqserve: no answer from {_url(options)}: {error}", file=sys.stderr)
    except (VqserveError, OSError, Image.DecompressionBombError) as error:
        print(f"vqserve: {error}", file=sys.stderr)
    else:
        return 0
    return 1


def encode(options: argparse.Namespace) -> None:
    inputs = list(named_files(options.inputs, PICTURE_SUFFIXES))
    if options.together:
        _encode_together(inputs, options)
        return
    suffix = ".json" if options.codes else CONTAINER_SUFFIX
    targets = places(options, [(path, path.stem + suffix) for path in inputs])
    with _backend(options) as backend, Files(len(inputs)) as files:
        for path, target in Progress(list(zip(inputs, targets, strict=True)), "encode"):
            with files.one(path):
                write(target, _encode_one(backend, read(path), options))


def _encode_one(backend: Backend, picture: bytes, options: argparse.Namespace) -> bytes:
    if options.codes:
        return _json_of(backend.encode([picture], options.fit, options.effort)[0])
    return backend.compress([picture], options.fit, options.effort)


def _encode_together(inputs: list[Path], options: argparse.Namespace) -> None:
    groups = [inputs[start : start + TOGETHER] for start in range(0, len(inputs), TOGETHER)]
    names = ["pictures"] if len(groups) == 1 else [f"pictures-{number:03d}" for number in range(len(groups))]
    results = [(group[0], name + CONTAINER_SUFFIX) for group, name in zip(groups, names, strict=True)]
    targets = places(options, results)
    with _backend(options) as backend:
        for group, target in Progress(list(zip(groups, targets, strict=True)), "encode"):
            try:
                write(target, backend.compress([read(path) for path in group], options.fit, options.effort))
            except VqserveError as error:
                raise VqserveError(f"{group[0]} to {group[-1]}: {in_words_of_options(error)}") from error


def decode(options: argparse.Namespace) -> None:
    inputs = list(named_files(options.inputs, (CONTAINER_SUFFIX,)))
    places(options, [(path, name) for path in inputs for name in _names_by_header(path)])
    with _backend(options) as backend, Files(len(inputs)) as files:
        for path in Progress(inputs, "decode"):
            with files.one(path):
                pictures = backend.decompress(read(path))
                single = len(inputs) == 1 and len(pictures) == 1
                for name, pixels in zip(_picture_names(path, len(pictures)), pictures, strict=True):
                    write(place(options.output, path, name, single), _png(pixels))


def _names_by_header(container: Path) -> list[str]:
    """None for standard input, which can be read only once, and whose name no file has. None for what cannot be read:
    it is refused when its turn comes."""
    if str(container) == STANDARD:
        return []
    try:
        header, _ = _header(read(container))
    except VqserveError:
        return []
    return _picture_names(container, header.pictures)


def _picture_names(container: Path, count: int) -> list[str]:
    if count == 1:
        return [f"{container.stem}.png"]
    return [f"{container.stem}-{index:03d}.png" for index in range(count)]


def generate(options: argparse.Namespace) -> None:
    wishes = {name: getattr(options, name) for name in Wanted.__annotations__ if name in options}
    given = {name: value for name, value in wishes.items() if value is not None}
    with _backend(options) as backend:
        generation = backend.generate(cast(Wanted, given))
    names = [f"seed{generation.seed}-{index:03d}.png" for index in range(len(generation.items))]
    targets = places(options, [(Path(name), name) for name in names])
    for target, item in zip(targets, generation.items, strict=True):
        write(target, item.png)


def score(options: argparse.Namespace) -> None:
    """One line of JSON a picture, so that the output sorts and filters with other tools."""
    inputs = list(named_files(options.inputs, PICTURE_SUFFIXES))
    with _backend(options) as backend, Files(len(inputs)) as files:
        for path in Progress(inputs, "score"):
            with files.one(path):
                found = backend.score([read(path)], options.fit)[0]
                line = {"file": str(path), "bits": round(found.bits, 3), "bits_per_code": round(found.bits_per_code, 4)}
                print(json.dumps(line))


def info(options: argparse.Namespace) -> None:
    """Of a container: its header, which needs no model. Otherwise: the models of the service or the bundle."""
    inputs = list(named_files(options.inputs, (CONTAINER_SUFFIX,)))
    with Files(len(inputs)) as files:
        for path in inputs:
            with files.one(path):
                print(json.dumps(_header_fields(path)))
    if not inputs:
        with _backend(options) as backend:
            print(json.dumps(backend.info(), indent=2))


def _header(data: bytes) -> tuple[Header, int]:
    """The header of a container, and its length in bytes."""
    from service.container import read_header
    from service.container_errors import ContainerError

    try:
        return read_header(data)
    except ContainerError as error:
        raise VqserveError(str(error)) from error


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


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="vqserve", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for run, summary in (
        (encode, "pictures to containers"),
        (decode, "containers to PNG pictures"),
        (generate, "new pictures from the prior"),
        (score, "bits that the prior needs for a picture"),
        (info, "the header of a container, or the models there are"),
    ):
        command = commands.add_parser(run.__name__, help=summary, description=summary)
        command.set_defaults(run=run)
        if run is not generate:
            some = "*" if run is info else "+"
            command.add_argument("inputs", nargs=some, metavar="INPUT", help="file, folder, or - for standard input")
        where = command.add_mutually_exclusive_group()
        where.add_argument("--url", help="a running service (default: $VQSERVE_URL)")
        where.add_argument("--bundle", type=Path, help="a bundle folder, to work without a service")
        command.add_argument("--model", help="name of the service's model; its default one without it")
        command.add_argument("--key", help="API key (default: $VQSERVE_KEY)")
        if run in (encode, score):
            command.add_argument("--fit", choices=FITS, default="exact", help="where the size differs from the model's")
        if run in (encode, decode, generate):
            help_text = "file, folder, or - for standard output (default: beside the input)"
            command.add_argument("-o", "--output", help=help_text)
        if run in (encode, decode):
            command.add_argument("-f", "--force", action="store_true", help="replace files that are there")
        if run is encode:
            command.add_argument("--effort", type=float, default=0.0, help="weight of a bit against distortion")
            form = command.add_mutually_exclusive_group()
            form.add_argument("--together", action="store_true", help="pictures of one size into one container")
            form.add_argument("--codes", action="store_true", help="write the codes as JSON instead of a container")
        if run is generate:
            command.set_defaults(force=True)  # the same seed draws the same pictures
            _add_wishes(command)
    return parser


def _add_wishes(command: argparse.ArgumentParser) -> None:
    command.add_argument("--n", type=int, default=1, help="how many")
    command.add_argument("--label", type=int, help="number of the label")
    command.add_argument("--seed", type=int, help="reproduces the pictures; part of the file names")
    command.add_argument("--temperature", type=float)
    command.add_argument("--top-k", type=int)
    command.add_argument("--top-p", type=float)
    command.add_argument("--guidance", type=float, help="how far to push towards the label, 1 to 8; 1.5 is clear")


def _url(options: argparse.Namespace) -> str | None:
    return options.url or os.environ.get("VQSERVE_URL")


@contextmanager
def _backend(options: argparse.Namespace) -> Iterator[Backend]:
    url = _url(options)
    if options.bundle is not None:
        try:
            from vqserve.offline import Offline
        except ModuleNotFoundError as missing:
            fix = "pip install '.[service,cpu]' in the repository, or pass --url"
            raise VqserveError(f"{missing}: to use a bundle, {fix}") from missing
        yield Offline(options.bundle)
    elif url:
        with Client(url, key=options.key or os.environ.get("VQSERVE_KEY")) as client:
            yield Online(client, options.model)
    else:
        raise VqserveError("say where to work: --bundle FOLDER, --url URL, or the variable VQSERVE_URL")


def _png(pixels: Pixels) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels).save(stream, "PNG")
    return stream.getvalue()


def _json_of(codes: np.ndarray[tuple[int, ...], np.dtype[np.int64]]) -> bytes:
    return (json.dumps({"codes": codes.tolist()}) + "\n").encode("ascii")


if __name__ == "__main__":
    sys.exit(main())
