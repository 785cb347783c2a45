"""A whole worker over an in-memory port: registration, sessions that are replaced, attempts, drain; and its command line."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from treadle.protocol.errors import ConfigError, Unavailable
from treadle.v1.job_pb2 import JOB_KIND_STEP, Job
from treadle.v1.worker_service_pb2 import (
    ANSWER_OK,
    REPORT_KIND_COMPLETED,
    REPORT_KIND_RELEASED,
    BeatRequest,
    BeatResponse,
    Grant,
    RegisterRequest,
    RegisterResponse,
    ReportAnswer,
    SessionRequest,
    SessionResponse,
    SessionWelcome,
)
from treadle.worker import step
from treadle.worker.app import Registry
from treadle.worker.config import WorkerConfig
from treadle.worker.session import SessionBroken, SessionPort
from treadle.worker.worker import Worker, served


@step(pool="p")
async def double(n: int) -> int:
    return 2 * n


@step(pool="p")
async def endless() -> None:
    await asyncio.sleep(600)


class Pipe:
    """The server's end of one session, and the worker's."""

    def __init__(self, address: str) -> None:
        self.address = address
        self.up: asyncio.Queue[SessionRequest] = asyncio.Queue()
        self.down: asyncio.Queue[SessionResponse | Exception | None] = asyncio.Queue()
        self.closed = asyncio.Event()
        self.mute = False

    async def send(self, frame: SessionRequest) -> None:
        self.up.put_nowait(frame)
        if frame.HasField("hello") and not self.mute:
            self.down.put_nowait(SessionResponse(welcome=SessionWelcome(replica_id="r1")))
        elif frame.HasField("credits") and not self.mute:
            self.down.put_nowait(SessionResponse(credits_taken=frame.credits.credit_id))
        if frame.goodbye:
            self.down.put_nowait(None)

    async def receive(self) -> SessionResponse | None:
        frame = await self.down.get()
        if isinstance(frame, Exception):
            raise frame
        return frame

    async def until(self, wanted: Callable[[SessionRequest], bool]) -> SessionRequest:
        async with asyncio.timeout(20):
            while not wanted(frame := await self.up.get()):
                pass
        return frame


class Server:
    """Endpoint, and where beats go."""

    def __init__(self) -> None:
        self.registered: list[tuple[str, RegisterRequest]] = []
        self.away = 0
        self.pipes: asyncio.Queue[Pipe] = asyncio.Queue()
        self.beats: list[BeatRequest] = []
        self.silent: set[str] = set()

    async def register(self, address: str, request: RegisterRequest) -> RegisterResponse:
        self.registered.append((address, request))
        if len(self.registered) <= self.away:
            raise Unavailable("nobody there")
        return RegisterResponse(beat_ms=1000)

    @asynccontextmanager
    async def open(self, address: str) -> AsyncIterator[SessionPort]:
        pipe = Pipe(address)
        pipe.mute = address in self.silent
        self.pipes.put_nowait(pipe)
        try:
            yield pipe
        finally:
            pipe.closed.set()

    def send(self, address: str, beat: BeatRequest) -> BeatResponse:
        self.beats.append(beat)
        return BeatResponse()

    def close(self) -> None:
        pass

    async def session(self) -> Pipe:
        async with asyncio.timeout(20):
            return await self.pipes.get()


def play(body: Callable[[Server, Worker], Awaitable[None]], *, server: str = "127.0.0.1:1", away: int = 0) -> int:
    """Run a worker while `body` plays the server; drain it at the end. Returns the exit code."""

    async def main() -> int:
        fake = Server()
        fake.away = away
        config = WorkerConfig(app="app.py", pool="p", server=server, grace="300ms", slots=2)
        worker = Worker(config, Registry().add(double, endless), endpoint=fake, beats=fake)
        running = asyncio.create_task(worker.run())
        try:
            await body(fake, worker)
            worker.drain()
            async with asyncio.timeout(20):
                return await running
        finally:
            running.cancel()

    return asyncio.run(main())


def grant(hello: SessionRequest, credits: SessionRequest, name: str, payload: bytes, push: int = 1) -> SessionResponse:
    job = Job(
        namespace="default",
        run_id="r",
        incarnation=7,
        kind=JOB_KIND_STEP,
        pool="p",
        name=name,
        command_id=f"0/{name}#1",
        try_number=1,
    )
    job.input.data = payload
    given = Grant(
        token=b"token" + bytes([push]),
        claim_id=credits.credits.credit_id,
        sent_ms=credits.credits.sent_ms,
        job=job,
        attempt=1,
        push_number=push,
    )
    return SessionResponse(grants=[given])


def test_a_grant_becomes_a_report_and_the_drain_says_goodbye() -> None:
    async def body(server: Server, worker: Worker) -> None:
        pipe = await server.session()
        hello = await pipe.until(lambda frame: frame.HasField("hello"))
        assert list(hello.hello.steps) == ["double", "endless"] and not hello.hello.replaces
        credits = await pipe.until(lambda frame: frame.HasField("credits"))
        assert credits.credits.step_jobs == 2
        pipe.down.put_nowait(grant(hello, credits, "double", b'{"n":4}'))
        report = (await pipe.until(lambda frame: bool(frame.reports))).reports[0]
        assert report.kind == REPORT_KIND_COMPLETED and report.result.data == b"8"
        pipe.down.put_nowait(SessionResponse(report_answers=[ReportAnswer(token=report.token, answer=ANSWER_OK)]))
        said.append(pipe)

    said: list[Pipe] = []
    assert play(body) == 0
    frames = [said[0].up.get_nowait() for _ in range(said[0].up.qsize())]
    assert frames[-1].goodbye and said[0].closed.is_set()


def test_a_broken_session_is_replaced_and_what_was_unanswered_is_said_again() -> None:
    async def body(server: Server, worker: Worker) -> None:
        first = await server.session()
        hello = await first.until(lambda frame: frame.HasField("hello"))
        credits = await first.until(lambda frame: frame.HasField("credits"))
        first.down.put_nowait(grant(hello, credits, "double", b'{"n":4}'))
        report = (await first.until(lambda frame: bool(frame.reports))).reports[0]
        first.down.put_nowait(SessionBroken("cut"))
        second = await server.session()
        again = await second.until(lambda frame: frame.HasField("hello"))
        assert again.hello.replaces == hello.hello.session_id != again.hello.session_id
        assert (await second.until(lambda frame: bool(frame.reports))).reports[0] == report
        second.down.put_nowait(SessionResponse(report_answers=[ReportAnswer(token=report.token, answer=ANSWER_OK)]))

    assert play(body) == 0


def test_a_silent_replica_is_replaced_by_another_one() -> None:
    async def body(server: Server, worker: Worker) -> None:
        first = await server.session()
        hello = await first.until(lambda frame: frame.HasField("hello"))
        await first.until(lambda frame: frame.HasField("credits"))
        first.mute = True
        second = await server.session()
        assert second.address != first.address
        assert (await second.until(lambda frame: frame.HasField("hello"))).hello.replaces == hello.hello.session_id
        async with asyncio.timeout(20):
            await first.closed.wait()

    assert play(body, server="127.0.0.1:1,127.0.0.1:2") == 0


def test_the_drain_gives_back_what_does_not_end_within_the_grace() -> None:
    async def body(server: Server, worker: Worker) -> None:
        pipe = await server.session()
        hello = await pipe.until(lambda frame: frame.HasField("hello"))
        credits = await pipe.until(lambda frame: frame.HasField("credits"))
        pipe.down.put_nowait(grant(hello, credits, "endless", b"{}"))
        await pipe.until(lambda frame: frame.HasField("credits") and frame.credits.step_jobs == 1)
        worker.drain()
        report = (await pipe.until(lambda frame: bool(frame.reports))).reports[0]
        assert (report.kind, report.reason) == (REPORT_KIND_RELEASED, "drain")
        pipe.down.put_nowait(SessionResponse(report_answers=[ReportAnswer(token=report.token, answer=ANSWER_OK)]))

    assert play(body) == 0


def test_registration_waits_for_a_server_and_goes_through_the_addresses() -> None:
    async def body(server: Server, worker: Worker) -> None:
        await server.session()
        assert [address for address, _ in server.registered] == ["127.0.0.1:1", "127.0.0.1:2", "127.0.0.1:1"]

    assert play(body, server="127.0.0.1:1,127.0.0.1:2", away=2) == 0


def test_a_worker_can_be_ended_before_there_is_a_server() -> None:
    async def body(server: Server, worker: Worker) -> None:
        async with asyncio.timeout(20):
            while len(server.registered) < 2:
                await asyncio.sleep(0.01)

    assert play(body, away=10_000) == 0


def test_a_pool_that_the_app_does_not_have_is_refused() -> None:
    with pytest.raises(ConfigError, match="it has some of p"):
        served(Registry().add(double), "other")


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"pool": "No"}, "invalid pool name 'No'"),
        ({"namespace": "a.b"}, "invalid namespace name 'a.b'"),
        ({"server": "example.org"}, "write it like '127.0.0.1:7430'"),
        ({"server": "example.org:7430"}, "would not be encrypted"),
        ({"slots": 0}, "slots 0: give a number from 1"),
        ({"amqp_url": "http://user:secret@host/"}, "use amqp://"),
        ({"lane": "pigeon"}, "use auto, amqp, session"),
        ({"grace": "soon"}, "grace 'soon'"),
        ({"tls_cert": "a.pem"}, "certificate and its key together"),
    ],
)
def test_settings_that_are_wrong_say_so(given: dict[str, object], words: str) -> None:
    with pytest.raises(ConfigError, match=words) as caught:
        WorkerConfig.from_env({}, app="app.py", **given)
    assert "secret" not in str(caught.value)


def test_settings_of_the_environment_are_overruled_by_what_is_given() -> None:
    environ = {"TREADLE_POOL": "a", "TREADLE_SLOTS": "1_000", "TREADLE_SERVER": "h:1, h:2", "TREADLE_INSECURE": "yes"}
    config = WorkerConfig.from_env(environ, app="x", pool="b", slots=None)
    assert (config.pool, config.slots, config.addresses, config.insecure) == ("b", 1000, ("h:1", "h:2"), True)
    assert config.grace_ms == 25_000


def test_slots_are_few_by_default_only_where_each_would_be_a_process() -> None:
    default = WorkerConfig(app="x")
    assert (default.step_slots(processes=False), default.step_slots(processes=True)) == (200, 50)
    assert WorkerConfig(app="x", slots=7).step_slots(processes=True) == 7


@pytest.mark.parametrize(
    ("code", "words"),
    [
        ("def broken(:\n", "app.py:1"),
        ("import nonexistent_module\n", "nonexistent_module"),
        ("x = 1\n", "neither workflows nor steps"),
        ("from treadle.worker import step\n@step(pool='q')\nasync def s() -> None: ...\n", "it has some of q"),
    ],
)
def test_an_app_that_cannot_be_served_ends_the_command_with_2(tmp_path: Path, code: str, words: str) -> None:
    app = tmp_path / "app.py"
    app.write_text(code)
    done = subprocess.run(
        [sys.executable, "-m", "treadle.worker", str(app)],
        capture_output=True,
        text=True,
        env=dict(os.environ),
        timeout=60,
    )
    assert done.returncode == 2 and words in done.stderr and "Traceback" not in done.stderr, done.stderr
