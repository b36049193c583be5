"""manifest.json of a bundle, checked: each field by itself (`service.bundle.fields`) and all of them together.

In: the file's JSON. Out: a `Manifest`, or a ValidationError of pydantic, which names the first wrong field.
"""

from __future__ import annotations

import hashlib

from pydantic import model_validator

from service.bundle.fields import NOT_IN_VERSION, PRIOR_GRAPHS, REQUIRED_GRAPHS, Fields, GraphName, GraphSpec
from service.bundle.manifest_checks import tensor_fault, value_fault

FORMAT_VERSION = 1


class Manifest(Fields):
    """manifest.json. docs/bundle-format.md has every field. A ValidationError names the first that is wrong."""

    @model_validator(mode="after")
    def _fields_agree(self) -> Manifest:
        missing = [name for name in REQUIRED_GRAPHS if name not in self.graphs]
        if self.prior is not None:
            missing += [name for name in PRIOR_GRAPHS if name not in self.graphs]
            if self.codes.codebook_size * self.prior.frequency_table[0] >= 1 << 31:
                raise ValueError("codebook_size * frequency_table[0] must be below 2**31")
            if self.prior.label_count != len(self.labels or ()):
                raise ValueError(f"prior.label_count is {self.prior.label_count}, labels has {len(self.labels or ())}")
        if missing:
            raise ValueError(f"graphs lacks {', '.join(missing)}")
        factor = self.picture.multiple_of
        grid = (self.codes.height * factor, self.codes.width * factor)
        if grid != (self.picture.height, self.picture.width):
            raise ValueError(f"codes x multiple_of is {grid}, picture is {self.picture.height}x{self.picture.width}")
        if self.version != version_of(self.graphs):
            raise ValueError(f"version is {self.version[:12]}..., the graphs hash to {version_of(self.graphs)[:12]}...")
        if fault := value_fault(self) or tensor_fault(self):
            raise ValueError(fault)
        return self


def version_of(graphs: dict[GraphName, GraphSpec]) -> str:
    """The bundle's version: SHA-256 over the sorted (graph name, graph hash) pairs, but for `NOT_IN_VERSION`.

    A graph with `counts_as` counts by that hash.
    """
    counted = [(name, spec.counts_as or spec.sha256) for name, spec in graphs.items() if name not in NOT_IN_VERSION]
    lines = "".join(f"{name} {digest}\n" for name, digest in sorted(counted))
    return hashlib.sha256(lines.encode()).hexdigest()
