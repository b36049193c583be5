"""The one base of the failures that a user can mend: the command line prints their message and no traceback."""

from __future__ import annotations


class TrainingError(Exception):
    """Its message says what to change."""
