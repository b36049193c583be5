"""A typed client for a vqserve service. `Client` blocks, `AsyncClient` awaits; both have the same methods.

    from pathlib import Path

    from vqserve import Client

    with Client("http://localhost:8000") as client:
        container = client.compress(Path("digit.png"))
        pixels = client.decompress(container)

Calls need httpx and numpy; pillow and pydantic, which are installed with them, serve the command's work on files.
"""

from vqserve.answers import Encoded, Generated, Generation, ModelInfo, Row, Score
from vqserve.asynchronous import AsyncClient
from vqserve.problems import ProblemError, UnexpectedAnswerError, VqserveError
from vqserve.retries import Retries
from vqserve.synchronous import Client

__all__ = [
    "AsyncClient",
    "Client",
    "Encoded",
    "Generated",
    "Generation",
    "ModelInfo",
    "ProblemError",
    "Retries",
    "Row",
    "Score",
    "UnexpectedAnswerError",
    "VqserveError",
]
