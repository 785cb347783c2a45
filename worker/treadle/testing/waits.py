"""What an open run waits for, in words: for the error that says that nothing will bring it."""

from __future__ import annotations

from collections.abc import Callable

from treadle.protocol.ids import RunKey
from treadle.v1.state_pb2 import (
    COMMAND_STATE_CHILD,
    COMMAND_STATE_DEFERRED,
    COMMAND_STATE_HELD,
    COMMAND_STATE_TIMER,
    CommandRow,
    CommandState,
)

from .plane import Plane

__all__ = ("told_stuck",)


def told_stuck(plane: Plane, run: RunKey, signals: Callable[[RunKey], list[tuple[bool, str]]]) -> str:
    """Return the message that says what a run waits for, and how to bring it.

    Args:
        plane: Knows its open commands.
        run: The run.
        signals: Returns for a run what its code waits for: whether it is a question, and its name.
    """
    wanted = signals(run)
    rows = [row for row in plane.rows(run) if row.state != COMMAND_STATE_TIMER]
    what = [f"{'question' if asks else 'signal'} {name!r}" for asks, name in wanted] + [_row(row) for row in rows]
    text = f"run {run.run_id} waits for {', and for '.join(what) or 'nothing that is known'}"
    if wanted:
        asks, name = wanted[0]
        send = f"run.{'ask' if asks else 'signal'}({name!r}, ...)"
        later = f"lab.later('1h', run.signal, {name!r}, ...)"
        text += f"; nothing is planned that brings it: send it with {send}" + (
            "" if asks else f", or plan it with {later}"
        )
    children = [RunKey(run.namespace, row.child_run_id) for row in rows if row.state == COMMAND_STATE_CHILD]
    told = [told_stuck(plane, child, signals) for child in children if child in plane.runs]
    return "; ".join([text, *told])


def _row(row: CommandRow) -> str:
    if row.state == COMMAND_STATE_CHILD:
        return f"child {row.child_run_id!r} of workflow {row.name!r}"
    if row.state == COMMAND_STATE_HELD:
        return f"step {row.name!r}, which hangs"
    if row.state == COMMAND_STATE_DEFERRED:
        return f"step {row.name!r} to be finished from outside: hand its token to lab.complete_step"
    state = CommandState.Name(row.state).removeprefix("COMMAND_STATE_").lower()
    return f"{row.name or 'command'} {row.command_id!r} ({state})"
