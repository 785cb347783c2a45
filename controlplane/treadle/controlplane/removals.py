"""Names that a worker which registers does not have any more, and that open runs still need. A warning, nothing else.

Names are kept for ever, so what was registered for a pool before and is missing now can be told. How many runs need a
workflow is the size of an index; who needs a step is looked up in the newest open runs. All of it is bounded.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Final

import structlog

from treadle.controlplane.api.fleet import worker_state
from treadle.controlplane.machine.indexes import status_index, workflow_index
from treadle.controlplane.store.port import Store, Want
from treadle.protocol.errors import RequestError
from treadle.protocol.ids import SHARDS, RunKey
from treadle.protocol.tags import split_name
from treadle.v1.pool_service_pb2 import WorkerState
from treadle.v1.run_service_pb2 import RUN_STATUS_NEEDS_ATTENTION, RUN_STATUS_RUNNING, RUN_STATUS_WAITING
from treadle.v1.state_pb2 import CommandRow, WorkerRecord
from treadle.v1.worker_service_pb2 import MissingName, RegisterRequest

__all__ = ("missing_names", "warn_of_missing")

_log = structlog.stdlib.get_logger(__name__)

_OPEN: Final = (RUN_STATUS_RUNNING, RUN_STATUS_WAITING, RUN_STATUS_NEEDS_ATTENTION)
_LOOKED_UP: Final = 50
"""So many names that are missing are looked up, and so many at most are told."""
_TOLD: Final = 20
_RUNS: Final = 200
_AT_ONCE: Final = 20
_ROWS: Final = 40
"""So many of the newest open runs are searched for steps, so many at once, so many fields of each."""


async def warn_of_missing(store: Store, namespace: str, pool: str, request: RegisterRequest) -> list[MissingName]:
    """Return what is missing, and log it. A store that is away is no reason to refuse a worker: then nothing is."""
    try:
        found = await missing_names(store, namespace, pool, request)
    except RequestError as error:
        _log.warning("names_not_compared", namespace=namespace, pool=pool, error=str(error))
        return []
    for one in found:
        _log.warning(
            "names_missing",
            namespace=namespace,
            pool=pool,
            worker=request.worker_id,
            name=one.name,
            kind="step" if one.step else "workflow",
            open_runs=one.runs,
            other_workers=one.workers,
        )
    return found


async def missing_names(store: Store, namespace: str, pool: str, request: RegisterRequest) -> list[MissingName]:
    """Return the names of this pool that the worker does not have and open runs need, those with most runs first.

    Raises:
        Unavailable: The store did not answer.
    """
    workflows, steps = await asyncio.gather(store.registry(namespace), store.steps(namespace))
    lost_workflows = _lost(workflows, pool, request.workflows)
    lost_steps = _lost(steps, pool, request.steps)
    if not lost_workflows and not lost_steps:
        return []
    counts = await asyncio.gather(*(_runs_of(store, namespace, name, workflows) for name in lost_workflows))
    found = [MissingName(name=name, runs=runs) for name, runs in zip(lost_workflows, counts, strict=True) if runs]
    if lost_steps:
        found += await _steps_in_use(store, namespace, pool, frozenset(lost_steps))
    if found:
        _count_workers(found, await store.workers(namespace), await store.now(), pool, request.worker_id)
    return sorted(found, key=lambda one: (-one.runs, one.name))[:_TOLD]


def _lost(registered: Mapping[str, str], pool: str, kept: Iterable[str]) -> list[str]:
    has = set(kept)
    return sorted(name for name, home in registered.items() if home == pool and name not in has)[:_LOOKED_UP]


async def _runs_of(store: Store, namespace: str, name: str, registered: Iterable[str]) -> int:
    """How many open runs need the code of this name; those of a version are no runs of the name alone."""

    async def count(one: str) -> int:
        return sum(await asyncio.gather(*(store.count(workflow_index(namespace, one, status)) for status in _OPEN)))

    runs = await count(name)
    if not runs or split_name(name)[1]:
        return runs
    versions = [one for one in registered if one != name and split_name(one)[0] == name]
    return runs - sum(await asyncio.gather(*(count(one) for one in versions[:_LOOKED_UP])))


async def _steps_in_use(store: Store, namespace: str, pool: str, lost: frozenset[str]) -> list[MissingName]:
    entries = await store.index(status_index(namespace, RUN_STATUS_RUNNING), range(SHARDS), limit=_RUNS + 1)
    found: Counter[str] = Counter()
    for start in range(0, min(len(entries), _RUNS), _AT_ONCE):
        part = entries[start : min(start + _AT_ONCE, _RUNS)]
        wants = [Want(RunKey(namespace, one.member), all_fields=True, field_limit=_ROWS) for one in part]
        for loaded in await store.load(wants):
            rows = [CommandRow.FromString(data) for key, data in loaded.fields.items() if key.startswith("c:")]
            found.update({row.name for row in rows if row.pool == pool and not row.local and row.name in lost})
    more = len(entries) > _RUNS
    return [MissingName(name=name, step=True, runs=runs, at_least=more) for name, runs in found.items()]


def _count_workers(
    found: Iterable[MissingName], records: Sequence[WorkerRecord], now_ms: int, pool: str, but: str
) -> None:
    others = [
        record
        for record in records
        if record.pool == pool
        and record.worker_id != but
        and worker_state(record, now_ms) == WorkerState.WORKER_STATE_LIVE
    ]
    for one in found:
        one.workers = sum(one.name in (other.steps if one.step else other.workflows) for other in others)
