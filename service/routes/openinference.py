"""/v2, the Open Inference Protocol, for `tritonclient[http]` and KServe clients as they are.

The routes; `service.routes.protocol_models` has the models behind them.
"""

from __future__ import annotations

from functools import partial
from typing import Any

from pydantic import Field
from starlette.requests import Request
from starlette.responses import Response

from service import __version__
from service.errors import (
    MEDIA_TYPE,
    BodyTooLarge,
    DeadlinePassed,
    InvalidCodes,
    InvalidParameter,
    MalformedRequest,
    NotReady,
    PictureTooLarge,
    Problem,
    ReloadFailed,
    TooManyItems,
    UnknownModel,
    UnsupportedMediaType,
    WrongPictureSize,
)
from service.registry.model import Model
from service.routes.endpoints import BINARY, Endpoint
from service.routes.operations import json_response, reload, require_ready
from service.routes.protocol_models import OPERATIONS, Operation
from service.routes.requests import read_body, read_json_here_or_in_thread, read_optional_body, read_query
from service.routes.service import Service, service_of
from service.wire.inference_protocol import (
    HEADER_LENGTH,
    B,
    InferenceBody,
    json_size_of,
    read_infer,
    read_json,
    write_infer,
)
from service.wire.negotiate import JSON
from service.wire.schemas import StrictBody

PREFIX = "/v2"


class IndexBody(StrictBody):
    """Which models the index lists."""

    ready: bool | None = Field(None, description="Only those that can take work.")


class LoadBody(StrictBody):
    """A bundle's folder says everything about its model, so no parameter of the protocol is supported."""

    parameters: dict[str, Any] | None = None


def _find(request: Request) -> tuple[Model, Operation, str]:
    """The bundle, what it shall do, and the protocol model's name."""
    name, service = request.path_params["name"], service_of(request)
    base, _, verb = name.rpartition(".")
    operation = OPERATIONS.get(verb)
    model = next((model for model in service.models if model.manifest.name == base), None)
    if model is None or operation is None or (operation.needs_prior and model.manifest.prior is None):
        raise UnknownModel(f"No model {name[:80]!r}; there are {', '.join(_names(service))}.")
    version = request.path_params.get("version")
    if version not in (None, model.manifest.version):
        raise UnknownModel(f"{name} has the version {model.manifest.version} only.")
    return model, operation, name


def _names(service: Service) -> list[str]:
    return [
        f"{model.manifest.name}.{verb}"
        for model in service.models
        for verb, operation in OPERATIONS.items()
        if model.manifest.prior is not None or not operation.needs_prior
    ]


async def server_metadata(request: Request) -> Response:
    answer = {"name": "vqserve", "version": __version__, "extensions": ["binary_tensor_data", "model_repository"]}
    return json_response(answer)


async def server_live(request: Request) -> Response:
    return json_response({"live": True})


async def server_ready(request: Request) -> Response:
    require_ready(service_of(request))
    return json_response({"ready": True})


async def model_metadata(request: Request) -> Response:
    model, operation, name = _find(request)
    manifest = model.manifest
    return json_response(
        {
            "name": name,
            "versions": [manifest.version],
            "platform": "onnxruntime_onnx",
            "inputs": [tensor.metadata() for tensor in operation.inputs(manifest)],
            "outputs": [tensor.metadata() for tensor in operation.outputs(manifest)],
        }
    )


async def model_config(request: Request) -> Response:
    model, operation, name = _find(request)
    settings = service_of(request).settings
    most = settings.max_samples_per_request if operation.needs_prior else settings.max_pictures_per_request
    return json_response(
        {
            "name": name,
            "platform": "onnxruntime_onnx",
            "max_batch_size": most,
            "input": [tensor.config() for tensor in operation.inputs(model.manifest)],
            "output": [tensor.config() for tensor in operation.outputs(model.manifest)],
        }
    )


async def model_ready(request: Request) -> Response:
    model, _, name = _find(request)
    if reason := model.why_not_ready():
        raise NotReady.for_now(f"{name} is not ready: {reason}.")
    return json_response({"name": name, "ready": True})


async def infer(request: Request) -> Response:
    read_query(request, ())
    service = service_of(request)
    model, operation, name = _find(request)
    body = await read_body(request, service)
    size = json_size_of(body, request.headers.get(HEADER_LENGTH))  # the tensors behind it are taken as they are
    asked = await read_json_here_or_in_thread(partial(read_infer, body, size), size, request, service)
    if asked.model_name not in ("", name):
        raise InvalidParameter(f"model_name is {asked.model_name!r}, the path names {name!r}; leave it out.")
    operation.check(asked, model.manifest)
    outputs = await operation.run(request, service, model, asked)
    content, json_bytes = write_infer(name, model.manifest.version, asked, outputs)
    if json_bytes is None:
        return Response(content, media_type=JSON)
    return Response(content, headers={HEADER_LENGTH: str(json_bytes)}, media_type="application/octet-stream")


async def _read_optional(kind: type[B], request: Request, what: str) -> B:
    """The body, of which every field may be left out, and the body itself as well."""
    read_query(request, ())
    service = service_of(request)
    body = await read_optional_body(request, service) or b"{}"
    return await read_json_here_or_in_thread(partial(read_json, kind, body, what), len(body), request, service)


async def repository_index(request: Request) -> Response:
    asked = await _read_optional(IndexBody, request, "a request for the index")
    service = service_of(request)
    index = []
    for name in _names(service):
        model = service.models.get(name.rpartition(".")[0])
        reason = model.why_not_ready() or ""
        state = "UNAVAILABLE" if reason else "READY"
        if not (asked.ready and reason):
            index.append({"name": name, "version": model.manifest.version, "state": state, "reason": reason})
    return json_response(index)


async def repository_load(request: Request) -> Response:
    """Loads the bundle's folder again, as POST /models/{name}/reload does."""
    model, _, _ = _find(request)
    asked = await _read_optional(LoadBody, request, "a request to load a model")
    if asked.parameters:
        name = next(iter(asked.parameters))
        raise InvalidParameter(f"The parameter {name[:40]!r} is not supported; a model is loaded as its bundle says.")
    await reload(service_of(request), model.manifest.name)
    return json_response({})


async def repository_unload(request: Request) -> Response:
    read_query(request, ())
    _find(request)
    raise InvalidParameter("Models are not unloaded one by one; leave the bundle out of VQSERVE_BUNDLES.")


_ANY_OBJECT: dict[str, Any] = {JSON: {"type": "object"}}
_ANY_LIST: dict[str, Any] = {JSON: {"type": "array", "items": {"type": "object"}}}
_JSON_AND_BYTES = {**BINARY, "description": f"JSON, of as many bytes as `{HEADER_LENGTH}` says, and behind it tensors."}
_TENSORS: dict[str, Any] = {**_ANY_OBJECT, "application/octet-stream": _JSON_AND_BYTES}
_INFER_BODY: dict[str, Any] = {JSON: InferenceBody, "application/octet-stream": _JSON_AND_BYTES}
_INFER_HEADERS = {
    HEADER_LENGTH: {"description": "Where tensors follow the JSON: its bytes.", "schema": {"type": "integer"}}
}
_PROBLEM_TYPES = (JSON, MEDIA_TYPE)  # the second where HTTP itself was wrong
_ONE = (UnknownModel,)
_OPTIONAL_BODY = (MalformedRequest, BodyTooLarge, TooManyItems, UnsupportedMediaType, InvalidParameter)
_INFER: tuple[type[Problem], ...] = (
    *(MalformedRequest, UnknownModel, BodyTooLarge, PictureTooLarge, TooManyItems, UnsupportedMediaType),
    *(WrongPictureSize, InvalidCodes, InvalidParameter, DeadlinePassed),
)


def _endpoint(method: str, path: str, handler: Any, summary: str, **more: Any) -> Endpoint:
    defaults: dict[str, Any] = {"answer": _ANY_OBJECT, "tag": "v2", "problem_types": _PROBLEM_TYPES}
    return Endpoint(method, f"{PREFIX}{path}", handler, summary, **(defaults | more))


def _model_endpoints(path: str) -> tuple[Endpoint, ...]:
    return (
        _endpoint(
            "POST",
            f"{path}/infer",
            infer,
            "Run a model",
            answer=_TENSORS,
            request=_INFER_BODY,
            problems=_INFER,
            headers=_INFER_HEADERS,
            request_headers=_INFER_HEADERS,
        ),
        _endpoint("GET", path, model_metadata, "Inputs and outputs of a model", problems=_ONE),
        _endpoint("GET", f"{path}/config", model_config, "Configuration of a model", problems=_ONE),
        _endpoint("GET", f"{path}/ready", model_ready, "A model can take work", problems=_ONE),
    )


ENDPOINTS = (
    *_model_endpoints("/models/{name}"),
    *_model_endpoints("/models/{name}/versions/{version}"),
    _endpoint("GET", "", server_metadata, "The server and its extensions"),
    # where the protocol's own OpenAPI file has it, and so do the clients that are made from that
    _endpoint("GET", "/", server_metadata, "The same"),
    _endpoint("GET", "/health/live", server_live, "The process answers"),
    _endpoint("GET", "/health/ready", server_ready, "The service can take work"),
    _endpoint(
        "POST",
        "/repository/index",
        repository_index,
        "Every model and its state",
        answer=_ANY_LIST,
        request={JSON: IndexBody},
        needs_body=False,
        problems=_OPTIONAL_BODY,
    ),
    _endpoint(
        "POST",
        "/repository/models/{name}/load",
        repository_load,
        "Load a bundle again",
        request={JSON: LoadBody},
        needs_body=False,
        problems=(UnknownModel, ReloadFailed, *_OPTIONAL_BODY),
    ),
    _endpoint(
        "POST",
        "/repository/models/{name}/unload",
        repository_unload,
        "Refused",
        answer={},
        problems=(UnknownModel, InvalidParameter),
    ),
)
