"""The stream of a generation. In: lines of `text/event-stream`. Out: a `Row` for each row, then one `Generation`."""

from __future__ import annotations

import json
from collections.abc import Iterator

from vqserve.answers import QUOTED, UNREADABLE, Generation, Row
from vqserve.problems import UnexpectedAnswerError, problem_of_event


class Events:
    def __init__(self) -> None:
        self._event = "message"
        self._data: list[str] = []
        self._done = False

    def feed(self, line: str) -> Iterator[Row | Generation]:
        """The value that this line, without its line end, completes: none or one.

        Raises ProblemError for the event `error`, with which the service ends a stream that it cannot finish, and
        UnexpectedAnswerError for an event that is not what the service of this version sends.
        """
        name, _, value = line.partition(":")
        value = value.removeprefix(" ")
        if name == "event":
            self._event = value
        elif name == "data":
            self._data.append(value)
        elif line == "" and self._data:
            event, data = self._event, "\n".join(self._data)
            self._event, self._data = "message", []
            yield from self._complete(event, data)

    def finish(self) -> None:
        """Call it when the lines end. Raises UnexpectedAnswerError unless the answer was complete."""
        if not self._done:
            raise UnexpectedAnswerError("the stream ended before its last event")

    def _complete(self, event: str, data: str) -> list[Row | Generation]:
        try:
            fields = json.loads(data)
            if event == "row":
                return [Row.of(fields)]
            if event == "done":
                generation = Generation.of(fields)
                self._done = True
                return [generation]
        except UNREADABLE as error:
            raise UnexpectedAnswerError(f"the stream has an unknown event {event!r}: {error!r:.{QUOTED}}") from error
        if event == "error":
            raise problem_of_event(fields)
        return []
