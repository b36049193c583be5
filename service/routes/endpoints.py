"""An endpoint is data: path, method, handler and its OpenAPI operation. The app and its OpenAPI file are folds of them.

Handlers are plain Starlette (`Request` in, `Response` out): the framework's per-parameter machinery would cost more
than the model of a small picture.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from pydantic import BaseModel
from pydantic.json_schema import models_json_schema
from starlette.requests import Request
from starlette.responses import Response

from service.errors import MEDIA_TYPE as PROBLEM_TYPE
from service.errors import (
    DeadlinePassed,
    HeadTooLarge,
    HeadTooSlow,
    InternalError,
    MalformedRequest,
    MethodNotAllowed,
    NotReady,
    Problem,
    QueueFull,
    Unauthorized,
)
from service.wire.schemas import ProblemAnswer

Handler = Callable[[Request], Awaitable[Response]]
Body = Mapping[str, type[BaseModel] | tuple[type[BaseModel], ...] | dict[str, Any]]
BINARY: dict[str, Any] = {"type": "string", "format": "binary"}
_REF = "#/components/schemas/{model}"
# Without keys the service asks for none: hence the empty requirement.
_SECURITY_SCHEMES: dict[str, Any] = {
    "bearer": {"type": "http", "scheme": "bearer", "description": "Where VQSERVE_API_KEYS is set."},
    "key": {"type": "apiKey", "in": "header", "name": "X-API-Key", "description": "Instead of `Authorization`."},
}
PNG_BY_DEFAULT = (
    "Where `Accept` does not say otherwise, a picture is a PNG file. Many clients generated from this document "
    "read JSON only: let them send `Accept: application/json`."
)
_SECURITY: list[dict[str, list[str]]] = [{}, {"bearer": []}, {"key": []}]
_HEADERS: dict[str, Any] = {
    "X-Request-ID": {"description": "The one that was sent, or a new one.", "schema": {"type": "string"}},
    "Retry-After": {"description": "Seconds until it is worth a try.", "schema": {"type": "integer"}},
}
_REQUEST_ID, _RETRY_AFTER = ({name: {"$ref": f"#/components/headers/{name}"}} for name in _HEADERS)
_WORTH_A_TRY = (QueueFull.status, NotReady.status)
_EVERYWHERE = (
    *(MalformedRequest, Unauthorized, MethodNotAllowed, HeadTooSlow, QueueFull, HeadTooLarge),
    *(InternalError, NotReady, DeadlinePassed),
)


@dataclass(frozen=True)
class Endpoint:
    """`request` and `answer` give a schema by media type: a pydantic model, several of them, or a schema as it is.
    Without an answer it only refuses.

    `headers` are those of a success, besides the request's id, as OpenAPI describes them, and `request_headers` those
    that mean something here only.
    """

    method: str
    path: str
    handler: Handler
    summary: str
    answer: Body
    request: Body | None = None
    needs_body: bool = True
    query: Mapping[str, dict[str, Any]] = field(default_factory=dict)
    problems: Sequence[type[Problem]] = ()
    headers: Mapping[str, dict[str, Any]] = field(default_factory=dict)
    request_headers: Mapping[str, dict[str, Any]] = field(default_factory=dict)
    tag: str = "codec"
    description: str = ""
    problem_types: Sequence[str] = (PROBLEM_TYPE,)

    @property
    def name(self) -> str:
        """Unique: from the method and the path."""
        words = [part.strip("{}") or "root" for part in self.path.split("/")[1:]]
        return "_".join((self.method.lower(), *words))


def openapi(
    endpoints: Sequence[Endpoint], title: str, version: str, description: str, open_paths: Collection[str]
) -> dict[str, Any]:
    """The OpenAPI 3.1 document of these endpoints, of which those at `open_paths` never ask for a key, nor count as
    requests inside."""
    models = sorted({m for e in endpoints for m in _models_of(e)} | {ProblemAnswer}, key=lambda m: m.__name__)
    _, definitions = models_json_schema([(model, "validation") for model in models], ref_template=_REF)
    paths: dict[str, Any] = {}
    for endpoint in endpoints:
        is_open = endpoint.path in open_paths
        operation = _operation(endpoint, is_open) | ({"security": []} if is_open else {})
        paths.setdefault(endpoint.path, {})[endpoint.method.lower()] = operation
    return {
        "openapi": "3.1.0",
        "info": {"title": title, "version": version, "description": description},
        "servers": [{"url": ".", "description": "beside this document"}],  # a proxy may have added a path
        "security": _SECURITY,
        "paths": paths,
        "components": {
            "schemas": definitions.get("$defs", {}),
            "headers": _HEADERS,
            "securitySchemes": _SECURITY_SCHEMES,
        },
    }


def _operation(endpoint: Endpoint, is_open: bool) -> dict[str, Any]:
    operation: dict[str, Any] = {
        "operationId": endpoint.name,
        "summary": endpoint.summary,
        "tags": [endpoint.tag],
        "parameters": _parameters(endpoint),
        "responses": {**_success(endpoint), **_problems(endpoint, is_open)},
    }
    if endpoint.description:
        operation["description"] = endpoint.description
    if endpoint.request is not None:
        operation["requestBody"] = {"required": endpoint.needs_body, "content": _content(endpoint.request)}
    return operation


def _success(endpoint: Endpoint) -> dict[str, Any]:
    if not endpoint.answer:
        return {}
    headers = {**_REQUEST_ID, **endpoint.headers}
    return {"200": {"description": "OK", "headers": headers, "content": _content(endpoint.answer)}}


def _parameters(endpoint: Endpoint) -> list[dict[str, Any]]:
    in_path = [part[1:-1] for part in endpoint.path.split("/") if part.startswith("{")]
    return [
        *({"name": n, "in": "path", "required": True, "schema": {"type": "string"}} for n in in_path),
        *({"name": n, "in": "query", "required": False, "schema": s} for n, s in endpoint.query.items()),
        *({"name": n, "in": "header", "required": False, **s} for n, s in endpoint.request_headers.items()),
    ]


def _problems(endpoint: Endpoint, is_open: bool) -> dict[str, Any]:
    by_status: dict[int, list[type[Problem]]] = {}
    declared: tuple[type[Problem], ...] = (*endpoint.problems, *_EVERYWHERE)
    for problem in dict.fromkeys(declared):
        if is_open and problem in (Unauthorized, QueueFull):
            continue
        by_status.setdefault(problem.status, []).append(problem)
    content = _content(dict.fromkeys(endpoint.problem_types, ProblemAnswer))
    return {
        str(status): {
            "description": "; ".join(f"{p.title} ({p.slug})" for p in problems),
            "headers": {**_REQUEST_ID, **(_RETRY_AFTER if status in _WORTH_A_TRY else {})},
            "content": content,
        }
        for status, problems in sorted(by_status.items())
    }


def _content(body: Body) -> dict[str, Any]:
    return {media_type: {"schema": _schema(schema)} for media_type, schema in body.items()}


def _schema(schema: type[BaseModel] | tuple[type[BaseModel], ...] | dict[str, Any]) -> dict[str, Any]:
    if isinstance(schema, dict):
        return schema
    if isinstance(schema, tuple):
        return {"oneOf": [_schema(one) for one in schema]}
    return {"$ref": _REF.format(model=schema.__name__)}


def _models_of(endpoint: Endpoint) -> set[type[BaseModel]]:
    found: set[type[BaseModel]] = set()
    for schema in (*endpoint.answer.values(), *(endpoint.request or {}).values()):
        if isinstance(schema, tuple):
            found.update(schema)
        elif not isinstance(schema, dict):
            found.add(schema)
    return found
