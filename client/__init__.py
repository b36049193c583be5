"""A typed client for a vqserve service. `Client` blocks, `AsyncClient` awaits; both have the same methods.

    from client import Client

    with Client("http://localhost:8000") as vqserve:
        container = vqserve.compress(Path("digit.png"))
        pixels = vqserve.decompress(container)

It needs httpx and numpy only.
"""

from client.answers import Encoded, Generated, Generation, ModelInfo, Row, Score
from client.asynchronous import AsyncClient
from client.problems import ProblemError, UnexpectedAnswerError, VqserveError
from client.retries import Retries
from client.synchronous import Client

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
