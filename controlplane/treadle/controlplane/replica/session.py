"""One worker's session as its replica sees it: what it holds, what it was sent, and the batch that goes down next."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from treadle.protocol.ids import RunKey
from treadle.v1.common_pb2 import FailureHandler
from treadle.v1.history_pb2 import HistoryEvent
from treadle.v1.worker_service_pb2 import CancelAttempt, ClaimVerdict, Grant, Lane, News, SessionResponse

__all__ = ("FRAME_BYTES", "OpenRun", "Session")

_WINDOW = 200
"""Events sent to an owner and not yet confirmed: one page."""

FRAME_BYTES = 4 << 20
"""Largest frame, unless one entry is larger: pages of many runs may be ready at once, and a message has a bound."""

_Entries = Literal["report_answers", "progress_answers", "owner_answers", "verdicts", "grants", "news", "cancels"]
_IN_ORDER: tuple[_Entries, ...] = get_args(_Entries)


@dataclass(slots=True)
class OpenRun:
    """A run that this session's worker owns.

    Attributes:
        run: The run.
        token: Token of the owner.
        seen: Position that the owner has confirmed.
        sent: Position up to which events were sent down this session.
        length: Length of the history, as far as this replica knows.
    """

    run: RunKey
    token: bytes
    seen: int
    sent: int
    length: int

    @property
    def behind(self) -> bool:
        """Whether a page is to be loaded and sent."""
        return self.length > self.sent and self.sent - self.seen < _WINDOW


class Session:
    """See the module. `ready` is called when a batch begins; `frame()` and `frames()` hand it over.

    Attributes:
        handlers: What handles the failures of the worker's workflows, by their names.
    """

    def __init__(
        self,
        worker_id: str,
        session_id: str,
        namespace: str,
        pool: str,
        lane: Lane.ValueType,
        ready: Callable[[], None],
        handlers: Mapping[str, FailureHandler] | None = None,
    ) -> None:
        self.worker_id = worker_id
        self.session_id = session_id
        self.namespace = namespace
        self.pool = pool
        self.lane = lane
        self.handlers = handlers or {}
        self.open: dict[bytes, OpenRun] = {}
        self.granted: dict[bytes, tuple[RunKey, str]] = {}
        self._batch = SessionResponse()
        self._news_of: set[bytes] = set()
        self._empty = True
        self._ready = ready

    @property
    def batch(self) -> SessionResponse:
        """The batch that is being filled."""
        if self._empty:
            self._empty = False
            self._ready()
        return self._batch

    def frame(self) -> SessionResponse | None:
        """Return the batch, if there is anything in it."""
        if self._empty:
            return None
        batch, self._batch, self._empty = self._batch, SessionResponse(), True
        self._news_of.clear()
        return batch

    def frames(self) -> Iterator[SessionResponse]:
        """Return the batch as frames that gRPC carries, in the order in which a worker reads one frame."""
        batch = self.frame()
        if batch is None:
            return
        if batch.ByteSize() <= FRAME_BYTES:
            yield batch
            return
        frame, size = SessionResponse(), 0
        for name in _IN_ORDER:
            for entry in getattr(batch, name):
                if size and size + entry.ByteSize() > FRAME_BYTES:
                    yield frame
                    frame, size = SessionResponse(), 0
                getattr(frame, name).append(entry)
                size += entry.ByteSize()
            batch.ClearField(name)
        batch.MergeFrom(frame)  # what is said once stands in the last one
        yield batch

    def took_credits(self, credit_id: int, *, waits: bool) -> None:
        """Answer a statement of credits; `waits`: an answer to something else will soon take it along."""
        (self._batch if waits else self.batch).credits_taken = credit_id

    def granted_step(self, run: RunKey, command_id: str, token: bytes) -> None:
        """A GO for a step goes down this session."""
        self.granted[token] = (run, command_id)

    def granted_run(self, run: RunKey, grant: Grant, after: int) -> OpenRun:
        """A GO for a run goes down this session; its worker's coroutine was fed up to `after`."""
        self.granted[grant.token] = (run, "")
        events = grant.run.events
        sent = events[-1].position if events else after
        mine = OpenRun(run, grant.token, after, sent, grant.run.length)
        self.open[grant.token] = mine
        return mine

    def adopt(self, run: RunKey, token: bytes, seen: int) -> OpenRun:
        """An owner speaks over this session for the first time: it came from another one."""
        mine = self.open.get(token)
        if mine is None:
            mine = self.open[token] = OpenRun(run, token, seen, seen, seen)
            self.granted[token] = (run, "")
        return mine

    def confirmed(self, token: bytes, seen: int) -> None:
        """An owner said up to where its code was fed."""
        mine = self.open.get(token)
        if mine is not None:
            mine.seen = max(mine.seen, seen)
            mine.sent = max(mine.sent, seen)

    def forget(self, token: bytes) -> None:
        """The worker does not hold this any more."""
        self.open.pop(token, None)
        self.granted.pop(token, None)

    def news(self, mine: OpenRun, events: Sequence[HistoryEvent], length: int) -> None:
        """Send what follows what was sent, as far as the window goes."""
        mine.length = max(mine.length, length)
        fresh = []
        for event in events:
            if event.position == mine.sent + 1 and mine.sent - mine.seen < _WINDOW:
                fresh.append(event)
                mine.sent += 1
        if fresh:
            self._news_of.add(mine.token)
            self.batch.news.append(News(run_id=mine.run.run_id, token=mine.token, events=fresh, length=mine.length))

    def resend(self, mine: OpenRun) -> None:
        """Send again what was not confirmed, unless that has not even left: a worker that reads nothing costs one page."""
        if mine.token not in self._news_of:
            mine.sent = mine.seen

    def verdict(self, verdict: ClaimVerdict) -> None:
        """Answer a claim that concerns no run."""
        self.batch.verdicts.append(verdict)

    def cancel(self, token: bytes, reason: str) -> None:
        """Tell the worker to cut off an attempt."""
        self.batch.cancels.append(CancelAttempt(token=token, reason=reason))
