"""Schedules that code declares: each registration of a worker says which of its workflows start by themselves.

The last registration counts. A workflow that declares a schedule has one of its name; one that does not (any more) leaves
the schedule it had standing still, for a person to look at.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence

from treadle.controlplane.api.schedule_service import NAME_LIMIT
from treadle.controlplane.engine import Engine
from treadle.controlplane.machine.occurrences import check
from treadle.controlplane.machine.schedule_requests import DeclareSchedule, UndeclareSchedule
from treadle.controlplane.machine.schedules import record_of
from treadle.controlplane.store.port import Want
from treadle.protocol.errors import FieldInvalid
from treadle.protocol.tags import split_name
from treadle.v1.schedule_pb2 import ScheduleSpec
from treadle.v1.state_pb2 import RunHead
from treadle.v1.worker_service_pb2 import RegisterRequest

__all__ = ("CodesOf", "declare_schedules", "declared_schedules")

CodesOf = Callable[[str, Iterable[str]], Awaitable[Mapping[str, str]]]
"""Namespace and names of workflows -> what starts of these names mean now."""


def declared_schedules(request: RegisterRequest, pool: str) -> dict[str, ScheduleSpec]:
    """Return what a registration declares, by workflow: versions of one name share a schedule, that of the last of them.

    Raises:
        FieldInvalid: A schedule cannot be kept; names the workflow, the value, and of a cron line the field.
    """
    found: dict[str, ScheduleSpec] = {}
    for spec in request.specs:
        if not spec.HasField("schedule"):
            continue
        schedule = ScheduleSpec()
        schedule.CopyFrom(spec.schedule)
        schedule.workflow, schedule.pool = split_name(spec.name)[0], pool
        try:
            check(schedule)
        except FieldInvalid as error:
            raise FieldInvalid(f"workflow {spec.name!r}: {error}", field="specs", remedy=error.remedy) from error
        if spec.name not in request.workflows or len(spec.name) > NAME_LIMIT:
            raise FieldInvalid(
                f"workflow {spec.name[:80]!r}: a schedule needs a workflow of the worker, with a name of at most "
                f"{NAME_LIMIT} characters",
                field="specs",
            )
        found[split_name(spec.name)[0]] = schedule
    return found


async def declare_schedules(
    engine: Engine,
    namespace: str,
    workflows: Sequence[str],
    declared: Mapping[str, ScheduleSpec],
    codes_of: CodesOf | None = None,
) -> None:
    """Write what is declared, and let stand still what is not declared any more.

    Of a workflow with versions, only a worker with the version that a start by its name means has a say: older ones live on
    for the runs that are pinned to them, and may register again at any time.

    Raises:
        RequestError: The store is away.
    """
    names = dict.fromkeys(split_name(name)[0] for name in workflows)
    if codes_of is not None:
        codes = await codes_of(namespace, names)
        names = dict.fromkeys(name for name in names if codes[name] in workflows)
    for name, spec in declared.items():
        if name in names:
            await engine.ask(record_of(namespace, name), DeclareSchedule(spec))
    others = [record_of(namespace, name) for name in names if name not in declared]
    loaded = await engine.store.load([Want(record) for record in others]) if others else []
    for record, found in zip(others, loaded, strict=True):
        if found.head:
            schedule = RunHead.FromString(found.head).schedule
            if schedule.declared and not schedule.orphaned:
                await engine.ask(record, UndeclareSchedule())
