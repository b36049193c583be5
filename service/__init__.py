"""The HTTP service: pictures to codes, codes to pictures, and new pictures from the prior."""

import os

__version__ = "0.12.0"

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # before onnxruntime is imported, or 1.32 reports to Microsoft
