"""Classifier-free guidance as ONNX nodes: one batch that holds every sample twice, with its label and without.

In a graph with guidance the two halves lie one after the other in the batch, 2B long; between two rows a sample keeps
both in its caches, the half with the label first. `training.models.prior.guided_logits` is the same in PyTorch.
"""

from __future__ import annotations

from export.graphs.onnx_builder import GraphBuilder


def with_and_without(graph: GraphBuilder, labels: str, no_label: int) -> str:
    """labels int64 (B,) -> (2B,): those, then `no_label` for each."""
    none = graph.op("Add", graph.op("Mul", labels, graph.integers(0)), graph.integers(no_label))
    return graph.op("Concat", labels, none, axis=0)


def to_halves(graph: GraphBuilder, caches: str) -> str:
    """(B,2n,w,C) -> (2B,n,w,C)."""
    return graph.op("Concat", *graph.split(caches, 2, axis=1), axis=0)


def to_samples(graph: GraphBuilder, caches: str) -> str:
    """(2B,n,w,C) -> (B,2n,w,C)."""
    return graph.op("Concat", *graph.split(caches, 2, axis=0), axis=1)


def twice(graph: GraphBuilder, value: str) -> str:
    """(B,...) -> (2B,...): what both halves share."""
    return graph.op("Concat", value, value, axis=0)


def guided(graph: GraphBuilder, logits: str, guidance: str) -> str:
    """Integer logits (2B,K), guidance (B,1) in sixteenths -> integer logits (B,K).

    Exact until the rounding: `training.models.exactness` bounds the sums.
    """
    labelled, unlabelled = graph.split(logits, 2, axis=0)
    step = graph.op("Mul", graph.op("Sub", labelled, unlabelled), guidance)
    return graph.op("Round", graph.op("Add", unlabelled, step))
