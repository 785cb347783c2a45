"""The `treadle` command. Each command is a module that is imported when it runs."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version

from cyclopts import App, CycloptsError

from treadle.cli.exits import Exit, tell
from treadle.protocol.errors import TreadleError
from treadle.protocol.grpc_polling import poll_directly

__all__ = ("app", "main")

_HERE = "treadle.cli"

# Name -> (where, one line of help). The line stands here so that `--help` imports no command.
_COMMANDS = {
    "dev": ("dev:dev", "Run an app: control plane, embedded state and a worker with reload."),
    "server": ("server:server", "Run the control plane on Redis and RabbitMQ."),
    "worker": ("worker:worker", "Run one worker process of a pool."),
    "pools": ("pools:list_pools", "List pools, their slots and workers."),
    "doctor": ("doctor:doctor", "Check the control plane and its servers."),
}
_RUN_COMMANDS = {
    "start": ("run_start:start", "Start a run."),
    "show": ("run_show:show", "Show steps, attempts and the last error of a run."),
    "list": ("run_list:list_runs", "List runs, newest first."),
    "count": ("run_list:count_runs", "Count runs."),
    "watch": ("run_watch:watch", "Follow a run until it is closed."),
    "cancel": ("run_steer:cancel", "Ask a run to stop."),
    "terminate": ("run_steer:terminate", "End a run at once."),
    "signal": ("run_signal:signal", "Send a run a signal."),
    "ask": ("run_signal:ask", "Ask a run a question and print the answer."),
    "state": ("run_signal:state", "Print the state that a run shows."),
    "history": ("run_show:history", "Print the events of a run."),
    "trace": ("run_trace:trace", "Print the trace of a run as OTLP JSON."),
    "accept": ("run_steer:accept", "Let a run that needs attention go on."),
    "retry": ("run_retry:retry", "Let closed runs go on, from where they failed or from a step."),
    "release": ("steps:release", "Let quarantined steps of a run go on."),
    "replay": ("run_replay:replay", "Execute local code over recorded histories."),
}
_EVENT_COMMANDS = {
    "send": ("events:send", "Send an event."),
    "list": ("events:list_events", "List the events of the last 24 hours, newest first."),
    "triggers": ("events:triggers", "List the workflows that events start."),
    "forget": ("events:forget", "Make events start a workflow no longer."),
}
_STEP_COMMANDS = {
    "complete": ("step_finish:complete", "Give a step that was deferred its result."),
    "fail": ("step_finish:fail", "Let a step that was deferred fail."),
    "quarantined": ("steps:quarantined", "List steps that killed too many workers."),
}
_SCHEDULE_COMMANDS = {
    "list": ("schedule_look:list_schedules", "List schedules."),
    "show": ("schedule_look:show", "Show what comes next, what was decided last, and what was missed."),
    "create": ("schedule_steer:create", "Create a schedule."),
    "change": ("schedule_steer:change", "Change what it starts, or when."),
    "pause": ("schedule_steer:pause", "Start nothing until it is resumed."),
    "resume": ("schedule_steer:resume", "Go on with the next occurrence."),
    "trigger": ("schedule_steer:trigger", "Start a run now."),
    "backfill": ("schedule_steer:backfill", "Start past occurrences that have no run."),
    "delete": ("schedule_steer:delete", "Delete a schedule."),
}


def _version() -> str:
    try:
        return version("treadle")
    except PackageNotFoundError:  # run from a checkout that is not installed
        return "unknown"


def app() -> App:
    """Return the command line, with nothing of the commands imported yet."""
    root = App(
        name="treadle",
        help="Reliable background workflows on RabbitMQ and Redis.",
        version=_version,
        help_format="plaintext",
        suppress_keyboard_interrupt=False,
    )
    for name, (where, line) in _COMMANDS.items():
        root.command(f"{_HERE}.{where}", name=name, help=line)
    run = App(name="run", help="Start, watch and steer runs.", help_format="plaintext")
    for name, (where, line) in _RUN_COMMANDS.items():
        run.command(f"{_HERE}.{where}", name=name, help=line)
    root.command(run)
    schedules = App(name="schedules", help="Create, change, trigger and pause schedules.", help_format="plaintext")
    for name, (where, line) in _SCHEDULE_COMMANDS.items():
        schedules.command(f"{_HERE}.{where}", name=name, help=line)
    root.command(schedules)
    events = App(name="events", help="Send events; look at them and at what they start.", help_format="plaintext")
    for name, (where, line) in _EVENT_COMMANDS.items():
        events.command(f"{_HERE}.{where}", name=name, help=line)
    root.command(events)
    steps = App(
        name=("steps", "step"), help="Finish steps from outside; look at those of all runs.", help_format="plaintext"
    )
    for name, (where, line) in _STEP_COMMANDS.items():
        steps.command(f"{_HERE}.{where}", name=name, help=line)
    root.command(steps)
    return root


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code (see `treadle.cli.exits`)."""
    tokens = list(sys.argv[1:] if argv is None else argv)
    poll_directly()
    try:
        code = app()(tokens, exit_on_error=False, result_action="return_value")
    except CycloptsError:  # told on stderr already
        return Exit.USAGE
    except TreadleError as error:
        return tell(error)
    except KeyboardInterrupt:
        return Exit.INTERRUPTED
    except BrokenPipeError:  # the reader of our output went away; the interpreter must not flush into it at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return Exit.OK
    return code if isinstance(code, int) else Exit.OK


if __name__ == "__main__":
    sys.exit(main())
