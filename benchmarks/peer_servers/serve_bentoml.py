"""BentoML: `bentoml serve serve_bentoml:Encoder`. The picture is the root input, so it is the raw body.

PEER_WORKERS says how many workers there are, one if not given.
"""

from __future__ import annotations

import os
from typing import Annotated, Any

import bentoml
from bentoml.validators import ContentType
from shared import encode, open_session


@bentoml.service(workers=int(os.environ.get("PEER_WORKERS", "1")), threads=1)
class Encoder:
    def __init__(self) -> None:
        self.session = open_session()

    @bentoml.api(route="/encode")
    async def encode(self, img: Annotated[bytes, ContentType("image/png")], /) -> dict[str, Any]:
        return encode(self.session, [img])[0]
