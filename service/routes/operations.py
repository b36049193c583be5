"""The routes for operators: what is served, whether it is alive and ready, its metrics, and reload."""

from __future__ import annotations

import orjson
from starlette.requests import Request
from starlette.responses import Response

from service.bundle import BundleError
from service.errors import InvalidParameter, NotReady, ReloadFailed, UnknownModel
from service.inference.sessions import DeviceError
from service.registry.loads import LoadHangs
from service.registry.model import Model
from service.routes.endpoints import Endpoint
from service.routes.requests import read_query
from service.routes.service import Service, service_of
from service.telemetry.metric_files import CountsError
from service.telemetry.metrics import CONTENT_TYPE
from service.threads import NoThread
from service.wire.negotiate import JSON
from service.wire.schemas import ModelAnswer, ModelsAnswer, StatusAnswer


def json_response(content: object) -> Response:
    return Response(orjson.dumps(content), media_type=JSON)


def describe(service: Service, model: Model) -> dict[str, object]:
    manifest = model.manifest
    answer = ModelAnswer(
        name=manifest.name,
        version=manifest.version,
        family=manifest.family,
        default=manifest.name == service.models.default,
        provider=model.engine.provider,
        picture=manifest.picture,
        codes=manifest.codes,
        labels=list(manifest.labels) if manifest.labels is not None else None,
        prior=manifest.prior is not None,
        codebook_colours=list(manifest.codebook_colours) if manifest.codebook_colours is not None else None,
        quality=manifest.quality,
    )
    return answer.model_dump(mode="json")


async def list_models(request: Request) -> Response:
    service = service_of(request)
    return json_response({"models": [describe(service, model) for model in service.models]})


async def show_model(request: Request) -> Response:
    service = service_of(request)
    return json_response(describe(service, service.models.get(request.path_params["name"])))


async def reload_model(request: Request) -> Response:
    read_query(request, ())
    service = service_of(request)
    return json_response(describe(service, await reload(service, request.path_params["name"])))


async def reload(service: Service, name: str) -> Model:
    try:
        return await service.models.reload(name)
    except BundleError as error:
        raise ReloadFailed(f"The old version goes on serving. {error}") from error
    except (DeviceError, LoadHangs, NoThread, CountsError) as error:
        raise NotReady(f"The old version goes on serving. {error}") from error


async def healthz(request: Request) -> Response:
    return json_response({"status": "ok"})


def require_ready(service: Service) -> None:
    """Raises NotReady, with the reason: for now, unless the process ends."""
    if reason := service.why_not_ready():
        raise (NotReady if service.draining else NotReady.for_now)(f"Not ready: {reason}.")


async def readyz(request: Request) -> Response:
    require_ready(service_of(request))
    return json_response({"status": "ready"})


async def metrics(request: Request) -> Response:
    return Response(service_of(request).metrics.render(), headers={"content-type": CONTENT_TYPE})


MODELS: dict[str, type[ModelAnswer]] = {JSON: ModelAnswer}
ENDPOINTS = (
    Endpoint("GET", "/models", list_models, "What is served", {JSON: ModelsAnswer}, tag="models"),
    Endpoint("GET", "/models/{name}", show_model, "One model", MODELS, problems=(UnknownModel,), tag="models"),
    Endpoint(
        "POST",
        "/models/{name}/reload",
        reload_model,
        "Load the bundle's folder again and swap it in once it is checked and warm",
        MODELS,
        problems=(UnknownModel, InvalidParameter, ReloadFailed),
        tag="models",
    ),
    Endpoint("GET", "/healthz", healthz, "The process answers", {JSON: StatusAnswer}, tag="operations"),
    Endpoint("GET", "/readyz", readyz, "The service can take work", {JSON: StatusAnswer}, tag="operations"),
    Endpoint("GET", "/metrics", metrics, "Prometheus metrics", {"text/plain": {"type": "string"}}, tag="operations"),
)
