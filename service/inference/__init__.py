"""Running a bundle's graphs. In: arrays from many callers. Out: arrays, run by onnxruntime in batches.

`sessions` opens a graph, `graph_checks` and `graph_faults` say what is wrong with one; `engine` owns encoder and
decoder and hands what arrives to a `batching` queue, whose `lane` makes the runs.
"""
