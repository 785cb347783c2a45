"""What a worker itself spends on a step: the whole worker in one process, its server played by a few lines of this file.

    python -m benchmarks.worker_path [--runs 1000] [--flight 100] [--batch 50]

Everything but the transports is real: the core, the durable loops, the executors, and protobuf in both directions. The
replica answers as the real one does, in frames of at most `--batch` entries; its own share is measured and taken off.
`local` and `pool` are microseconds of CPU a step, of chains of five; for `pool` the same worker owns the runs and executes
the steps. `alone` is one chain of 50 with nothing beside it: the worker's share of the time of a step.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import itertools
import statistics
import time
from collections import deque
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

from benchmarks.app import local, local_chain, pool_chain, pooled
from treadle.v1 import history_pb2 as history
from treadle.v1.common_pb2 import Payload, TraceContext
from treadle.v1.job_pb2 import JOB_KIND_RUN, JOB_KIND_STEP, Job, JobKind
from treadle.v1.worker_service_pb2 import (
    ANSWER_OK,
    VERDICT_GO,
    AttemptReport,
    BeatRequest,
    BeatResponse,
    ClaimItem,
    ClaimVerdict,
    Grant,
    News,
    OwnerAnswer,
    OwnerRequest,
    RegisterRequest,
    RegisterResponse,
    ReportAnswer,
    RunGrant,
    SessionRequest,
    SessionResponse,
    SessionWelcome,
)
from treadle.worker import worker as worker_module
from treadle.worker.app import Registry
from treadle.worker.clock import monotonic_ms
from treadle.worker.config import WorkerConfig
from treadle.worker.core.port import WorkerCorePort
from treadle.worker.logs import configure_logging
from treadle.worker.session import SessionPort
from treadle.worker.worker import Worker

STEPS = 5
INPUT = b'{"length":%d,"order":{"order":"A-1029","qty":3,"n":0}}'
REVISION = 0x1234567812345678
TRACE = TraceContext(traceparent="00-" + "a" * 32 + "-" + "b" * 16 + "-01")


class Run:
    """What the store would know of a run."""

    def __init__(self, number: int, workflow: str, length: int) -> None:
        self.id = f"{number:032x}"
        self.incarnation = number + (1 << 62)
        self.token = number.to_bytes(16, "big")
        self.workflow = workflow
        self.length = length
        self.position = 0

    def event(self, **kind: Any) -> history.HistoryEvent:
        self.position += 1
        return history.HistoryEvent(
            position=self.position, revision=REVISION + self.position, time_ms=1_700_000_000_000, **kind
        )

    def job(self, kind: JobKind.ValueType, name: str) -> Job:
        return Job(
            namespace="default",
            run_id=self.id,
            incarnation=self.incarnation,
            kind=kind,
            pool="default",
            name=name,
            dispatch_id=f"{self.id}{self.position:04x}",
            trace=TRACE,
        )


class Broker:
    """Stands where the worker's consumers of RabbitMQ stand: takes their place in the worker that is made next."""

    def __init__(self, url: str, core: WorkerCorePort, changed: Any, **_: Any) -> None:
        self.address, self.core, self.changed = url, core, changed
        self.consuming: set[int] = set()
        self.tags = itertools.count(1)
        self.last = self

    def consume(self, kind: JobKind.ValueType, on: bool) -> None:
        (self.consuming.add if on else self.consuming.discard)(kind)

    def deliver(self, bodies: Sequence[bytes]) -> None:
        for body in bodies:
            self.core.delivered(next(self.tags), Job.FromString(body), body, monotonic_ms())
        self.changed()

    def ack(self, tag: int) -> None:
        pass

    def hang_up(self) -> None:
        pass

    def look(self) -> None:
        pass

    async def close(self) -> None:
        pass


class Replica:
    """The server: endpoint, session and beats of one worker."""

    def __init__(self, batch: int) -> None:
        self.batch = batch
        self.spent = 0.0
        self.frames = [0, 0]
        self.welcome = asyncio.Event()
        self._down: deque[bytes] = deque()
        self._reader: asyncio.Future[None] | None = None
        self._runs: dict[str, Run] = {}
        self._numbers = itertools.count(1)
        self._pushes = itertools.count(1)
        self._todo: deque[tuple[str, int]] = deque()
        self._left = 0
        self._done: asyncio.Future[None]
        self._credit = (0, 0)
        self._steps: dict[bytes, tuple[Run, Job]] = {}
        self._out: list[SessionResponse] = []
        self._jobs: list[bytes] = []
        self.worker: Worker

    # --- the worker's side ---------------------------------------------------------------------------------------
    async def register(self, address: str, request: RegisterRequest) -> RegisterResponse:
        return RegisterResponse(beat_ms=1000)

    @asynccontextmanager
    async def open(self, address: str) -> AsyncIterator[SessionPort]:
        yield self

    async def send(self, frame: SessionRequest) -> None:
        data = frame.SerializeToString()
        self.frames[0] += 1
        began = time.thread_time()
        asyncio.get_running_loop().call_soon(self._arrived, data)
        if frame.HasField("hello"):
            self._down.append(SessionResponse(welcome=SessionWelcome(replica_id="r")).SerializeToString())
        if frame.goodbye:
            self._down.append(b"")
        self.spent += time.thread_time() - began
        await asyncio.sleep(0)

    async def receive(self) -> SessionResponse | None:
        while not self._down:
            self._reader = asyncio.get_running_loop().create_future()
            await self._reader
            self._reader = None
        data = self._down.popleft()
        self.frames[1] += 1
        return SessionResponse.FromString(data) if data else None

    # --- the server's side ---------------------------------------------------------------------------------------
    def _arrived(self, data: bytes) -> None:
        began = time.thread_time()
        frame = SessionRequest.FromString(data)
        if frame.HasField("credits"):
            self._credit = (frame.credits.credit_id, frame.credits.sent_ms)
            self._next().credits_taken = frame.credits.credit_id
            if frame.credits.run_jobs:
                self.welcome.set()
        for claim in frame.claims:
            self._next().verdicts.append(self._claimed(claim))
        for report in frame.reports:
            self._reported(report)
        for request in frame.requests:
            self._asked(request)
        self._flush()
        self.spent += time.thread_time() - began

    def _next(self) -> SessionResponse:
        """The frame that the next entry goes into."""
        last = self._out[-1] if self._out else None
        if (
            last is None
            or len(last.owner_answers) + len(last.verdicts) + len(last.grants) + len(last.news) >= self.batch
        ):
            self._out.append(SessionResponse())
        return self._out[-1]

    def _flush(self) -> None:
        self._down.extend(frame.SerializeToString() for frame in self._out)
        self._out.clear()
        if self._down and self._reader is not None and not self._reader.done():
            self._reader.set_result(None)
        if self._jobs:
            jobs, self._jobs = self._jobs, []
            asyncio.get_running_loop().call_soon(self.worker._intake.deliver, jobs)  # type: ignore[union-attr]

    def _asked(self, ask: OwnerRequest) -> None:
        run = self._runs[ask.run_id]
        answer = OwnerAnswer(run_id=ask.run_id, token=ask.token, seq=ask.seq, answer=ANSWER_OK)
        for checkpoint in ask.checkpoints:
            done = history.StepCompleted(
                command_id=checkpoint.command_id,
                attempt=1,
                name=checkpoint.name,
                digest=checkpoint.digest,
                local=True,
                ended_ms=checkpoint.ended_ms,
            )
            answer.events.append(run.event(step_completed=done))
            answer.result_omitted.append(checkpoint.command_id)
        for command in ask.commands:
            schedule = command.schedule_step
            job = run.job(JOB_KIND_STEP, schedule.name)
            scheduled = history.StepScheduled(
                command_id=command.command_id,
                digest=command.digest,
                name=schedule.name,
                pool=schedule.pool,
                input=schedule.input,
                dispatch_id=job.dispatch_id,
            )
            answer.events.append(run.event(step_scheduled=scheduled))
            job.command_id, job.try_number = command.command_id, 1
            job.input.CopyFrom(schedule.input)
            self._jobs.append(job.SerializeToString())
        if answer.events:
            answer.position, answer.revision = answer.events[-1].position, answer.events[-1].revision
        self._next().owner_answers.append(answer)
        final = ask.WhichOneof("final")
        if final not in (None, "complete"):
            raise RuntimeError(f"a run ended with {ask}")
        if final is not None:
            del self._runs[ask.run_id]
            self._left -= 1
            self._push()
            if not self._left:
                self._done.set_result(None)

    def _news(self, run: Run, **kind: Any) -> None:
        event = run.event(**kind)
        self._next().news.append(News(run_id=run.id, token=run.token, events=[event], length=event.position))

    def _claimed(self, claim: ClaimItem) -> ClaimVerdict:
        run = self._runs[claim.job.run_id]
        token = b"s" + (run.incarnation * 1000 + run.position).to_bytes(15, "big")
        self._steps[token] = (run, claim.job)
        started = history.AttemptStarted(
            command_id=claim.job.command_id, attempt=1, try_number=1, worker_id=self.worker.worker_id
        )
        self._news(run, attempt_started=started)
        grant = Grant(token=token, claim_id=claim.claim_id, sent_ms=claim.sent_ms, attempt=1, trace=TRACE)
        return ClaimVerdict(claim_id=claim.claim_id, verdict=VERDICT_GO, grant=grant)

    def _reported(self, report: AttemptReport) -> None:
        run, _job = self._steps.pop(report.token)
        self._next().report_answers.append(ReportAnswer(token=report.token, answer=ANSWER_OK))
        done = history.StepCompleted(
            command_id=report.command_id, attempt=1, result=report.result, ended_ms=report.ended_ms
        )
        self._news(run, step_completed=done)

    def _push(self) -> None:
        """Start the next run, with GO."""
        if not self._todo:
            return
        workflow, length = self._todo.popleft()
        number = next(self._numbers)
        run = Run(number, workflow, length)
        self._runs[run.id] = run
        begun = history.RunStarted(workflow=workflow, pool="default", input=Payload(data=INPUT % length), trigger="api")
        events = [
            run.event(run_started=begun),
            run.event(run_opened=history.RunOpened(worker_id=self.worker.worker_id)),
        ]
        grant = Grant(
            token=run.token,
            claim_id=self._credit[0],
            sent_ms=self._credit[1],
            job=run.job(JOB_KIND_RUN, workflow),
            trace=TRACE,
            run=RunGrant(events=events, length=2, from_start=True),
            push_number=next(self._pushes),
        )
        self._next().grants.append(grant)

    async def play(self, workflow: str, runs: int, flight: int, length: int) -> tuple[float, float]:
        """Run so many; returns (CPU, wall) seconds that were the worker's."""
        self._todo.extend((workflow, length) for _ in range(runs))
        self._left = runs
        self._done = asyncio.get_running_loop().create_future()
        gc.collect()
        self.spent, cpu, wall = 0.0, time.thread_time(), time.perf_counter()
        began = time.thread_time()
        for _ in range(min(flight, runs)):
            self._push()
        self._flush()
        self.spent += time.thread_time() - began
        await self._done
        spent = self.spent
        return time.thread_time() - cpu - spent, time.perf_counter() - wall - spent


class Beats:
    """Where beats go."""

    def send(self, address: str, beat: BeatRequest) -> BeatResponse:
        return BeatResponse()

    def close(self) -> None:
        pass


async def _main(options: argparse.Namespace) -> None:
    worker_module.Intake = Broker  # type: ignore[attr-defined,assignment]  # stands in for the consumers of RabbitMQ
    replica = Replica(options.batch)
    config = WorkerConfig(
        app="benchmarks/app.py",
        pool="default",
        server="127.0.0.1:1",
        lane="amqp",
        amqp_url="amqp://here",
        slots=options.flight,
    )
    registry = Registry().add(local, pooled, local_chain, pool_chain)
    worker = replica.worker = Worker(config, registry, endpoint=replica, beats=Beats())
    running = asyncio.create_task(worker.run())
    await replica.welcome.wait()
    for name, chain in (("local", "local_chain"), ("pool", "pool_chain")):
        if options.only not in ("", name):
            continue
        await replica.play(chain, options.flight, options.flight, STEPS)
        found = []
        for _ in range(options.rounds):
            replica.frames = [0, 0]
            cpu, _wall = await replica.play(chain, options.runs, options.flight, STEPS)
            found.append(cpu / options.runs / STEPS * 1e6)
        alone = [(await replica.play(chain, 1, 1, 50))[1] / 50 * 1e6 for _ in range(options.rounds * 3)]
        print(
            f"{name:6} {statistics.median(found):6.1f} us CPU a step ({min(found):.1f} to {max(found):.1f}; "
            f"{replica.frames[0]} frames up, {replica.frames[1]} down)   alone {statistics.median(alone):6.1f} us a step"
        )
    worker.drain()
    await running


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--runs", type=int, default=1000)
    parser.add_argument("--flight", type=int, default=100, help="runs at the same time")
    parser.add_argument("--batch", type=int, default=50, help="entries in a frame that comes down")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", choices=("", "local", "pool"), default="")
    parser.add_argument("--loop", choices=("asyncio", "uvloop"), default="asyncio")
    options = parser.parse_args()
    configure_logging(level="warning")
    if options.loop == "uvloop":
        import uvloop

        uvloop.run(_main(options))
    else:
        asyncio.run(_main(options))


if __name__ == "__main__":
    main()
