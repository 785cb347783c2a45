"""ScheduleService: what clients do with schedules. Checks the request, asks the engine or reads the store, shows the answer."""

from __future__ import annotations

from typing import Final

from treadle.controlplane.api import checks
from treadle.controlplane.api.admission import Admission
from treadle.controlplane.api.errors import Context
from treadle.controlplane.api.fleet import Fleet
from treadle.controlplane.api.pages import Cursor, page_size, read_token, write_token
from treadle.controlplane.api.starts import Engine
from treadle.controlplane.machine import schedule_requests as requests
from treadle.controlplane.machine.indexes import schedule_index
from treadle.controlplane.machine.occurrences import check, upcoming
from treadle.controlplane.machine.schedule_requests import ScheduleReply, ScheduleRequest
from treadle.controlplane.machine.schedule_runs import INPUT_FIELD
from treadle.controlplane.machine.schedules import PREFIX, record_of
from treadle.controlplane.store.port import Store, Want
from treadle.protocol.errors import FieldInvalid, NotFound, Refused
from treadle.protocol.ids import SHARDS, RunKey
from treadle.protocol.tags import split_name
from treadle.protocol.topology import INLINE_INPUT_BYTES
from treadle.v1 import schedule_service_pb2 as pb
from treadle.v1.common_pb2 import Payload
from treadle.v1.schedule_pb2 import ScheduleRecord, ScheduleSpec
from treadle.v1.schedule_service_pb2_grpc import ScheduleServiceServicer
from treadle.v1.state_pb2 import RunHead

__all__ = ("NAME_LIMIT", "ScheduleService", "schedule_id_of")

NAME_LIMIT: Final = 120
_UPCOMING: Final = 5
_LISTED: Final = 100_000
"""So many schedules of a namespace are listed."""


def schedule_id_of(schedule_id: str) -> str:
    """Return the name of a schedule: 1 to 120 printable characters, for its runs are named after it."""
    if not schedule_id or len(schedule_id) > NAME_LIMIT or not schedule_id.isprintable() or schedule_id[0] == "~":
        raise FieldInvalid(
            f"schedule_id {schedule_id[:40]!r}: give 1 to {NAME_LIMIT} printable characters, not beginning with '~'",
            field="schedule_id",
        )
    return schedule_id


class ScheduleService(ScheduleServiceServicer):
    """See the module.

    Args:
        engine: Decides and commits.
        store: Read for views and lists.
        admission: Which workflows are known, and where.
    """

    def __init__(self, engine: Engine, store: Store, admission: Admission) -> None:
        self._engine = engine
        self._store = store
        self._fleet = Fleet(store)
        self._admission = admission

    async def CreateSchedule(self, request: pb.CreateScheduleRequest, context: Context) -> pb.CreateScheduleResponse:
        """See schedule_service.proto."""
        record = _record(request.namespace, request.schedule_id)
        _check_input(request.input)
        spec = ScheduleSpec()
        spec.CopyFrom(request.spec)
        check(spec)
        _, spec.pool = await self._admission.target_of(record.namespace, spec.workflow, spec.pool)
        request_id = checks.request_id_of(request.request_id)
        asked = requests.CreateSchedule(request_id, spec, request.input, request.paused)
        reply = await self._ask(record, asked)
        return pb.CreateScheduleResponse(schedule=await self._view(reply.head, request.input))

    async def GetSchedule(self, request: pb.GetScheduleRequest, context: Context) -> pb.GetScheduleResponse:
        """See schedule_service.proto."""
        return pb.GetScheduleResponse(schedule=await self._read(_record(request.namespace, request.schedule_id)))

    async def ListSchedules(self, request: pb.ListSchedulesRequest, context: Context) -> pb.ListSchedulesResponse:
        """See schedule_service.proto."""
        namespace = checks.namespace_of(request.namespace)
        index = schedule_index(namespace)
        cursor = read_token(request.page_token, index)
        entries = await self._store.index(index, range(SHARDS), limit=_LISTED)
        names = sorted(entry.member for entry in entries if cursor is None or entry.member > cursor.member)
        size = page_size(request.page_size)
        shown = names[:size]
        loaded = await self._store.load([Want(RunKey(namespace, name)) for name in shown]) if shown else []
        heads = [RunHead.FromString(found.head) for found in loaded if found.head]
        token = write_token(Cursor(0, shown[-1]), index) if len(names) > size else ""
        return pb.ListSchedulesResponse(schedules=[await self._brief(head) for head in heads], next_page_token=token)

    async def ChangeSchedule(self, request: pb.ChangeScheduleRequest, context: Context) -> pb.ChangeScheduleResponse:
        """See schedule_service.proto."""
        record = _record(request.namespace, request.schedule_id)
        _check_input(request.input)
        fields, spec = list(request.fields), ScheduleSpec()
        spec.CopyFrom(request.spec)
        if "workflow" in fields:  # its pool goes with it
            _, spec.pool = await self._admission.target_of(record.namespace, spec.workflow, spec.pool)
            fields.append("pool")
        elif "pool" in fields and not checks.pool_of(spec.pool):
            raise FieldInvalid("pool '': name one, or change the workflow", field="pool")
        request_id = checks.request_id_of(request.request_id)
        await self._ask(record, requests.ChangeSchedule(request_id, fields, spec, request.input))
        return pb.ChangeScheduleResponse(schedule=await self._read(record))

    async def PauseSchedule(self, request: pb.PauseScheduleRequest, context: Context) -> pb.PauseScheduleResponse:
        """See schedule_service.proto."""
        record = _record(request.namespace, request.schedule_id)
        await self._ask(record, requests.PauseSchedule(checks.reason_of(request.reason)))
        return pb.PauseScheduleResponse(schedule=await self._read(record))

    async def ResumeSchedule(self, request: pb.ResumeScheduleRequest, context: Context) -> pb.ResumeScheduleResponse:
        """See schedule_service.proto."""
        record = _record(request.namespace, request.schedule_id)
        await self._ask(record, requests.ResumeSchedule())
        return pb.ResumeScheduleResponse(schedule=await self._read(record))

    async def TriggerSchedule(self, request: pb.TriggerScheduleRequest, context: Context) -> pb.TriggerScheduleResponse:
        """See schedule_service.proto."""
        record = _record(request.namespace, request.schedule_id)
        asked = requests.TriggerSchedule(checks.request_id_of(request.request_id), request.overlap)
        reply = await self._ask(record, asked)
        return pb.TriggerScheduleResponse(run_id=reply.run_id, queued=reply.queued)

    async def BackfillSchedule(
        self, request: pb.BackfillScheduleRequest, context: Context
    ) -> pb.BackfillScheduleResponse:
        """See schedule_service.proto."""
        record = _record(request.namespace, request.schedule_id)
        asked = requests.BackfillSchedule(
            checks.request_id_of(request.request_id), request.since_ms, request.until_ms, request.allow
        )
        return pb.BackfillScheduleResponse(occurrences=(await self._ask(record, asked)).occurrences)

    async def DeleteSchedule(self, request: pb.DeleteScheduleRequest, context: Context) -> pb.DeleteScheduleResponse:
        """See schedule_service.proto."""
        record = _record(request.namespace, request.schedule_id)
        await self._ask(record, requests.DeleteSchedule(checks.request_id_of(request.request_id)))
        return pb.DeleteScheduleResponse()

    async def _ask(self, record: RunKey, asked: ScheduleRequest) -> ScheduleReply:
        reply = await self._engine.ask(record, asked)
        if not isinstance(reply, ScheduleReply):
            raise TypeError(f"{type(asked).__name__} was answered with {type(reply).__name__}, not ScheduleReply")
        return reply

    async def _read(self, record: RunKey) -> pb.Schedule:
        (loaded,) = await self._store.load([Want(record, fields=[INPUT_FIELD])])
        if not loaded.head:
            raise NotFound(
                f"no schedule {record.run_id.removeprefix(PREFIX)!r} in namespace {record.namespace!r}",
                reason="SCHEDULE_NOT_FOUND",
                remedy="see `treadle schedules list`",
            )
        return await self._view(
            RunHead.FromString(loaded.head), Payload.FromString(loaded.fields.get(INPUT_FIELD, b""))
        )

    async def _view(self, head: RunHead, input: Payload) -> pb.Schedule:
        record = head.schedule
        fleet, _ = await self._fleet.pool(head.namespace, record.spec.pool)
        workflow = record.spec.workflow
        known = workflow in fleet.workflows or workflow in {split_name(code)[0] for code in fleet.workflows}
        missing = f"no worker of pool {record.spec.pool!r} has workflow {record.spec.workflow!r}"
        coming = [record.next_ms, *upcoming(record.spec, record.next_ms, _UPCOMING - 1)] if record.next_ms else []
        return pb.Schedule(
            namespace=head.namespace,
            status=_status(record),
            created_ms=head.created_ms,
            record=record,
            input=input if input.ByteSize() else None,
            upcoming=coming,
            reason="" if known else missing,
            queued=len(record.queue),
        )

    async def _brief(self, head: RunHead) -> pb.Schedule:
        """Return a schedule as lists show it."""
        shown = await self._view(head, Payload())
        for name in ("missed", "queue", "recent"):
            shown.record.ClearField(name)
        del shown.upcoming[1:]
        return shown


def _record(namespace: str, schedule_id: str) -> RunKey:
    return record_of(checks.namespace_of(namespace), schedule_id_of(schedule_id))


def _check_input(input: Payload) -> None:
    """Each start carries the whole input in a letter, and one commit writes up to 20 of them."""
    size = input.ByteSize()
    if size > INLINE_INPUT_BYTES:
        raise Refused(
            f"input of a schedule has {size:,} bytes, the limit is {INLINE_INPUT_BYTES:,}",
            reason="PAYLOAD_TOO_LARGE",
            remedy="store the data elsewhere and pass its address",
        )


def _status(record: ScheduleRecord) -> pb.ScheduleStatus.ValueType:
    if record.orphaned:
        return pb.SCHEDULE_STATUS_ORPHANED
    if record.paused:
        return pb.SCHEDULE_STATUS_PAUSED
    return pb.SCHEDULE_STATUS_ACTIVE if record.next_ms else pb.SCHEDULE_STATUS_ENDED
