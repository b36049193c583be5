"""The HTTP service: pictures to codes, codes to pictures, and new pictures from the prior."""

__version__ = "0.10.0"
