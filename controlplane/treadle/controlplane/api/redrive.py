"""Closed runs that go on, and quarantined steps: what is looked up before the machine is asked."""

from __future__ import annotations

from typing import Final

from treadle.controlplane.api import checks
from treadle.controlplane.api.admission import Admission
from treadle.controlplane.api.pages import Cursor, page_size, read_token, write_token
from treadle.controlplane.api.records import Records
from treadle.controlplane.api.starts import Engine, run_reply
from treadle.controlplane.api.sweeps import when_swept
from treadle.controlplane.machine import requests
from treadle.controlplane.machine.indexes import quarantine_index, waiting_member
from treadle.controlplane.store.port import IndexEntry, Store, Want
from treadle.protocol.errors import NotFound, WrongState
from treadle.protocol.ids import SHARDS, RunKey
from treadle.protocol.past import concerns, first_call
from treadle.protocol.tags import code_name
from treadle.v1 import run_service_pb2 as pb
from treadle.v1.history_pb2 import HistoryEvent
from treadle.v1.state_pb2 import COMMAND_STATE_QUARANTINED, CommandRow, RunHead

__all__ = ("Redrives",)

_A_RUN: Final = 200
"""So many steps of one run are released at once."""


class Redrives:
    """See the module.

    Args:
        engine: Decides and commits.
        store: Read for histories and indexes.
        records: Reads runs.
        admission: A run that goes on is work like one that is started.
        max_payload_bytes: Largest input.
    """

    def __init__(
        self, engine: Engine, store: Store, records: Records, admission: Admission, max_payload_bytes: int
    ) -> None:
        self._engine = engine
        self._store = store
        self._records = records
        self._admission = admission
        self._max_payload_bytes = max_payload_bytes

    async def retry(self, request: pb.RetryRunRequest) -> pb.RetryRunResponse:
        """Let a closed run go on.

        Raises:
            NotFound: There is no such run, or no such step in its history.
            RequestError: It may not go on; the reason says why.
        """
        run = checks.run_of(request.namespace, request.run_id)
        asked = requests.RetryRun(checks.request_id_of(request.request_id), checks.reason_of(request.reason))
        if request.HasField("input"):
            checks.check_payload("input", request.input, self._max_payload_bytes)
            asked.input = request.input
        elif request.from_step:
            asked.incarnation, asked.length, asked.from_position, asked.step = await self._find(
                run, checks.step_of(request.from_step)
            )
        head = await self._records.head(run)
        await self._admission.target_of(run.namespace, code_name(head.workflow, head.version), head.pool)
        reply = run_reply(asked, await when_swept(lambda: self._engine.ask(run, asked)))
        return pb.RetryRunResponse(run=await self._records.view(reply.head))

    async def _find(self, run: RunKey, step: str) -> tuple[int, int, int, str]:
        """Return of the history its incarnation and its length, and position and id of the first call of a step that counts:
        where the run was retried before, what was asked for again stands where that was.

        Raises:
            NotFound: There is none.
            WrongState: The run was started again meanwhile.
        """
        after, found, length, incarnation = 0, list[HistoryEvent](), 0, 0
        while True:
            page = await self._records.page(run, after)
            if incarnation not in (0, page.head.incarnation):
                raise WrongState(
                    f"run {run.run_id!r} was started again while its step was looked up",
                    reason="RUN_CHANGED",
                    remedy="ask again",
                )
            incarnation = page.head.incarnation
            found += (event for event in page.events if concerns(event, step))
            length = page.head.length
            if not page.events or page.events[-1].position >= length:
                break
            after = page.events[-1].position
        call = first_call(found, step)
        if call is None:
            raise NotFound(
                f"run {run.run_id!r} has no step {step!r} in what counts of its history",
                reason="STEP_NOT_FOUND",
                remedy=f"`treadle run show {run.run_id}` lists its steps",
            )
        return incarnation, length, *call

    # --- quarantine ----------------------------------------------------------------------------------------------------
    async def release(self, request: pb.ReleaseStepRequest) -> pb.ReleaseStepResponse:
        """Let quarantined steps of a run go on.

        Raises:
            NotFound: There is no such run.
            RequestError: It is closed, or no such step of it is quarantined.
        """
        run = checks.run_of(request.namespace, request.run_id)
        name = quarantine_index(run.namespace)
        entries = await self._store.index(name, [run.shard], low=0, high=2**62, limit=10_000)
        mine = [command_id for run_id, command_id in map(_split, entries) if run_id == run.run_id]
        wanted = [c for c in mine if request.step in ("", c, _name_of(c))][:_A_RUN]
        request_id, reason = checks.request_id_of(request.request_id), checks.reason_of(request.reason)
        asked = requests.ReleaseSteps(request_id, reason, request.step, wanted)
        reply = run_reply(asked, await self._engine.ask(run, asked))
        return pb.ReleaseStepResponse(run=await self._records.view(reply.head), command_ids=wanted)

    async def quarantined(self, request: pb.ListQuarantinedStepsRequest) -> pb.ListQuarantinedStepsResponse:
        """List quarantined steps of a namespace."""
        namespace = checks.namespace_of(request.namespace)
        size = page_size(request.page_size)
        cursor = read_token(request.page_token, "quarantined", namespace)
        entries = await self._entries(namespace, cursor, size + 1)
        shown = entries[:size]
        more = Cursor(shown[-1].score, shown[-1].member) if len(entries) > size else None
        wants = []
        for run_id, command_id in map(_split, shown):
            wants.append(Want(RunKey(namespace, run_id), fields=[f"c:{command_id}"]))
        loaded = await self._store.load(wants) if wants else []
        steps = []
        for entry, found in zip(shown, loaded, strict=True):
            step = _step(entry, found.head, found.fields)
            if step is not None:
                steps.append(step)
        token = write_token(more, "quarantined", namespace) if more else ""
        return pb.ListQuarantinedStepsResponse(steps=steps, next_page_token=token)

    async def _entries(self, namespace: str, cursor: Cursor | None, count: int) -> list[IndexEntry]:
        name, limit = quarantine_index(namespace), count
        low = 0 if cursor is None else cursor.score
        while True:
            entries = await self._store.index(name, range(SHARDS), low=low, high=2**62, limit=limit)
            behind = [e for e in entries if cursor is None or (e.score, e.member) > (cursor.score, cursor.member)]
            if len(behind) >= count or len(entries) < limit:
                return behind[:count]
            limit *= 2  # many of one millisecond, all of them shown before


def _split(entry: IndexEntry) -> tuple[str, str]:
    run_id, _, command_id = entry.member.partition(waiting_member("", ""))
    return run_id, command_id


def _name_of(command_id: str) -> str:
    return command_id.rpartition("/")[2].rpartition("#")[0]


def _step(entry: IndexEntry, head_data: bytes, fields: dict[str, bytes]) -> pb.QuarantinedStep | None:
    """What the list shows; None: it was released, or its run has closed, since the index was read."""
    run_id, command_id = _split(entry)
    data = fields.get(f"c:{command_id}")
    if not head_data or data is None:
        return None
    head, row = RunHead.FromString(head_data), CommandRow.FromString(data)
    if row.state != COMMAND_STATE_QUARANTINED:
        return None
    step = pb.QuarantinedStep(
        run_id=run_id,
        workflow=head.workflow,
        command_id=command_id,
        name=row.name,
        pool=row.pool,
        since_ms=entry.score,
        losses=row.lost_count,
    )
    if row.HasField("last_failure"):
        step.last_failure.CopyFrom(row.last_failure)
    return step
