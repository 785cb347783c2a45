"""What one commit of a run may carry: requests that wait are folded together, within bounds. No I/O."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from treadle.controlplane.machine import Request
from treadle.controlplane.machine.event_requests import RouteEvent
from treadle.controlplane.machine.requests import Asked, Claimed, FireTimer, Reply, RetryRun, StartRun
from treadle.v1.job_pb2 import JOB_KIND_RUN

__all__ = ("Item", "fold")

_REQUESTS = 100
_ENTRIES = 200
_ROUTED = 4
"""An event goes to a slot for each set of keys that it has values for: a few."""


@dataclass(slots=True)
class Item:
    """A request that waits for its commit; `settle` answers it once."""

    request: Request
    answer: Callable[[Reply | Exception], None]
    since_ms: int
    settled: bool = False

    def settle(self, reply: Reply | Exception) -> None:
        if not self.settled:
            self.settled = True
            self.answer(reply)


def fold(waiting: deque[Item]) -> list[Item]:
    """Take what one commit may carry: at most 200 entries, and one request that is checked against an event.

    A start comes first in its batch: it may begin another incarnation, and one commit writes events of one only. A timer of
    the run itself (or record) has a batch of its own: what works through pages is done in no other, and under steady traffic
    there would always be another.
    """
    items: list[Item] = []
    entries = 0
    checked = False
    alone = bool(waiting) and _alone(waiting[0].request)
    while waiting and len(items) < _REQUESTS:
        request = waiting[0].request
        size, checks = 1, False
        if isinstance(request, Asked):
            size = len(request.request.commands) + len(request.request.checkpoints) + 1
            checks = True
        elif isinstance(request, RouteEvent):
            size = _ROUTED
        elif isinstance(request, Claimed):
            checks = request.item.job.kind == JOB_KIND_RUN
        elif isinstance(request, FireTimer):
            checks = request.closes
        begins = isinstance(request, StartRun) or (isinstance(request, RetryRun) and request.input is not None)
        if items and (begins or entries + size > _ENTRIES or (checks and checked) or _alone(request) is not alone):
            break
        entries += size
        checked = checked or checks
        items.append(waiting.popleft())
    return items


def _alone(request: Request) -> bool:
    return isinstance(request, FireTimer) and not request.command_id
