"""`treadle run start`: start a run by the name of its workflow."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from cyclopts import Parameter

from treadle.cli.json_input import read_object
from treadle.cli.options import Connection, OutputOption, TagOption, read_tags

__all__ = ("start",)

Conflict = Literal["reject", "use_existing", "use_open", "allow_closed", "allow_failed", "terminate_existing"]


async def start(
    workflow: str,
    /,
    *,
    input: Annotated[str, Parameter(name=["--input", "-i"])] = "{}",
    id: str | None = None,
    pool: str | None = None,
    run_timeout: str | None = None,
    on_conflict: Conflict = "reject",
    tag: TagOption = None,
    watch: Annotated[bool, Parameter(negative="")] = False,
    wait: Annotated[bool, Parameter(negative="")] = False,
    timeout: str | None = None,
    output: OutputOption = "table",
    connection: Connection | None = None,
) -> int:
    """Start a run. Prints its id; with --watch or --wait, its result, and the exit code is its outcome.

    Parameters
    ----------
    workflow
        Name of the workflow; "name@version" for one version of it.
    input
        Arguments as a JSON object by parameter name; @FILE reads a file, @- stdin.
    id
        Id of the run; one is made otherwise.
    pool
        Pool whose workers execute it; the one where it is registered otherwise.
    run_timeout
        Longest duration of the run ("1h"); what the workflow says otherwise.
    on_conflict
        What to do when the id is taken.
    tag
        What the run is found by: customer=42. May be repeated.
    watch
        Show what it does, line by line, until it is closed.
    wait
        Wait until it is closed.
    timeout
        With --watch or --wait: how long to wait at most ("90s", "5m"). The run goes on; the exit code is 5.
    """
    from treadle.cli.output import emit_one, note
    from treadle.cli.plain import plain_run
    from treadle.cli.run_watch import follow, outcome_exit, progress_printer

    connection = connection or Connection()
    arguments, tags = read_object(input), read_tags(tag)
    async with connection.client() as client:
        run = await client.start(
            workflow, arguments, id=id, pool=pool, on_conflict=on_conflict, timeout=run_timeout, tags=tags
        )
        if run.existed:
            note(f"run {run.id} was there before")
        if not (watch or wait):
            info = await run.get()
            emit_one(plain_run(info), output, lambda: print(run.id))
            return 0
        if not watch:
            note(f"run {run.id} is started; waiting")  # Ctrl-C must not leave one without a name
        else:
            await follow(run, timeout, progress_printer(run.id, note))
        info = await run.wait(None if watch else timeout)
        value = plain_run(info)
        emit_one(value, output, lambda: _print_outcome(value))
        return outcome_exit(info)


def _print_outcome(value: dict[str, Any]) -> None:
    from treadle.cli.output import note
    from treadle.cli.plain import dumps

    if value["status"] == "completed":
        print(dumps(value["result"]))
        return
    failure = value["failure"] or {}
    why = f": {failure.get('type', '')}: {failure.get('message', '')}" if failure else ""
    note(f"error: run {value['id']} {value['status']}{why}")
    note(f"  fix: see `treadle run show {value['id']}`")
