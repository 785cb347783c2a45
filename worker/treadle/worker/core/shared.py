"""What the parts of the core have in common: settings, session, the list of held tokens, actions for the shell."""

from __future__ import annotations

from collections.abc import Callable

from treadle.v1.job_pb2 import Job
from treadle.v1.state_pb2 import HeldToken

from .port import Action, CoreSettings, Note
from .rights import Right, Session

__all__ = ("HeldList", "Shared")


class HeldList:
    """The tokens that beats name (A5): from reading GO until the report is answered.

    `_current` is one immutable pair that is swapped as a whole: the beat thread reads it without a lock, once a second, and
    makes the messages; most tokens come and go between two beats.
    """

    __slots__ = ("_changed", "_current", "_random64", "_tokens")

    def __init__(self, random64: Callable[[], int]) -> None:
        self._random64 = random64
        self._tokens: dict[bytes, Job] = {}
        self._changed = False
        self._current: tuple[int, tuple[tuple[bytes, Job], ...]] = (random64(), ())

    def add(self, token: bytes, job: Job) -> None:
        self._tokens[token] = job
        self._changed = True

    def read(self) -> tuple[int, tuple[HeldToken, ...]]:
        """Id of the list, and the list as it was shown last. May be called from the beat thread."""
        list_id, held = self._current
        return list_id, tuple(
            HeldToken(
                run_id=job.run_id,
                command_id=job.command_id,
                token=token,
                namespace=job.namespace,
                incarnation=job.incarnation,
            )
            for token, job in held
        )

    def remove(self, token: bytes) -> None:
        if self._tokens.pop(token, None) is not None:
            self._changed = True

    def publish(self) -> None:
        """Show the list as it is now, under a new id if it changed."""
        if self._changed:
            self._changed = False
            self._current = (self._random64(), tuple(self._tokens.items()))


class Shared:
    """Handed to every part of the core. `ends`: by workflow, the position in the history by which the code ended last."""

    __slots__ = ("actions", "drain_over", "draining", "ends", "held", "random64", "session", "settings")

    def __init__(self, settings: CoreSettings, random64: Callable[[], int]) -> None:
        self.settings = settings
        self.random64 = random64
        self.session = Session()
        self.held = HeldList(random64)
        self.actions: list[Action] = []
        self.draining = False
        self.drain_over = False
        self.ends: dict[str, int] = {}

    def right(self, sent_ms: int) -> Right:
        """The right that the answer to a request sent at `sent_ms`, read in this session, gives."""
        return Right(sent_ms + self.settings.right_ms, self.session.epoch)

    def renew(self, right: Right, sent_ms: int) -> None:
        """Make of a right what `right` returns."""
        right.until_ms = sent_ms + self.settings.right_ms
        right.epoch = self.session.epoch

    def note(self, level: str, event: str, **fields: object) -> None:
        """Leave a log line. `level` is one of Note's."""
        self.actions.append(Note(level, event, tuple(fields.items())))  # type: ignore[arg-type]
