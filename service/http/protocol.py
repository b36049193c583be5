"""uvicorn's HTTP protocol, with the head and the body of an answer in one packet, and refusals that cost little.

In: what the app sends, in two messages at least. Out: one system call for an answer that is sent at once, instead of
two, of which the first wakes the client for a head without a body. Streams go out at the next turn of the event loop.
When too many requests are inside, the protocol refuses the next one itself (`service.http.refusal`), and always a
request whose URL and headers are too large or too slow: uvicorn would collect them without end, and so it would
requests that come before their turn (`service.http.pipelining`). Nor does it wait without end for a client to read an
answer (`service.http.unread`); how a connection ends whose client still sends says `service.http.lingering`.
"""

from __future__ import annotations

import asyncio

import httptools
from starlette.types import Scope
from uvicorn.protocols.http.httptools_impl import RequestResponseCycle

from service.http.head_bounds import LARGEST_HEAD, LARGEST_KEPT
from service.http.joining import JoiningTransport
from service.http.lingering import MOST_LINGER_S
from service.http.pipelining import MOST_PIPELINED
from service.http.refusal import EarlyRefusal, Headers, Heads, has_body
from service.http.unread import UnreadAnswers
from service.http.upgrades import Upgrades

# where the state that the app's lifespan yields holds its `EarlyRefusal`, if it has one, `Heads` and `UnreadAnswers`
REFUSAL, HEADS, UNREAD = "refusal", "heads", "unread"


class _TooManyPipelinedError(Exception):
    """Stops the parser."""


class OnePacket(Upgrades):
    """`transport` is a `JoiningTransport`; a complete answer does not wait for the next turn."""

    _refusing: str | None = None  # why, of the message that is being read
    _unfinished_bytes = 0  # that came since a head or a piece of a body was complete; the parser keeps a header whole
    _begun = 0  # messages of the newest read
    _overrun = False  # too many requests wait: no more are read, and the connection ends with the answers that are due
    # runs while a head is awaited that did not come whole, or the body of a request that is refused here
    _head_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        joining = JoiningTransport(transport, self.loop, self._begin_to_linger)
        super().connection_made(joining)  # type: ignore[arg-type]
        self._await_head()

    def connection_lost(self, exc: Exception | None) -> None:
        self._await_no_head()
        self._heads.unbegun.forget(self)
        self._unread.forget(self.transport)
        super().connection_lost(exc)
        self._deaf = True
        self._unset_keepalive_if_required()  # after a reset, too
        self.transport.forget()  # type: ignore[attr-defined]

    def _begin_to_linger(self) -> bool:
        """Whether the connection ends later, because the client still sends: a request that has its answer, or too many
        that never get one."""
        sending = self._within and self.cycle is not None and self.cycle.response_started
        lingers = self._overrun or (sending and not self._deaf)
        if not lingers or self.transport.is_closing():
            self._unread.watch(self.transport)  # an answer that has been given up may never be read either
            return False
        self._deaf, self._overrun = True, False
        self.pipeline.clear()  # nothing follows the answer that ends the connection
        self._await_no_head()
        self.transport.resume_reading()
        self._linger(MOST_LINGER_S)
        return True

    def _await_head(self) -> None:
        if self._head_timer is None:
            self._head_timer = self.loop.call_later(self._heads.timeout_s, self._refuse_slow_head)

    def _await_no_head(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None
            self._heads.unbegun.forget(self)

    @property
    def _heads(self) -> Heads:
        heads: Heads = self.app_state[HEADS]
        return heads

    @property
    def _unread(self) -> UnreadAnswers:
        unread: UnreadAnswers = self.app_state[UNREAD]
        return unread

    def on_response_complete(self) -> None:
        self.transport.flush()  # type: ignore[attr-defined]
        self._unread.watch(self.transport)
        waited = bool(self.pipeline)
        super().on_response_complete()
        if waited:
            self._count_what_waits()
        if self._deaf:  # it lingers: nobody waits for another request
            self._unset_keepalive_if_required()

    def data_received(self, data: bytes) -> None:
        if self._deaf:
            self._heard = True
            return
        if self._refused_whole(data):
            return
        self._unfinished_bytes += len(data)
        self._unset_keepalive_if_required()
        began_outside, self._begun = not self._within, 0
        self._parse(data)
        if began_outside and self._begun == 1 and self._within_head:
            self._unfinished_bytes = len(data)
        if self._unfinished_bytes > LARGEST_HEAD:
            self.refuse_large_head()
        else:
            self._count_what_waits()

    def _count_what_waits(self) -> None:
        waits = self.flow.waiting_bytes + sum(self._waiting_heads.values())
        if not self._deaf and (self._within_head or (self._unfinished_bytes and not self._within)):
            self._await_head()
            waits += self._kept_bytes + self._unfinished_bytes
        self._heads.unbegun.keep(self, waits)

    def _has_begun(self, cycle: RequestResponseCycle) -> None:
        if cycle in self._waiting_heads:
            super()._has_begun(cycle)
            self._count_what_waits()

    def _parse(self, data: bytes) -> None:
        try:
            self._feed(data)
        except httptools.HttpParserError:
            self.send_400_response("")

    def _refused_whole(self, data: bytes) -> bool:
        """Whether `data` was a request that has been refused without the parser."""
        if self._within or self._unfinished_bytes or not self._is_idle() or self.flow.write_paused:
            return False
        refusal: EarlyRefusal | None = self.app_state.get(REFUSAL)
        answer = refusal.of_whole(len(self.tasks), data) if refusal is not None else None
        if answer is None:
            return False
        self._await_no_head()
        self._write_own(answer)
        self.on_response_complete()
        return True

    def _write_own(self, answer: bytes) -> None:
        """With the headers that answers of the app get as well: the date (RFC 9110, 6.6.1)."""
        status, _, rest = answer.partition(b"\r\n")
        headers = b"".join(b"%b: %b\r\n" % pair for pair in self.server_state.default_headers)
        self.transport.write(b"%b\r\n%b%b" % (status, headers, rest))

    def on_message_begin(self) -> None:
        if self._repeating:
            return
        if len(self.pipeline) >= MOST_PIPELINED or sum(self._waiting_heads.values()) > LARGEST_KEPT:
            self._end_with_due_answers()
            raise _TooManyPipelinedError
        self._within = self._within_head = True
        self._begun += 1
        self._unfinished_bytes = 0
        super().on_message_begin()

    def send_400_response(self, msg: str) -> None:
        """The parser has stopped."""
        if self._head_is_too_large:
            self.refuse_large_head()
        elif not (self.transport.is_closing() or self._deaf):
            if self._body_is_awaited():
                self._deaf = True
                scope: Scope = self.cycle.scope  # type: ignore[assignment]
                self._write_own(self._heads.malformed_body(scope, self._headers_so_far))
                self.transport.close()
            else:
                self._end_with(self._heads.malformed(self._headers_so_far))

    def _body_is_awaited(self) -> bool:
        """Whether what is malformed is the body of a request that its app still waits for."""
        awaited = self._within and not self._within_head and not self._is_idle()
        return awaited and not (self.cycle.response_started or self.pipeline)

    def give_up(self) -> None:
        if self.flow.waiting_bytes or self._waiting_heads:
            self.transport.abort()
        else:
            self.refuse_large_head()

    def refuse_large_head(self) -> None:
        if not (self.transport.is_closing() or self._deaf):
            self._end_with(self._heads.too_large(self._headers_so_far))

    def _refuse_slow_head(self) -> None:
        """Without an answer ends, as an idle connection does later, one that has said nothing since it was made, sends
        empty lines, or the body of a request that is refused here."""
        self._head_timer = None
        self._heads.unbegun.forget(self)
        if self.transport.is_closing() or self._deaf:
            return
        if self._within_head:
            self._end_with(self._heads.too_slow(self._headers_so_far))
        elif self._is_idle():
            self._deaf = True
            self.transport.close()
        else:
            self._await_head()
            self._count_what_waits()

    def _end_with(self, answer: bytes) -> None:
        """Nothing is read any more. Where earlier requests, which are whole, wait for their answers, the connection
        ends with those, and this one gets none. An answer whose own request is broken ends with the connection."""
        self._deaf = True
        self._await_no_head()
        if self._is_idle():
            self._write_own(answer)
            self._linger()
        elif self._within and not self._within_head and not self.pipeline:
            self.transport.close()
        else:
            if self._within and not self._within_head:  # it waits for its turn, and its head was whole
                self._waiting_heads.pop(self.pipeline.popleft()[0])
                self.cycle = self.pipeline[0][0] if self.pipeline else self._answering  # type: ignore[assignment]
            self._end_with_due_answers()

    def _end_with_due_answers(self) -> None:
        self._deaf = self._overrun = True
        self.cycle.keep_alive = False  # of the newest one that waits

    @property
    def _headers_so_far(self) -> Headers:
        """Of the message that is being read."""
        return self.headers if self._within else ()

    def _is_idle(self) -> bool:
        """Else a request is pipelined, and answers keep their order."""
        return self.cycle is None or self.cycle.response_complete

    def on_headers_complete(self) -> None:
        if self._repeating:
            return
        self._unfinished_bytes = 0
        self._await_no_head()
        self._unset_keepalive_if_required()  # a refusal may have begun it in this read
        self._interrupted = self.parser.should_upgrade() and has_body(self.headers)
        self._refusing = self._why_to_be_refused()
        if self._refusing is not None:
            self._await_head()  # nor is its body awaited for longer
        else:
            super().on_headers_complete()
            if self.pipeline or self.flow.write_paused:
                self._waiting_heads[self.cycle] = self._kept_bytes
        self._within_head = False  # now that its target is known to be one

    def _why_to_be_refused(self) -> str | None:
        """Not where earlier answers wait for their client: an answer made here would be added without end to them, one
        of the app waits."""
        refusal: EarlyRefusal | None = self.app_state.get(REFUSAL)
        if refusal is None or self.flow.write_paused or not self._is_idle():
            return None
        if self.parser.get_method() == b"HEAD":  # whose answer has no body
            return None
        return refusal.why(len(self.tasks), self.url, self.headers)

    def on_body(self, body: bytes) -> None:
        self._unfinished_bytes = 0
        if self._refusing is None:
            super().on_body(body)

    def on_message_complete(self) -> None:
        if self._interrupted:
            return
        self._await_no_head()
        self._within = False
        self._unfinished_bytes = 0
        if self._refusing is None:
            super().on_message_complete()
            if not self.parser.should_keep_alive():  # a trailer may say so, too: the parser reads nothing more
                self.cycle.keep_alive = False
            return
        reason, self._refusing = self._refusing, None
        keep_alive = self.parser.should_keep_alive() and self.parser.get_http_version() != "1.0"
        self._write_own(self.app_state[REFUSAL].answer(reason, self.url, self.headers, keep_alive))
        if keep_alive:
            self.on_response_complete()
        else:
            self.transport.close()
