"""Which sets of keys all routers of a name were told of not long ago: what this replica saw committed. No I/O."""

from __future__ import annotations

from collections.abc import Callable

from treadle.controlplane.machine.event_routers import ROUTERS, routers
from treadle.controlplane.machine.requests import Reply, RunReply
from treadle.v1.state_pb2 import Letter

__all__ = ("KnownKeys",)

_FOR_MS = 600_000
_MOST = 10_000

_Set = tuple[str, str, tuple[str, ...]]


def _one_life() -> int:
    return 0


class KnownKeys:
    """See the module. A set that is not known here is told of again, which changes nothing.

    Args:
        lives: See `RunStore.lives`: what was committed in an earlier one may be gone.
    """

    def __init__(self, lives: Callable[[], int] = _one_life) -> None:
        self._lives = lives
        self._life = lives()
        self._told: dict[_Set, dict[str, int]] = {}

    def note(self, letter: Letter, reply: Reply | Exception, now_ms: int, life: int | None = None) -> None:
        """A router has answered a letter; `life`: of the store, when it was sent (None: this one).

        Keys that it has no room for are told again: who asks is to be refused, too.
        """
        self._look()
        if not isinstance(reply, RunReply) or not reply.started or life not in (None, self._life):
            return
        asked = letter.use_keys
        key = (letter.namespace, asked.name, tuple(asked.keys))
        if key not in self._told and len(self._told) >= _MOST:
            self._told.clear()
        self._told.setdefault(key, {})[letter.run_id] = now_ms

    def known(self, namespace: str, name: str, keys: tuple[str, ...], now_ms: int) -> bool:
        """Whether every router of the name was told of this set in the last minutes."""
        self._look()
        told = self._told.get((namespace, name, keys), {})
        return len(told) == ROUTERS and all(told.get(r, 0) > now_ms - _FOR_MS for r in routers(name))

    def _look(self) -> None:
        life = self._lives()
        if life != self._life:
            self._life = life
            self._told.clear()
