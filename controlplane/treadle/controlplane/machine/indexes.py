"""Which indexes a run stands in. Lists and counts read them; a commit moves what has changed.

Each is a sorted set a shard, by time of start. A run that has no tags, no version and no trouble is in two of them: by
status, and by workflow and status.
"""

from __future__ import annotations

from typing import Final

from treadle.protocol.tags import code_name
from treadle.v1.common_pb2 import Tag
from treadle.v1.run_service_pb2 import (
    RUN_STATUS_CANCELLED,
    RUN_STATUS_COMPLETED,
    RUN_STATUS_FAILED,
    RUN_STATUS_NEEDS_ATTENTION,
    RUN_STATUS_RUNNING,
    RUN_STATUS_TERMINATED,
    RUN_STATUS_WAITING,
    RUN_TROUBLE_ATTENTION,
    RUN_TROUBLE_RETRYING,
    RUN_TROUBLE_WAITING,
    RunStatus,
    RunTrouble,
)
from treadle.v1.state_pb2 import (
    COMMAND_STATE_QUEUED,
    RUN_OUTCOME_CANCELLED,
    RUN_OUTCOME_COMPLETED,
    RUN_OUTCOME_FAILED,
    RUN_OUTCOME_TERMINATED,
    RUN_STATE_CLOSED,
    RUN_STATE_CONTINUING,
    RUN_STATE_NEEDS_ATTENTION,
    RUN_STATE_QUEUED,
    RUN_STATE_RECORD,
    RUN_STATE_WAITING,
    CommandRow,
    RunHead,
)

__all__ = (
    "attention_index",
    "error_index",
    "events_index",
    "indexes_of",
    "status_index",
    "quarantine_index",
    "run_waits",
    "schedule_index",
    "status_of",
    "step_waits",
    "tag_index",
    "trouble_index",
    "troubles_of",
    "waiting_index",
    "waiting_member",
    "workflow_index",
)

_CLOSED: Final = {
    RUN_OUTCOME_COMPLETED: RUN_STATUS_COMPLETED,
    RUN_OUTCOME_FAILED: RUN_STATUS_FAILED,
    RUN_OUTCOME_CANCELLED: RUN_STATUS_CANCELLED,
    RUN_OUTCOME_TERMINATED: RUN_STATUS_TERMINATED,
}
_OPEN: Final = {
    RUN_STATE_WAITING: RUN_STATUS_WAITING,
    RUN_STATE_NEEDS_ATTENTION: RUN_STATUS_NEEDS_ATTENTION,
}
_STATUS_NAMES: Final = {value: name.removeprefix("RUN_STATUS_").lower() for name, value in RunStatus.items()}
_LONG_MS: Final = 60_000
"""What a worker has not taken when it was watched for so long waits for one: the first step of the watch."""
_TROUBLE_NAMES: Final = {value: name.removeprefix("RUN_TROUBLE_").lower() for name, value in RunTrouble.items()}


def status_of(head: RunHead) -> RunStatus.ValueType:
    """Return how a run stands in one word."""
    state = head.state
    return _CLOSED[head.outcome] if state == RUN_STATE_CLOSED else _OPEN.get(state, RUN_STATUS_RUNNING)


def troubles_of(head: RunHead) -> list[RunTrouble.ValueType]:
    """Return what keeps an open run from going on."""
    if head.state in (RUN_STATE_CLOSED, RUN_STATE_CONTINUING):
        return []
    found: list[RunTrouble.ValueType] = []
    if head.retrying:
        found.append(RUN_TROUBLE_RETRYING)
    if head.waiting_steps or run_waits(head):
        found.append(RUN_TROUBLE_WAITING)
    if head.quarantined or head.state == RUN_STATE_NEEDS_ATTENTION:
        found.append(RUN_TROUBLE_ATTENTION)
    return found


def step_waits(row: CommandRow) -> str:
    """Return why an open step waits for a worker, in words; "" if it does not."""
    if row.waiting_noted:
        return f"no live worker of pool {row.pool!r} has the step {row.name!r}: deploy one that has it"
    if row.state == COMMAND_STATE_QUEUED and row.watch_step_ms > _LONG_MS:
        return f"step {row.name!r} is queued for over a minute: no worker of pool {row.pool!r} takes it"
    return ""


def run_waits(head: RunHead) -> bool:
    """Whether a run waits for a worker that executes it: nobody has its code, or nobody took it for over a minute."""
    if head.state != RUN_STATE_QUEUED:
        return head.state == RUN_STATE_WAITING
    return head.retry_step_ms > 0 or head.watch_step_ms > _LONG_MS


def waiting_index(namespace: str, pool: str, name: str) -> str:
    """Return the index of what waits for a worker of `pool` with `name`."""
    return f"n:{namespace}:{pool}:{name}"


def waiting_member(run_id: str, command_id: str) -> str:
    """Return the member of that index: a run ("" as command id) or a step."""
    return f"{run_id}\x1f{command_id}"


def quarantine_index(namespace: str) -> str:
    """Return the index of steps that killed too many workers; its members are those of the waiting index."""
    return f"q:{namespace}"


def attention_index(namespace: str, name: str) -> str:
    """Return the index of runs that need attention, so that fitting code wakes them; `name` as workers announce it."""
    return f"a:{namespace}:{name}"


def schedule_index(namespace: str) -> str:
    """Return the index of schedules, by when they were created."""
    return f"o:{namespace}"


def events_index(namespace: str) -> str:
    """Return the index of the records of events that were accepted."""
    return f"v:{namespace}"


def status_index(namespace: str, status: RunStatus.ValueType) -> str:
    """Return the index of all runs of a status."""
    return f"s:{namespace}:{_STATUS_NAMES[status]}"


def workflow_index(namespace: str, name: str, status: RunStatus.ValueType) -> str:
    """Return that of a workflow's runs of a status; with "name@version", of one version of it."""
    return f"w:{namespace}:{name}:{_STATUS_NAMES[status]}"


def tag_index(namespace: str, tag: Tag) -> str:
    """Return the index of runs with a tag, open and closed."""
    return f"t:{namespace}:{tag.key}={tag.value}"


def error_index(namespace: str, error_type: str) -> str:
    """Return the index of runs that failed, or retry a step that did, by the class of the error."""
    return f"e:{namespace}:{error_type}"


def trouble_index(namespace: str, trouble: RunTrouble.ValueType) -> str:
    """Return the index of open runs with a trouble."""
    return f"x:{namespace}:{_TROUBLE_NAMES[trouble]}"


def indexes_of(head: RunHead) -> list[str]:
    """Return the names of the indexes that a run stands in."""
    if head.state == 0:
        return []
    if head.state == RUN_STATE_RECORD:
        if head.HasField("event"):
            return [events_index(head.namespace)]
        return [schedule_index(head.namespace)] if head.HasField("schedule") else []
    status, namespace = status_of(head), head.namespace
    names = [status_index(namespace, status), workflow_index(namespace, head.workflow, status)]
    if head.version:
        names.append(workflow_index(namespace, code_name(head.workflow, head.version), status))
    if status == RUN_STATUS_NEEDS_ATTENTION:
        names.append(attention_index(namespace, code_name(head.workflow, head.version)))
    names += [tag_index(namespace, tag) for tag in head.tags]
    if head.error_type:
        names.append(error_index(namespace, head.error_type))
    names += [trouble_index(namespace, trouble) for trouble in troubles_of(head)]
    return names
