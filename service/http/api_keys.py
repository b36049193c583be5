"""API keys, as plain ASGI. In: a request. Out: the same with the name of its key noted, or `Unauthorized`."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Collection, Mapping

from starlette.types import ASGIApp, Receive, Scope, Send

from service.call import call_of
from service.errors import Unauthorized
from service.http.middleware import ALWAYS_OPEN


class ApiKeys:
    """Asks for `Authorization: Bearer KEY` or `X-API-Key: KEY`. Compares all keys, each in constant time."""

    def __init__(self, app: ASGIApp, keys: Mapping[str, bytes], open_paths: frozenset[str]) -> None:
        self._app = app
        self._open = ALWAYS_OPEN | open_paths
        self._digests = {name: hashlib.sha256(key).digest() for name, key in keys.items()}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["path"] not in self._open:
            given = [hashlib.sha256(key).digest() for key in _keys_in(scope)]
            names = [
                name for name, digest in self._digests.items() for one in given if hmac.compare_digest(digest, one)
            ]
            if not names:
                raise Unauthorized(
                    "Send a valid key as Authorization: Bearer KEY or X-API-Key: KEY.",
                    {"WWW-Authenticate": 'Bearer realm="vqserve"'},
                )
            call_of(scope).key_name = names[0]
        await self._app(scope, receive, send)


def _keys_in(scope: Scope) -> Collection[bytes]:
    """One of each header at most. A proxy may have added an `Authorization` of its own to a caller's `X-API-Key`."""
    found: dict[bytes, bytes] = {}
    for name, value in scope["headers"]:
        if name == b"x-api-key":
            found[name] = value
        elif name == b"authorization" and value[:7].lower() == b"bearer ":
            found[name] = value[7:].strip()
    return found.values()
