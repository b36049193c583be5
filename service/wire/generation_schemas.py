"""The JSON answers of /generate and /score, whose shape the OpenAPI file shows."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field

from service.wire.schemas import LARGE, Grid, Shape


class _Answer(BaseModel):
    model_config = ConfigDict(extra="forbid")


class GeneratedPicture(_Answer):
    label: int | None
    bits: float = Field(description="Information content of the codes under the prior with this label, temperature 1.")
    codes: Grid
    image: str = Field(description="A PNG file in base64.")


class GenerateAnswer(_Answer):
    """The samples in order. `seed` and the same settings give the same codes again."""

    model: str
    version: str
    seed: int = Field(json_schema_extra=LARGE)
    items: list[GeneratedPicture]


class ScoredPicture(_Answer):
    """How well the prior expects a picture: fewer bits, more like the training set."""

    bits: float
    bits_per_code: float
    codes_shape: Shape
    bits_by_label: list[float] = Field(
        default_factory=list, description="Under each label in turn; absent without ?by_label=true."
    )


class ScoreAnswer(ScoredPicture):
    """Of one picture."""

    model: str
    version: str


class ScoreManyAnswer(_Answer):
    """Of several pictures, in their order."""

    model: str
    version: str
    items: list[ScoredPicture]
