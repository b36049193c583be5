"""Does the prior know the labels that the manifest counts? In: a bundle and what opens its graphs. Out: nothing.

The number of labels is the length of a table inside the graphs: no tensor's shape shows it.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnxruntime as ort

from service.bundle import Bundle, BundleError
from service.bundle.fields import GraphName
from service.inference.graph_faults import faults_of
from service.inference.sessions import CPU, ORT_ERRORS, SessionMaker

_GRAPH: GraphName = "prior_context"
_SILENT = 4  # as a level of onnxruntime's log: a label that is refused is no error here


def require_labels(bundle: Bundle, maker: SessionMaker) -> None:
    """Run `prior_context` on one column with the last label, "no label", and with the one after it.

    Raises:
        BundleError: the graph knows fewer or more labels than `prior.label_count`.
    """
    prior = bundle.manifest.prior
    if prior is None:
        return
    # On a CPU, whatever serves: CUDA reads beyond a table without a word. It takes some 30 ms.
    session = replace(maker, provider=CPU, threads=1).open(bundle.graph_path(_GRAPH))
    entries, _, channels = prior.cache_shape
    feeds = {"codes_above": np.full((1, 1), -1), "caches": np.zeros((1, entries, 1, channels), np.float32)}
    with faults_of(bundle, _GRAPH):
        session.run(None, feeds | {"labels": np.array([0])})  # what fails here has nothing to do with labels
    options = ort.RunOptions()
    options.log_severity_level = _SILENT
    for label, expected in ((prior.label_count, True), (prior.label_count + 1, False)):
        try:
            session.run(None, feeds | {"labels": np.array([label])}, options)
        except ORT_ERRORS:
            known = False
        else:
            known = True
        if known != expected:
            verb = "knows" if known else "does not know"
            said = f"{bundle.where(_GRAPH)} {verb} label {label}, but prior.label_count is {prior.label_count}"
            raise BundleError(f"{said}: export it again")
