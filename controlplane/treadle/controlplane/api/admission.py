"""Which starts are taken: of known workflows, while the outbox is not full."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from functools import partial
from typing import Final

from treadle.controlplane.api import checks
from treadle.controlplane.api.fleet import Fleet
from treadle.controlplane.api.fresh import Fresh
from treadle.controlplane.store.port import Store
from treadle.protocol.errors import NotFound, Refused, TreadleError, Unavailable
from treadle.protocol.tags import check_version, split_name

__all__ = ("Admission", "Target")

_NAMESPACES: Final = 1_000
_POOLS: Final = 10_000
"""So many of each are remembered: names come from callers, and there is no end of them."""

_NEW_MS: Final = 30_000
"""A version that was first registered so short a time ago is taken to have a live worker: it is just coming."""

Target = tuple[str, str]
"""What a start asks for: workflow, and pool or "". What that comes to: the workflow with its version, and the pool."""


class _Names:
    """What is registered in a namespace: workflows and their pools, and versions, the newest first."""

    def __init__(self, pools: Mapping[str, str], first: Mapping[str, int]) -> None:
        self.pools, self.first = pools, first
        self.versions: dict[str, list[str]] = {}
        for code in sorted(first, key=lambda code: (first[code], code), reverse=True):
            self.versions.setdefault(split_name(code)[0], []).append(code)

    def has(self, workflow: str) -> bool:
        """Whether anybody ever registered it, or a version of it."""
        return workflow in self.pools or workflow in self.versions


class Admission:
    """See the module. What it knows of the store is a second old at most.

    Args:
        store: Has the registry and the size of the outbox.
        outbox_max: From so many entries on, starts are refused.
        fleet: Which versions live workers have.
    """

    def __init__(self, store: Store, outbox_max: int, fleet: Fleet | None = None) -> None:
        self._store = store
        self._outbox_max = outbox_max
        self._outbox = Fresh(store.outbox_size)
        self._fleet = fleet or Fleet(store)
        self._registry: dict[str, Fresh[_Names]] = {}
        self._pools: set[tuple[str, str]] = set()

    async def targets_of(self, namespace: str, targets: Iterable[Target]) -> dict[Target, Target | TreadleError]:
        """Return what each target comes to, or why it is refused. A store that is away is asked once for all of them."""
        found: dict[Target, Target | TreadleError] = {}
        away: Unavailable | None = None
        for target in targets:
            if away is not None:
                found[target] = away
                continue
            try:
                found[target] = await self.target_of(namespace, *target)
            except Unavailable as error:
                found[target] = away = error
            except TreadleError as error:
                found[target] = error
        return found

    async def target_of(self, namespace: str, workflow: str, pool: str) -> Target:
        """Return the workflow, with its version if it has any, and the pool: the one given, or where it was registered last.

        Raises:
            FieldInvalid: Workflow, version or pool is no name.
            NotFound: Nobody ever registered the workflow, and no pool is given.
            Refused: The outbox is full.
            Unavailable: The store is away.
        """
        name, version = split_name(checks.workflow_of(workflow))
        if version:
            check_version(version)
        await self.check_outbox()
        known = self._known(namespace)
        if checks.pool_of(pool):
            await self._note_pool(namespace, pool)
            return workflow if version else await self._newest(namespace, name, await known.get()), pool
        asked_at = time.monotonic()
        names = await known.get()
        if not names.has(workflow):
            names = await known.get(since=asked_at)  # it may have been registered a moment ago
        if not names.has(workflow):
            raise NotFound(
                f"nobody ever registered {workflow!r} in namespace {namespace!r}: "
                "start a worker that has it, or give pool=",
                reason="WORKFLOW_NOT_FOUND",
                remedy="start a worker that has the workflow, or give the pool that will have it",
            )
        code = workflow if version else await self._newest(namespace, name, names)
        return code, (await known.get()).pools[code]

    async def code_of(self, namespace: str, workflow: str) -> str:
        """Return what a start of this name means now: a name with a version itself, otherwise the newest version that a live
        worker has, if there are versions at all.

        Raises:
            Unavailable: The store is away.
        """
        if split_name(workflow)[1]:
            return workflow
        return await self._newest(namespace, workflow, await self._known(namespace).get())

    async def codes_of(self, namespace: str, workflows: Iterable[str], *, fresh: bool = True) -> dict[str, str]:
        """Return what starts of these names, without versions, mean now; with `fresh` what was registered a moment ago counts.

        Raises:
            Unavailable: The store is away.
        """
        names = await self._known(namespace).get(since=time.monotonic() if fresh else None)
        return {workflow: await self._newest(namespace, workflow, names) for workflow in workflows}

    def _known(self, namespace: str) -> Fresh[_Names]:
        known = self._registry.get(namespace)
        if known is None:
            if len(self._registry) >= _NAMESPACES:
                self._registry.clear()
            known = self._registry[namespace] = Fresh(partial(self._read, namespace))
        return known

    async def _read(self, namespace: str) -> _Names:
        first = await self._store.versions(namespace)
        return _Names(await self._store.registry(namespace), first)  # read later, it has all of them

    async def _newest(self, namespace: str, workflow: str, names: _Names) -> str:
        """Return the version that a start by name alone means: of those that a live worker has, the one that was first
        registered last (one that has just come counts as alive). Nobody is alive: the newest of all."""
        if workflow not in names.versions:
            return workflow
        names = await self._known(namespace).get(since=time.monotonic())  # another may have come a moment ago
        newest_first = names.versions[workflow]
        live, now_ms = await self._fleet.live(namespace)
        for code in newest_first:
            if code in live or now_ms - names.first[code] < _NEW_MS:
                return code
        return workflow if workflow in live else newest_first[0]

    async def check_outbox(self) -> None:
        """Refuse while too much waits for the broker. Raises Refused, or Unavailable."""
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
