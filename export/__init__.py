"""The only bridge between training and service: a training run becomes a bundle of ONNX graphs and a manifest."""

import os

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # before onnxruntime is imported, or 1.32 reports to Microsoft
