"""BentoML, one worker: `bentoml serve serve_bentoml:Encoder`. The picture is the root input, so it is the raw body."""

from __future__ import annotations

from typing import Annotated, Any

import bentoml
from bentoml.validators import ContentType
from shared import encode, open_session


@bentoml.service(workers=1, threads=1)
class Encoder:
    def __init__(self) -> None:
        self.session = open_session()

    @bentoml.api(route="/encode")
    async def encode(self, img: Annotated[bytes, ContentType("image/png")], /) -> dict[str, Any]:
        return encode(self.session, [img])[0]
