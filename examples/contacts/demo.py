"""The contact import on real processes, with a worker killed in the middle. `make demo` runs it.

    python examples/contacts/demo.py              # nothing to install: embedded Valkey, broker in memory
    python examples/contacts/demo.py --services   # on real Redis and RabbitMQ servers
    python examples/contacts/demo.py --keep       # leaves everything running until Ctrl-C

The exit code is 1 when a check fails.
"""

from __future__ import annotations

import argparse
import asyncio
import fcntl
import os
import secrets
import shutil
import signal
import sys
import time
from contextlib import aclosing
from dataclasses import dataclass, field
from pathlib import Path

EXAMPLE = Path(__file__).resolve().parent
sys.path.insert(0, str(EXAMPLE.parents[1]))  # started as a file, the folder of the checkout is not on the path

from examples.contacts import app  # noqa: E402
from examples.contacts.checks import Checks, check_broken, check_import, ledger_of  # noqa: E402
from examples.contacts.services import DemoError, Processes, embedded_state, real_servers, until  # noqa: E402

from treadle.client import Client, RunHandle  # noqa: E402
from treadle.client.progress import progress_line  # noqa: E402
from treadle.client.timeline import StepView, Timeline  # noqa: E402
from treadle.protocol.errors import TreadleError  # noqa: E402
from treadle.v1.pool_service_pb2 import WORKER_STATE_LIVE  # noqa: E402

POOLS = ("default", "csv", "enrich", "crm")
VICTIM = "enrich"
KILL_AFTER = 3  # chunks that are done when the worker is killed
LOOKUP_SECONDS = "0.8"  # slow enough that a person sees the chunks come
RUN_S = 90.0
WIDTH = 130


@dataclass
class Demo:
    """One showing.

    Attributes:
        folder: Where state, logs and the app's output are.
        processes: What was started.
        server: Address of the control plane.
        began: When the run that is shown was started (monotonic seconds).
        checks: What was found.
        killed: Process ids of killed workers.
    """

    folder: Path
    processes: Processes
    server: str = ""
    began: float = 0.0
    checks: Checks = field(default_factory=Checks)
    killed: list[int] = field(default_factory=list)

    @property
    def output(self) -> Path:
        """Where the app writes."""
        return self.folder / "contacts"

    async def start(self, redis_url: str, amqp_url: str) -> None:
        """Start the control plane and a worker for each pool; wait until they serve."""
        settings = {
            "REDIS_URL": redis_url,
            "AMQP_URL": amqp_url,
            "WORKER_AMQP_URL": "" if amqp_url == "memory" else amqp_url,
            "LISTEN": "127.0.0.1:0",
            "SHUTDOWN_GRACE": "1s",
        }
        environment = clean_environment() | {f"TREADLE_{name}": value for name, value in settings.items()}
        self.processes.start("server", [sys.executable, "-m", "treadle.controlplane"], environment)
        await until("the control plane", self._listening, self.processes)
        say(f"control plane on {self.server}")
        for pool in POOLS:
            say(f"worker of pool {pool:<8} process {self.start_worker(pool)}")

    async def _listening(self) -> bool:
        _, found, rest = self.processes.said("server").partition("listening on ")
        self.server = rest.split()[0] if found and "\n" in rest else ""
        return bool(self.server)

    def start_worker(self, pool: str) -> int:
        """Start the worker of a pool; return its process id."""
        environment = clean_environment() | {
            "TREADLE_SERVER": self.server,
            "CONTACTS_HOME": str(self.output),
            "CONTACTS_LOOKUP_SECONDS": LOOKUP_SECONDS,
        }
        slots = "3" if pool == VICTIM else "4"
        command = [sys.executable, "-m", "treadle.worker", str(EXAMPLE / "app.py"), "--pool", pool, "--slots", slots]
        return self.processes.start(f"worker-{pool}", command, environment)

    async def workers_ready(self, client: Client) -> None:
        """Wait until each pool has a live worker."""

        async def ready() -> bool:
            return {worker.pool for worker in await client.workers() if worker.state == WORKER_STATE_LIVE} >= {*POOLS}

        await until("the workers", ready, self.processes)

    async def import_file(self, client: Client, name: str, *, kill: bool) -> tuple[str, app.Summary, Timeline]:
        """Start a run on a file, show what it does, and return its id, result and timeline."""
        upload = app.Upload("ada@example.com", str(EXAMPLE / f"{name}.csv"))
        self.began = time.monotonic()
        handle = await client.start(app.import_contacts, upload, id=f"{name}-{secrets.token_hex(3)}")
        timeline = Timeline()
        showing = asyncio.create_task(self._follow(handle, timeline))
        guarding = asyncio.create_task(self._guard(handle.id, timeline, kill=kill))
        try:
            await asyncio.wait([showing, guarding], timeout=RUN_S, return_when=asyncio.FIRST_COMPLETED)
            if guarding.done():
                guarding.result()
            if not showing.done():
                raise DemoError(f"run {handle.id} is not over after {RUN_S:.0f} s")
            showing.result()
        finally:
            for task in (showing, guarding):
                task.cancel()
            await asyncio.gather(showing, guarding, return_exceptions=True)
        return handle.id, await handle.result(timeout=10), timeline

    async def _follow(self, handle: RunHandle[app.Summary], timeline: Timeline) -> None:
        """Print what the run does, as it comes."""
        async with aclosing(handle.watch()) as events:
            async for event in events:
                line = progress_line(handle.id, timeline, event)
                if line is not None:
                    command = getattr(getattr(event, event.WhichOneof("kind") or ""), "command_id", "")
                    chunks = [step.command_id for step in chunks_of(timeline)]
                    self.tell(f"{line}   · chunk {chunks.index(command) + 1}" if command in chunks else line)

    async def _guard(self, run_id: str, timeline: Timeline, *, kill: bool) -> None:
        """Kill the victim when some chunks are done and others are being looked up; raise when a process has ended."""
        while True:
            self.processes.check()
            if (
                kill
                and not self.killed
                and sum(step.state == "completed" for step in chunks_of(timeline)) >= KILL_AFTER
            ):
                running = {step.command_id for step in chunks_of(timeline) if step.state == "running"}
                if running & {entry["command"] for entry in ledger_of(self.output, run_id)}:
                    self.kill_and_restart()
            await asyncio.sleep(0.02)

    def kill_and_restart(self) -> None:
        """What the demo is about: SIGKILL leaves the worker no time to say or save anything."""
        self.killed.append(self.processes.kill(f"worker-{VICTIM}"))
        self.tell(f"☠ SIGKILL for the worker of pool {VICTIM}, process {self.killed[-1]}")
        self.tell(f"  started again: process {self.start_worker(VICTIM)}")

    def tell(self, line: str) -> None:
        """Print a line of the live timeline, with the seconds since the start of the run."""
        short = line if len(line) <= WIDTH else line[: WIDTH - 1] + "…"
        print(f"{time.monotonic() - self.began:6.2f} s  {short}", flush=True)


def chunks_of(timeline: Timeline) -> list[StepView]:
    """Return the steps that look up zip codes, in the order of the file."""
    return [step for step in timeline.steps.values() if step.name == "add_zip_codes"]


def clean_environment() -> dict[str, str]:
    """Return our environment without settings that are meant for other Treadles; OTEL_* stay."""
    return {name: value for name, value in os.environ.items() if not name.startswith(("TREADLE_", "CONTACTS_"))}


def say(text: str) -> None:
    print(f"  {text}", flush=True)


def title(text: str) -> None:
    print(f"\n── {text} " + "─" * max(0, 90 - len(text)), flush=True)


async def show(demo: Demo) -> None:
    """Run both files and check what came of them."""
    async with Client(demo.server) as client:
        await demo.workers_ready(client)
        title("Import 3,376 rows; the worker that looks up zip codes is killed in the middle")
        run_id, summary, timeline = await demo.import_file(client, "airports", kill=True)
        title("What came of it")
        check_import(demo.checks, summary, timeline, demo.output, run_id, demo.killed)
        title("A broken file")
        broken_id, refused, broken = await demo.import_file(client, "broken", kill=False)
        check_broken(demo.checks, refused, broken, demo.output, broken_id)
        title("The run's history")
        await show_history(run_id, demo.server)
        tell_about_traces((await client.run(run_id).get()).trace_id)


async def show_history(run_id: str, server: str) -> None:
    """Run the command that shows it."""
    print(f"$ treadle run show {run_id} --server {server}\n", flush=True)
    command = [sys.executable, "-m", "treadle.cli", "run", "show", run_id, "--server", server]
    process = await asyncio.create_subprocess_exec(*command, env=clean_environment())
    if await process.wait() != 0:
        raise DemoError(f"`treadle run show` ended with exit code {process.returncode}")


def tell_about_traces(trace_id: str) -> None:
    """Say where the trace is, or how to get one."""
    title("The trace")
    endpoint = os.environ.get("OTEL_EXPORTER_OTLP_ENDPOINT")
    if endpoint:
        say(f"trace {trace_id} was sent to {endpoint}")
        say(f"in a Jaeger on this machine: http://localhost:16686/trace/{trace_id}")
    else:
        say(f"its id would be {trace_id}; to get one, start Jaeger and the demo again:")
        say("  docker run --rm --detach -p 16686:16686 -p 4317:4317 jaegertracing/jaeger:2.20.0")
        say("  OTEL_EXPORTER_OTLP_ENDPOINT=http://localhost:4317 make demo")


async def run(folder: Path, *, services: bool, keep: bool) -> bool:
    """Show everything; returns whether all checks passed."""
    if (task := asyncio.current_task()) is not None:  # SIGTERM does what Ctrl-C does: stop and clean up
        for number in (signal.SIGINT, signal.SIGTERM):  # a background job of a shell would ignore Ctrl-C otherwise
            asyncio.get_running_loop().add_signal_handler(number, task.cancel)
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("a") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise DemoError(f"another demo uses {folder}: stop it, or give another --folder") from error
        return await run_alone(folder.resolve(), services=services, keep=keep)


async def run_alone(folder: Path, *, services: bool, keep: bool) -> bool:
    """Show everything in a folder that is ours; what an earlier demo left there is removed."""
    for part in ("state", "contacts", "logs"):
        shutil.rmtree(folder / part, ignore_errors=True)
    title("Start " + ("Redis, RabbitMQ, " if services else "") + "a control plane and a worker for each pool")
    servers = real_servers if services else embedded_state
    demo = Demo(folder, Processes(folder / "logs"))
    async with servers(demo.folder / "state", demo.processes) as found:
        try:
            say(f"state in {found.redis_url}, jobs through {found.amqp_url.rpartition('@')[2]}")
            await demo.start(found.redis_url, found.amqp_url)
            await show(demo)
            if keep:
                title(f"Everything runs on, until Ctrl-C: export TREADLE_SERVER={demo.server}")
                await asyncio.Event().wait()
        finally:
            demo.processes.stop()
    title(f"{demo.checks.passed} checks passed, {demo.checks.failed} failed; all processes are stopped")
    say(f"contacts, mails, ledger and logs are in {folder}")
    if not services:
        say(f"runs too: `treadle dev examples/contacts/app.py --data {folder}/state`, then `treadle run list`")
    return not demo.checks.failed


def main() -> int:
    """Parse the command line and run the demo; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--services", action="store_true", help="run on real Redis and RabbitMQ servers")
    parser.add_argument("--keep", action="store_true", help="leave everything running until Ctrl-C")
    parser.add_argument("--folder", type=Path, default=Path(".treadle/demo"), help="where to keep what is made")
    given = parser.parse_args()
    try:
        return 0 if asyncio.run(run(given.folder, services=given.services, keep=given.keep)) else 1
    except (DemoError, TreadleError) as error:
        print(f"\ndemo: {type(error).__name__}: {error}; logs are in {given.folder}/logs", file=sys.stderr)
        return 1
    except (KeyboardInterrupt, asyncio.CancelledError):
        print("\ndemo: stopped; all processes are ended", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
