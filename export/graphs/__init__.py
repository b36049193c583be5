"""The graphs of a bundle, node by node. In: trained modules. Out: ONNX models that compute the same.

`autoencoder_graphs` and `prior_graphs` are the two to read; `onnx_builder` is what they write with.
"""
