"""The session as the worker sees it, and rights to start (A4).

A right comes from the answer to a commit under the token, ends `right_ms` after the request was *sent*, and is void once
the session that brought the answer was seen to end. `epoch` counts sessions, so voiding every right costs nothing.
"""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ("Right", "Session")


@dataclass(slots=True)
class Session:
    """Whether a session is open.

    Attributes:
        open: The welcome was read and no end was seen since.
        epoch: Number of sessions so far.
        ended_at: When the last one was seen to end (or the worker began), by the worker's clock (ms).
        replacing: The shell was asked for another session; asked once per session.
        silent_since: Since when it is open and what was asked over it is overdue (ms); None: it answers.
    """

    open: bool = False
    epoch: int = 0
    ended_at: int = 0
    replacing: bool = False
    silent_since: int | None = None

    @property
    def deaf_since(self) -> int | None:
        """Since when nobody answers what is asked (ms): there is no session, or a silent one. None: somebody does."""
        return self.silent_since if self.open else self.ended_at

    def begin(self) -> None:
        self.open = True
        self.epoch += 1
        self.replacing = False
        self.silent_since = None

    def end(self, now_ms: int) -> None:
        if self.open:
            self.open = False
            self.ended_at = now_ms


class Right:
    """Until when user code may start under a token."""

    __slots__ = ("epoch", "until_ms")

    def __init__(self, until_ms: int, epoch: int) -> None:
        self.until_ms = until_ms
        self.epoch = epoch

    def valid(self, session: Session, now_ms: int) -> bool:
        return session.open and self.epoch == session.epoch and now_ms < self.until_ms
