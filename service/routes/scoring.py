"""POST /score. Pictures in (as for /encode), the information content of their codes under the prior out, in bits."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from starlette.requests import Request
from starlette.responses import Response

from service.errors import InvalidParameter, NoPrior
from service.prior.draws import Codes
from service.prior.generator import generator_of
from service.prior.likelihood import bits_under
from service.registry.model import Model
from service.routes.encoding import ENCODE, PICTURE_QUERY, encode_pictures, flag_of, label_of
from service.routes.endpoints import Endpoint
from service.routes.operations import json_response
from service.routes.requests import finish, read_body, read_query
from service.routes.service import service_of
from service.routes.uploads import fit_of, read_upload
from service.wire.generation_schemas import ScoreAnswer, ScoreManyAnswer
from service.wire.negotiate import JSON, answer_type

QUERY = ("model", "fit", "label", "by_label")


async def score(request: Request) -> Response:
    service = service_of(request)
    query = read_query(request, QUERY)
    model = service.models.get(query.get("model"))
    generator_of(model)
    answer_type(request, (JSON,))
    label, by_label = label_of(model, query.get("label")), flag_of("by_label", query.get("by_label", "false"))
    if by_label and not model.manifest.labels:
        raise InvalidParameter("by_label: there are no labels; leave it out.")
    body = await read_body(request, service)
    upload = await read_upload(request, service, model, body, fit_of(query.get("fit")))
    passes = 1 + by_label * len(model.manifest.labels or ())
    pixels = passes * sum(picture.pixels[..., 0].size for picture in upload.pictures)
    service.require_room(pixels, prior=True)
    codes = await encode_pictures(request, model, upload.pictures)
    score_all = partial(_score_all, model, codes, label, by_label)
    (items,) = await finish([service.in_thread(score_all, pixels, prior=True, late=True)], request)
    head = {"model": model.manifest.name, "version": model.manifest.version}
    return json_response({**head, "items": items} if upload.several else {**head, **items[0]})


def _score_all(model: Model, grids: Sequence[Codes], label: int | None, by_label: bool) -> list[dict[str, object]]:
    return [_score(model, grid, label, by_label) for grid in grids]


def _score(model: Model, grid: Codes, label: int | None, by_label: bool) -> dict[str, object]:
    prior = model.manifest.prior
    assert prior is not None
    labels = [
        prior.label_count if label is None else label,
        *(range(len(model.manifest.labels or ())) if by_label else ()),
    ]
    bits = bits_under(model.codec, grid, labels)
    answer = {"bits": bits[0], "bits_per_code": bits[0] / grid.size, "codes_shape": grid.shape}
    return {**answer, "bits_by_label": bits[1:]} if by_label else answer


SCORE = Endpoint(
    method="POST",
    path="/score",
    handler=score,
    summary="How many bits the prior needs for a picture",
    query={
        **PICTURE_QUERY,
        "label": {
            "type": "integer",
            "minimum": 0,
            "description": "Score under the label of this number, from 0, in the order of `GET /models`; without one: "
            "under none.",
        },
        "by_label": {"type": "boolean", "default": False, "description": "Also score under each label in turn."},
    },
    request=ENCODE.request,
    answer={JSON: (ScoreAnswer, ScoreManyAnswer)},
    problems=(*ENCODE.problems, NoPrior),
    tag="generation",
)
