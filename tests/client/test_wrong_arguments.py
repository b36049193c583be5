"""What the clients and `Retries` refuse before anything is sent, for code that no type checker reads."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from vqserve import AsyncClient, Client, Retries

CLIENTS: list[Any] = [Client, AsyncClient]


def call(client: Any, name: str, *given: object) -> None:
    """To the end: an asynchronous client does nothing before it is awaited."""

    async def finished() -> None:
        await getattr(client, name)(*given)

    if isinstance(client, AsyncClient):
        asyncio.run(finished())
    else:
        getattr(client, name)(*given)


@pytest.mark.parametrize("kind", CLIENTS)
def test_no_picture_at_all_is_refused(kind: Any) -> None:
    for name in ("encode", "compress", "score"):
        with pytest.raises(ValueError, match="pass at least one picture"):
            call(kind("http://x"), name)


@pytest.mark.parametrize("kind", CLIENTS)
@pytest.mark.parametrize("other", [3, None, {"attempts": 3}])
def test_retries_are_no_number(kind: Any, other: object) -> None:
    """It was an AttributeError, and only where the first attempt failed."""
    with pytest.raises(TypeError, match=r"retries are .*: pass retries=Retries\(attempts=\.\.\.\)"):
        kind("http://x", retries=other)


@pytest.mark.parametrize("kind", CLIENTS)
@pytest.mark.parametrize("other", [3, 0, b"secret"])
def test_a_key_is_text(kind: Any, other: object) -> None:
    """It was an AttributeError, and 0 was no key."""
    with pytest.raises(TypeError, match=f"^pass an API key as text, not {type(other).__name__}$"):
        kind("http://x", key=other)


@pytest.mark.parametrize("kind", CLIENTS)
def test_the_name_of_a_model_is_text(kind: Any) -> None:
    """It was an AttributeError."""
    with pytest.raises(TypeError, match="pass the name of a model, not NoneType"):
        call(kind("http://x"), "model", None)


@pytest.mark.parametrize("attempts", [0, -1, float("nan")])
def test_there_is_an_attempt(attempts: Any) -> None:
    """One was made all the same."""
    with pytest.raises(ValueError, match=r"attempts are .*: pass 1 or more"):
        Retries(attempts=attempts)
    assert Retries(attempts=1).attempts == 1


@pytest.mark.parametrize("name", ["first_pause_s", "max_pause_s"])
@pytest.mark.parametrize("seconds", [-0.1, float("nan"), float("inf")])
def test_a_pause_has_seconds(name: str, seconds: float) -> None:
    """It was `sleep length must be non-negative`, after the first attempt."""
    given: dict[str, Any] = {name: seconds}
    with pytest.raises(ValueError, match=f"{name} is .*: pass seconds of 0 or more"):
        Retries(**given)
    assert Retries(first_pause_s=0, max_pause_s=0).max_pause_s == 0
