"""Which starts are taken: of known workflows, while the outbox is not full."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from functools import partial
from typing import Final

from treadle.controlplane.api import checks
from treadle.controlplane.api.fresh import Fresh
from treadle.controlplane.store.port import Store
from treadle.protocol.errors import NotFound, Refused, TreadleError, Unavailable

__all__ = ("Admission", "Target")

_NAMESPACES: Final = 1_000
_POOLS: Final = 10_000
"""So many of each are remembered: names come from callers, and there is no end of them."""

Target = tuple[str, str]
"""What a start asks for: workflow, and pool or ""."""


class Admission:
    """See the module. What it knows of the store is a second old at most.

    Args:
        store: Has the registry and the size of the outbox.
        outbox_max: From so many entries on, starts are refused.
    """

    def __init__(self, store: Store, outbox_max: int) -> None:
        self._store = store
        self._outbox_max = outbox_max
        self._outbox = Fresh(store.outbox_size)
        self._registry: dict[str, Fresh[Mapping[str, str]]] = {}
        self._pools: set[tuple[str, str]] = set()

    async def pools_of(self, namespace: str, targets: Iterable[Target]) -> dict[Target, str | TreadleError]:
        """Return the pool of each target, or why it is refused. A store that is away is asked once for all of them."""
        found: dict[Target, str | TreadleError] = {}
        away: Unavailable | None = None
        for target in targets:
            if away is not None:
                found[target] = away
                continue
            try:
                found[target] = await self.pool_of(namespace, *target)
            except Unavailable as error:
                found[target] = away = error
            except TreadleError as error:
                found[target] = error
        return found

    async def pool_of(self, namespace: str, workflow: str, pool: str) -> str:
        """Return the pool that executes the workflow: the one given, or where it was registered last.

        Raises:
            FieldInvalid: Workflow or pool is no name.
            NotFound: Nobody ever registered the workflow, and no pool is given.
            Refused: The outbox is full.
            Unavailable: The store is away.
        """
        checks.workflow_of(workflow)
        await self._check_outbox()
        if checks.pool_of(pool):
            await self._note_pool(namespace, pool)
            return pool
        asked_at = time.monotonic()
        known = self._registry.get(namespace)
        if known is None:
            if len(self._registry) >= _NAMESPACES:
                self._registry.clear()
            known = self._registry[namespace] = Fresh(partial(self._store.registry, namespace))
        registry = await known.get()
        if workflow not in registry:
            registry = await known.get(since=asked_at)  # it may have been registered a moment ago
        if workflow not in registry:
            raise NotFound(
                f"nobody ever registered {workflow!r} in namespace {namespace!r}: "
                "start a worker that has it, or give pool=",
                reason="WORKFLOW_NOT_FOUND",
                remedy="start a worker that has the workflow, or give the pool that will have it",
            )
        return registry[workflow]

    async def _check_outbox(self) -> None:
        """Refuse while too much waits for the broker."""
        size = await self._outbox.get()
        if size >= self._outbox_max:
            raise Refused(
                f"{size:,} jobs wait for the broker, the limit is {self._outbox_max:,}",
                reason="OUTBOX_FULL",
                remedy="see whether RabbitMQ is up and not blocked (`treadle doctor`), then try again",
            )

    async def _note_pool(self, namespace: str, pool: str) -> None:
        """Make a pool known that is only started into, so that it is listed and its queues are watched."""
        if (namespace, pool) not in self._pools:
            await self._store.register(namespace, pool, (), ())
            if len(self._pools) >= _POOLS:
                self._pools.clear()
            self._pools.add((namespace, pool))
