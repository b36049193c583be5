"""What is named as a bundle and has no manifest. In: its path. Out: a sentence: what it is, and what to give."""

from __future__ import annotations

from pathlib import Path

_OF_A_RUN = ("config.json", "progress.json")  # `python -m training fit` writes both
_MOST_NAMED = 5


def why_no_bundle(folder: Path, manifest: str) -> str:
    """`manifest`: the name of the file that makes a folder a bundle.

    Raises:
        OSError: what is there cannot be read.
    """
    if folder.is_file() and (folder.parent / manifest).is_file():
        return f"{folder} is a file of a bundle: give its folder, {folder.parent}"
    if all((folder / name).is_file() for name in _OF_A_RUN):
        bundle = Path("models", folder.resolve().name)
        return f"{folder} is a training run, no bundle: `python -m export {folder} {bundle}` makes one; give {bundle}"
    inside = sorted(str(path.parent) for path in folder.glob(f"*/{manifest}"))
    if inside:
        named = ", ".join(inside[:_MOST_NAMED]) + (", ..." if len(inside) > _MOST_NAMED else "")
        return f"{folder} is no bundle, but has bundles in it: give one or more of {named}"
    here = "" if folder.is_absolute() else f"; the folder of this process is {Path.cwd()}"
    return f"{folder / manifest} does not exist: make a bundle with `python -m export RUN {folder}`{here}"
