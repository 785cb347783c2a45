"""How `run show` draws a run: a header, its steps with their attempts, and the last error. Rows first, ink last."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

from treadle.client.progress import LOST_WORDS, MARKS, duration_text, failure_text, payload_text, unread_text
from treadle.client.timeline import AttemptView, StepView, Timeline
from treadle.client.views import RunInfo, RunStatus, StepProgress
from treadle.protocol.tags import code_name
from treadle.v1.common_pb2 import Failure

if TYPE_CHECKING:
    from rich.console import Console

__all__ = ("Row", "draw_run", "header_lines", "last_error", "status_text", "step_rows", "tags_text")

STYLES: Final = {
    "completed": "green",
    "failed": "red",
    "lost": "magenta",
    "retrying": "yellow",
    "quarantined": "red",
    "needs-attention": "red",
    "waiting": "yellow",
    "deferred": "yellow",
    "running": "cyan",
    "cancelled": "dim",
    "terminated": "dim",
    "abandoned": "dim",
    "released": "dim",
}


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the drawing: a step, or one of its attempts (`depth` 1)."""

    depth: int
    state: str
    name: str
    where: str
    took: str
    note: str


def status_text(status: RunStatus) -> str:
    """Return mark and word: never the colour alone."""
    return f"{MARKS[status.value]} {status.value}"


def header_lines(run: RunInfo, timeline: Timeline) -> list[str]:
    """Return what is said about the run above its steps."""
    ended = run.duration.total_seconds() * 1000 if run.duration is not None else None
    took = f" in {duration_text(ended)}" if ended is not None else ""
    when = run.created_at.astimezone().strftime("%Y-%m-%d %H:%M:%S")
    lines = [
        f"{code_name(run.workflow, run.version)}   {run.id}   {status_text(run.status)}{took}",
        f"  pool {run.pool} · started {when} · {run.length} events · trace {run.trace_id}",
    ]
    if run.part > 1:
        lines.append(f"  part {run.part} of a run that continues as new")
    if run.tags:
        lines.append(f"  tags {tags_text(run)}")
    if run.reason or timeline.reason:
        lines.append(f"  {run.reason or timeline.reason}")
    if run.cancel_requested and not run.status.closed:
        lines.append("  a cancel was asked for")
    if run.deadline is not None and not run.status.closed:
        limit = run.deadline.astimezone().strftime("%Y-%m-%d %H:%M:%S")
        lines.append(f"  its timeout was over at {limit}; it cleans up" if run.timed_out else f"  must end by {limit}")
    if timeline.owners_lost:
        lines.append(f"  {MARKS['lost']} its worker was lost {_times(timeline.owners_lost)}; it went on elsewhere")
    if timeline.retries:
        lines.append(f"  {MARKS['retrying']} it was continued {_times(timeline.retries)} after it had closed")
    if timeline.hook_run_id:
        lines.append(f"  its failure is handled by run {timeline.hook_run_id}")
    if timeline.unread:
        lines.append(f"  {unread_text(timeline)}")
    if timeline.state is not None:
        lines.append(f"  state  {payload_text(timeline.state, limit=400)}")
    if run.result is not None:
        lines.append(f"  result {payload_text(run.result, limit=400)}")
    if run.failure is not None:
        lines.append(f"  error  {failure_text(run.failure, limit=400)}")
    return lines


def tags_text(run: RunInfo) -> str:
    """Return the tags of a run in one line."""
    return ", ".join(f"{key}={value}" for key, value in run.tags.items())


def _times(number: int) -> str:
    return "once" if number == 1 else f"{number} times"


def step_rows(timeline: Timeline, *, now_ms: int | None = None, progress: Sequence[StepProgress] = ()) -> list[Row]:
    """Return the steps, each followed by its attempts when there is more to tell than one success.

    Args:
        timeline: The run so far.
        progress: How far steps are.
        now_ms: Present time (ms since 1970), for what still runs; None: the time of the last event.
    """
    now = timeline.now_ms if now_ms is None else now_ms
    said = {one.command_id: payload_text(one.payload, limit=80) for one in progress}
    rows = []
    for step in timeline.steps.values():
        row = _step_row(step, now)
        if not step.over and (far := said.get(step.command_id)):
            row = replace(row, note=f"{row.note} · {far}".removeprefix(" · "))
        rows.append(row)
        if len(step.attempts) > 1 or any(a.outcome != "completed" for a in step.attempts):
            rows += [_attempt_row(step, attempt, now) for attempt in step.attempts]
    return rows


def _step_row(step: StepView, now: int) -> Row:
    where = f"pool {step.pool}" if step.kind == "pool" else step.kind
    note = step.reason
    if step.state == "retrying" and step.due_ms is not None:
        note = f"next try in {duration_text(max(step.due_ms - now, 0))}"
    elif step.state == "sleeping" and step.due_ms is not None:
        note = f"until in {duration_text(max(step.due_ms - now, 0))}"
    elif step.state == "deferred":
        left = f", fails in {duration_text(max(step.due_ms - now, 0))}" if step.due_ms is not None else ""
        note = f"waits to be finished from outside{left}"
    elif step.kind == "child" and step.state == "failed" and step.error is not None:
        note = f"{step.run_id} · {failure_text(step.error)}"
    elif step.kind == "child":
        note = step.run_id
    elif step.state == "queued":
        note = "waits for its answer" if step.kind == "question" else "waits for a worker"
    elif len(step.attempts) > 1:
        note = f"{len(step.attempts)} attempts"
    if step.cancelling and not step.over:
        note = f"{note} · cancelling".removeprefix(" · ")
    took = step.duration_ms if step.over else now - step.start_ms
    told = "" if step.kind == "signal" else duration_text(max(took or 0, 0))
    return Row(0, step.state, step.name, where, told, note)


def _attempt_row(step: StepView, attempt: AttemptView, now: int) -> Row:
    took = attempt.duration_ms if attempt.duration_ms is not None else max(now - attempt.start_ms, 0)
    notes = []
    if attempt.outcome == "lost":
        notes.append(LOST_WORDS.get(attempt.reason, attempt.reason))
    elif attempt.reason:
        notes.append(attempt.reason)
    if attempt.error is not None:
        notes.append(failure_text(attempt.error))
    if attempt.alone:
        notes.append("in a process of its own")
    state = attempt.outcome
    mark = "retrying" if state == "failed" and attempt is not step.attempts[-1] else state
    return Row(
        1, mark, f"{attempt.number} {state}", attempt.worker, duration_text(took), " · ".join(n for n in notes if n)
    )


def last_error(timeline: Timeline) -> tuple[str, Failure] | None:
    """Return where and what the last error was: of the latest attempt that raised, else of the run."""
    failed = [
        (attempt.end_ms or 0, f"{step.name}, attempt {attempt.number}", attempt.error)
        for step in timeline.steps.values()
        for attempt in step.attempts
        if attempt.error is not None
    ]
    if failed:
        _, where, error = max(failed, key=lambda item: item[0])
        if error is not None:
            return where, error
    return ("the workflow", timeline.failure) if timeline.failure is not None else None


def draw_run(target: Console, run: RunInfo, timeline: Timeline, *, now_ms: int | None = None) -> None:
    """Print the whole drawing."""
    from rich.table import Table
    from rich.text import Text

    first, *rest = header_lines(run, timeline)
    target.print(Text(first, style="bold"))
    for line in rest:
        target.print(Text(line))
    rows = step_rows(timeline, now_ms=now_ms, progress=run.progress)
    if rows:
        grid = Table.grid(padding=(0, 2))
        grid.add_column(no_wrap=True)
        for _ in range(4):
            grid.add_column(overflow="fold")
        for row in rows:
            indent = "  " if row.depth == 0 else "      "
            name = Text(f"{indent}{MARKS.get(row.state, '·')} {row.name}", style=STYLES.get(row.state, ""))
            grid.add_row(name, Text(row.where, style="dim"), Text(row.took), Text(row.note))
        target.print()
        target.print(grid)
    if (found := last_error(timeline)) is not None:
        where, failure = found
        target.print()
        target.print(Text(f"last error ({where}): {failure_text(failure, limit=2000)}", style="red"))
        if failure.traceback:
            target.print(Text(failure.traceback.rstrip(), style="dim"))
