"""What is wrong in a configuration, by the key as its writer knows it. In: a fault from pydantic. Out: a sentence.

`root` is the outermost section; a location is the path to a key below it, as pydantic gives it.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping
from typing import Any

from pydantic import BaseModel

Section = type[BaseModel]
Location = tuple[int | str, ...]


def explain(root: Section, problem: Mapping[str, Any]) -> str:
    """`problem` is one of ValidationError.errors(): which key is wrong, and what to write instead."""
    location = problem["loc"]
    key = _key_at(root, location)
    if problem["type"] == "value_error":
        return str(problem["ctx"]["error"])  # our own check, which names its keys
    if problem["type"] == "extra_forbidden":
        return f"{key} is unknown; {_nearest_names(root, location)}"
    if problem["type"] == "model_type":
        one, null = f"{key}.{_names_at(root, location)[0]}", ", or null for none" if key == "prior" else ""
        return f"{key} is a section: give its keys, such as {one}{null}; got {problem['input']!r}"
    if problem["type"] == "tuple_type":
        return f"{key}: Input should be a list, such as [8, 8, 8], got {problem['input']!r}"
    return f"{key}: {problem['msg']}, got {problem['input']!r}"


def _key_at(root: Section, location: Location) -> str:
    """Dotted, without what pydantic appends for each kind of value that a key may have, such as "int"."""
    section: Section | None = root
    parts = []
    for part in location:
        if section is not None or isinstance(part, int):
            parts.append(str(part))
        field = section.model_fields.get(str(part)) if section else None
        section = _section_in(field.annotation) if field else None
    return ".".join(parts)


def _nearest_names(root: Section, location: Location) -> str:
    """The keys of this very name in other sections; else the name of this section that is spelt most alike."""
    *above, name = map(str, location)
    elsewhere = [key for key in _keys_below(root) if key.rpartition(".")[2] == name]
    if len(elsewhere) > 1:
        return f"the nearest names are {', '.join(elsewhere)}"
    near = difflib.get_close_matches(name, _names_at(root, location[:-1]), n=1, cutoff=0)
    return f"the nearest name is {''.join(elsewhere) or '.'.join([*above, *near])}"


def _keys_below(section: Section, above: str = "") -> Iterator[str]:
    """The dotted keys of a section and of those in it."""
    for name, field in section.model_fields.items():
        yield above + name
        inner = _section_in(field.annotation)
        if inner is not None:
            yield from _keys_below(inner, f"{above}{name}.")


def _names_at(root: Section, location: Location) -> list[str]:
    section = root
    for part in location:
        inner = _section_in(section.model_fields[str(part)].annotation)
        assert inner is not None
        section = inner
    return list(section.model_fields)


def _section_in(annotation: Any) -> Section | None:
    """The section that a key with this annotation holds, if it holds one."""
    options = getattr(annotation, "__args__", (annotation,))
    return next((one for one in options if isinstance(one, type) and issubclass(one, BaseModel)), None)
