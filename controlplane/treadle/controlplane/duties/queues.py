"""Has a queue gone past a job? The in-memory broker is simply asked; of RabbitMQ it is concluded.

A queue has gone past a job when, long enough after the job's publication and at least 15 s ago, it was seen empty, or a job
that was dispatched 15 s later was claimed from it.
"""

from __future__ import annotations

import asyncio

from treadle.controlplane.clock import monotonic_ms
from treadle.controlplane.engine import Engine
from treadle.protocol.errors import RequestError
from treadle.protocol.topology import Queue
from treadle.v1.job_pb2 import JOB_KIND_RUN, JOB_KIND_STEP

__all__ = ("QueueWatch",)

_PUBLISHED_MS = 5_000
"""An entry that the broker did not confirm is published again after this long."""

_SINCE_MS = 15_000
_LOOK_EVERY_MS = 5_000
_PATIENCE_S = 1.0


class QueueWatch:
    """Remembers when queues were seen empty. Times are those of the store's clock."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._empty: dict[Queue, list[int]] = {}
        self._looks: dict[Queue, tuple[int, asyncio.Future[bool]]] = {}

    async def passed(
        self, namespace: str, pool: str, is_run: bool, queued_ms: int, dispatch_id: str
    ) -> tuple[bool, bool]:
        """Return (the queue has gone past the job, it was just seen empty so that the answer comes soon)."""
        known = self._engine.broker.has(dispatch_id)
        if known is not None:
            return not known, False
        queue = Queue(namespace, pool, JOB_KIND_RUN if is_run else JOB_KIND_STEP)
        now = self._engine.clock.now()
        if self._engine.passed.get(queue, 0) >= queued_ms + _SINCE_MS:
            return True, False
        if any(queued_ms + _PUBLISHED_MS < seen <= now - _SINCE_MS for seen in self._empty.get(queue, ())):
            return True, False
        return False, await self._seen_empty(queue)

    async def _seen_empty(self, queue: Queue) -> bool:
        """Whether the queue is empty, as seen 5 s ago at most: one look for all its jobs, however many are due."""
        look = self._looks.get(queue)
        now_ms = monotonic_ms()
        if look is None or look[0] + _LOOK_EVERY_MS <= now_ms:
            look = self._looks[queue] = (now_ms, asyncio.ensure_future(self._look(queue)))
        return await asyncio.shield(look[1])

    async def _look(self, queue: Queue) -> bool:
        """Look at the queue. A broker that does not answer must not hold up the timers of others."""
        now = self._engine.clock.now()
        try:
            async with asyncio.timeout(_PATIENCE_S):
                depth = await self._engine.broker.depth(queue)
        except (RequestError, TimeoutError):
            return False
        if depth.ready:
            return False
        self._note(queue, now)
        return True

    def _note(self, queue: Queue, now: int) -> None:
        """Keep the newest observation and the newest one that is old enough to conclude from."""
        seen = self._empty.setdefault(queue, [])
        seen.append(now)
        old = [t for t in seen if t <= now - _SINCE_MS]
        self._empty[queue] = old[-1:] + [t for t in seen if t > now - _SINCE_MS][-20:]
