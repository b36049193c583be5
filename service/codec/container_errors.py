"""What can be wrong with code bytes. Every failure to read a container is one of these, with a message for its sender.

In: nothing. Out: the exceptions. `type` is stable: recorded mutations and the fuzzer name errors by it. Over HTTP
they are `invalid-container`, or for OverLimitError `too-many-items` or `picture-too-large`, for TileError
`invalid-parameter`.
"""

from __future__ import annotations


class ContainerError(ValueError):
    """The bytes are not a container that this model can decode."""

    type = "container"


class NotAContainerError(ContainerError):
    """The first bytes are not the magic number."""

    type = "container-magic"


class FormatVersionError(ContainerError):
    """A container of another format version."""

    type = "container-format-version"


class WrongModelError(ContainerError):
    """Made by another model, or by another version of this one."""

    type = "container-model"


class HeaderError(ContainerError):
    """A header field that no encoder writes."""

    type = "container-header"


class TileError(ContainerError):
    """A sound container without the tile that was asked for."""

    type = "container-tile"


class OverLimitError(ContainerError):
    """A valid header that asks for more than the limits allow."""

    type = "container-over-limit"

    def __init__(self, message: str, *, of_pictures: bool) -> None:
        super().__init__(message)
        self.of_pictures = of_pictures  # else of their size


class DamagedError(ContainerError):
    """Truncated, extended or altered bytes, found before the checksum."""

    type = "container-damaged"


class ChecksumError(DamagedError):
    """The decoded codes are not those that were encoded."""

    type = "container-checksum"
