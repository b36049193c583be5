"""Side by side with peers. Every benchmark ends with one line of JSON."""

import os

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # before onnxruntime is imported, or 1.32 reports to Microsoft
