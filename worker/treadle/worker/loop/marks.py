"""Which way the code of a run takes at its marked changes, and its tags: decided once, and the same in each replay.

At a change that the history has a mark of, the code takes the new way. Otherwise it takes the old one where an owner
before had been fed past that point, for what it did there is recorded; and the new one, which is marked then, where nobody
had come so far. The first answer counts for the whole run. No mark is written for the old way: how far owners had been fed
only grows, so the next owner answers the same.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Final

from treadle.protocol.errors import ConfigError
from treadle.protocol.tags import TAGS_AT_MOST
from treadle.v1.common_pb2 import Tag
from treadle.v1.history_pb2 import ChangeMarked
from treadle.v1.worker_service_pb2 import Command, MarkChange, SetTags
from treadle.worker.loop.durable_loop import DurableLoop
from treadle.worker.loop.ledger import Ledger
from treadle.worker.loop.port import RunContext

__all__ = ("Marks",)

_CHANGES: Final = 100


class Marks:
    """Those of one execution.

    Attributes:
        tags: What the run is found by, as far as its code has come.
        until: Position up to which owners before had been fed: what the code does there, it did before.
    """

    __slots__ = ("_ledger", "_loop", "_marked", "_ways", "tags", "until")

    def __init__(self, context: RunContext, ledger: Ledger, loop: DurableLoop) -> None:
        self._ledger, self._loop = ledger, loop
        self.until = context.passed_until
        self._marked = set(context.marks)
        self._ways: dict[str, bool] = {}
        self.tags: dict[str, str] = {}

    def learn(self, until: int, marked: Iterable[str]) -> None:
        """Other owners had the run since the coroutine was made: what they did comes as replay."""
        self.until = max(self.until, until)
        self._marked.update(marked)

    def recorded(self, event: ChangeMarked, position: int) -> None:
        """The history has a mark."""
        self._marked.add(event.name)
        ask = self._ledger.find(event.command_id)
        if ask is not None:  # otherwise the code knew it beforehand, or the call was taken out of it
            self._ledger.noted(event.command_id, ask.digest, position)

    def changed(self, name: str, position: int) -> bool:
        """The code is at a change, fed up to `position`: return whether it takes the new way.

        Raises:
            ConfigError: It has come by too many changes.
        """
        if self._loop.closing:
            raise GeneratorExit
        known = self._ways.get(name)
        if known is not None:
            return known
        if len(self._ways) >= _CHANGES:
            raise ConfigError(f"changed({name!r}): a run goes by {_CHANGES} marked changes at most")
        marked = name in self._marked
        new = self._ways[name] = marked or position > self.until
        if new and not marked and not self._loop.finishing:
            self._ledger.note("changed", name, b"", Command(mark_change=MarkChange(name=name)))
        return new

    def set_tags(self, tags: Mapping[str, str]) -> None:
        """The code changes its tags; an empty value takes one away.

        Raises:
            ConfigError: There would be too many.
        """
        new = {key: value for key, value in tags.items() if self.tags.get(key, "") != value}
        merged = {key: value for key, value in {**self.tags, **new}.items() if value}
        if len(merged) > TAGS_AT_MOST:
            raise ConfigError(f"set_tags(): the run would have {len(merged)} tags; it may have {TAGS_AT_MOST}")
        if self._loop.closing:
            raise GeneratorExit
        self.tags = merged
        if new and not self._loop.finishing:
            said = SetTags(tags=[Tag(key=key, value=new[key]) for key in sorted(new)])
            data = said.SerializeToString(deterministic=True)
            self._ledger.note(self._loop.current_path(), "tags", data, Command(set_tags=said))
