"""The same FastAPI application under Ray Serve, with replicas, autoscaling and fractional GPUs.

    serve run deploy.ray.serve:application max_replicas=8
    serve run deploy.ray.serve:application max_replicas=8 gpus_per_replica=0.25

In: the arguments below, and VQSERVE_* of the process that starts it, whose values every replica gets. Bundle paths
are those of the replicas' machines. Out: the routes of docs/api.md on Ray Serve's HTTP port; the service's limits hold
for each replica, and one replica is one process (VQSERVE_WORKERS does not apply).
"""

from __future__ import annotations

import logging.config
from collections.abc import Callable
from typing import Any

from fastapi import FastAPI
from pydantic import BaseModel, ConfigDict, Field
from ray import serve
from ray.serve import Application

from service.app import create_app
from service.settings import Settings
from service.telemetry.logs import log_config


class Arguments(BaseModel):
    model_config = ConfigDict(extra="forbid")

    min_replicas: int = Field(1, ge=0)
    max_replicas: int = Field(4, ge=1)
    cpus_per_replica: float = Field(1.0, gt=0)
    gpus_per_replica: float = Field(0.0, ge=0, description="0.25 puts four replicas on one GPU.")
    # Requests that a replica may have in hand before Ray starts another one; more would only wait in its queue.
    target_requests: float = Field(32.0, gt=0)


class Replica:
    """Ray replaces a replica whose `check_health` raises, and sends it no requests."""

    app: FastAPI

    def check_health(self) -> None:
        reason = self.app.state.service.why_not_ready()
        if reason is not None:
            raise RuntimeError(reason)


def build_app(settings: Settings) -> FastAPI:
    """Called on the replica: an app holds sessions and is not sent over the wire."""
    logging.config.dictConfig(log_config(settings.log_level))
    return create_app(settings)


def replica_of(settings: Settings) -> Callable[..., Any]:
    """With these settings, which travel in the pickled class: the environment of an actor, API keys and all, would
    stand in Ray's logs and in its state API."""

    def build() -> FastAPI:
        return build_app(settings)

    served: Callable[..., Any] = serve.ingress(build)(Replica)
    return served


def settings_of(arguments: Arguments) -> Settings:
    """Those of this process's environment, for a replica. Ray limits none to its CPUs: each would have a thread for
    every CPU of its machine. Its process is the only worker."""
    given = Settings()
    changed: dict[str, object] = {"workers": 1, "threads": given.threads or max(1, int(arguments.cpus_per_replica))}
    if arguments.gpus_per_replica:
        changed["device"] = "cuda"
    return given.model_copy(update=changed)


def application(arguments: Arguments) -> Application:
    settings = settings_of(arguments)
    deployment = serve.deployment(
        replica_of(settings),
        name="vqserve",
        ray_actor_options={
            "num_cpus": arguments.cpus_per_replica,
            "num_gpus": arguments.gpus_per_replica,
        },
        autoscaling_config={
            "min_replicas": arguments.min_replicas,
            "max_replicas": arguments.max_replicas,
            "target_ongoing_requests": arguments.target_requests,
        },
        # The service refuses by itself, with 429, those above its own limit: so Ray must let more through. What is more
        # than these waits in front of it, outside its deadlines, and must not do so without a limit either.
        max_ongoing_requests=2 * settings.max_concurrent_requests,
        max_queued_requests=settings.max_concurrent_requests,
        graceful_shutdown_timeout_s=settings.grace_s,
    )
    return deployment.bind()
