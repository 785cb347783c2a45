"""Large and encrypted values on real processes: workers killed between store and report, values that are missing, keys that
are; and nothing readable in Redis, RabbitMQ, logs and spans."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.kill.conftest import Build
from tests.kill.house import House, Lane, WorkerProcess
from tests.kill.process import until
from tests.servers.otlp_receiver import OtlpReceiver
from tests.servers.s3_server import S3Server
from treadle.client import (
    BlobMissing,
    PayloadTooLarge,
    PayloadUnreadable,
    RunFailed,
    RunStatus,
    SyncClient,
    SyncRunHandle,
)
from treadle.client.encryption import AesGcm, new_key
from treadle.v1.history_pb2 import HistoryEvent

pytestmark = [pytest.mark.kill, pytest.mark.redis, pytest.mark.rabbitmq]

SECRET = "walrus-and-carpenter "
TIMES = 10_000
LARGE = SECRET * TIMES


class Hold:
    """A house whose values are encrypted and, over 64 KiB, in a bucket.

    Attributes:
        keys: The keys file.
        client: A client with the keys.
    """

    def __init__(self, house: House, s3: S3Server, folder: Path, **settings: str) -> None:
        self.house, self.s3 = house, s3
        self.keys = folder / "keys"
        self.keys.write_text(new_key("first"))
        more: dict[str, Any] = {"BLOBS": s3.url} | settings
        self.server = house.server(**more)
        self.client = SyncClient(self.server.address, namespace=house.namespace, codec=AesGcm.from_file(self.keys))

    def worker(self, pool: str, *, keys: Path | None = None, **env: str) -> WorkerProcess:
        settings: dict[str, Any] = {"TREADLE_KEYS_FILE": str(keys or self.keys)} | self.s3.env | env
        return self.house.worker(pool, **settings)

    def start(self, run: str, **arguments: object) -> SyncRunHandle[str]:
        return self.client.start("cargo", {"text": SECRET, "times": TIMES, **arguments}, id=run, pool="flows")

    def tell(self, run: str) -> SyncRunHandle[str]:
        """Ask and signal it, as its code wants."""
        handle = self.client.run(run)
        assert handle.ask("cargo", SECRET, returns=str, timeout="60s") == LARGE
        handle.signal("more", LARGE)
        return handle

    def kinds(self, run: str) -> list[str]:
        return [event.WhichOneof("kind") or "" for event in self.history(run)]

    def history(self, run: str) -> list[HistoryEvent]:
        return list(self.client.run(run).history())

    def until_status(self, run: str, status: RunStatus) -> str:
        until(f"{run} is {status.value}", lambda: self.client.run(run).get().status is status)
        return self.client.run(run).get().reason


@pytest.fixture
def s3(monkeypatch: pytest.MonkeyPatch) -> Iterator[S3Server]:
    with S3Server() as server:
        for name, value in server.env.items():
            monkeypatch.setenv(name, value)
        yield server


@pytest.fixture
def hold(build: Build, lane: Lane, s3: S3Server, tmp_path: Path) -> Iterator[Hold]:
    made = Hold(build(lane), s3, tmp_path)
    with made.client:
        yield made


def test_a_worker_that_is_killed_between_store_and_report_loses_nothing(hold: Hold) -> None:
    first = hold.worker("steps")
    flows = [hold.worker("flows"), hold.worker("flows")]
    hold.house.ready()
    hold.s3.hold.set()
    handle = hold.start("r")
    until("the result of the step is in the store", lambda: bool(hold.s3.held))
    first.kill()
    hold.s3.hold.clear()
    hold.worker("steps")
    until("the local step has ended", lambda: bool(hold.house.starts("r", "enlarge_here")))
    until("the code waits", lambda: hold.kinds("r").count("state_published") == 1)
    hold.s3.hold.set()
    hold.s3.held.clear()
    with SyncClient(hold.server.address, namespace=hold.house.namespace, codec=AesGcm.from_file(hold.keys)) as other:
        asking = threading.Thread(target=lambda: other.run("r").ask("cargo", SECRET, id="q", timeout="60s"))
        asking.start()
        until("the answer is in the store", lambda: bool(hold.s3.held))
        for worker in flows:
            worker.kill()
        hold.s3.hold.clear()
        hold.worker("flows")
        asking.join(60)
        assert not asking.is_alive()
    hold.client.run("r").signal("more", LARGE)
    assert handle.result(timeout="60s") == LARGE * 3
    assert handle.state() == LARGE * 2
    kinds = hold.kinds("r")
    assert kinds.count("attempt_lost") == 1
    assert kinds.count("signal_answered") == 1
    named = {key for event in hold.history("r") for key in _keys(event)}
    assert named <= {key.removeprefix("blobs/") for key in hold.s3.objects}, "no name without a value"


def _keys(event: HistoryEvent) -> list[str]:
    kind = event.WhichOneof("kind")
    message = getattr(event, kind) if kind is not None else event
    return [key for field, value in message.ListFields() if field.name != "failure" for key in _refs(value)]


def _refs(value: object) -> list[str]:
    blob = getattr(value, "blob", None)
    return list(blob.keys) if blob is not None else []


def test_what_is_large_is_fetched_only_by_who_needs_it(hold: Hold) -> None:
    hold.worker("flows")
    hold.worker("steps")
    hold.house.ready()
    hold.start("r")
    hold.tell("r").result(timeout="60s")
    inputs = [key for event in hold.history("r") for key in event.step_scheduled.input.blob.keys]
    assert inputs == [], "what a step is given is small here"
    gets = [key.removeprefix("blobs/") for key in hold.s3.gets]
    state = [key for event in hold.history("r") for key in event.state_published.state.blob.keys]
    assert len(state) == 1
    assert not set(state) & set(gets), "nobody looked at the state"
    child = [key for event in hold.history("r") for key in event.child_completed.result.blob.keys]
    assert len(child) == 2, "the result of a child is kept with its parent, too"


def test_a_value_over_the_limit_is_refused_and_the_run_goes_on(build: Build, s3: S3Server, tmp_path: Path) -> None:
    hold = Hold(build("session"), s3, tmp_path, MAX_BLOB_BYTES=str(len(LARGE) // 2))
    with hold.client:
        hold.worker("flows")
        hold.worker("steps")
        hold.house.ready()
        with pytest.raises(PayloadTooLarge, match=f"more than the limit of {len(LARGE) // 2:,}"):
            hold.start("never", text=LARGE)
        handle = hold.start("r")
        with pytest.raises(PayloadTooLarge):
            handle.signal("more", LARGE)
        with pytest.raises(RunFailed, match="PayloadTooLarge") as failed:
            handle.result(timeout="60s")
        assert failed.value.failure is not None
        assert "step enlarge: its result" in failed.value.failure.message
        assert hold.kinds("r").count("attempt_started") == 1, "no retry helps"


def test_a_value_that_is_missing_stops_the_run_until_it_is_back(hold: Hold) -> None:
    flows = hold.worker("flows")
    hold.worker("steps")
    hold.house.ready()
    hold.start("r", gate="g")
    hold.house.until_starts(1, "r", "square")
    (key,) = (key for event in hold.history("r") for key in event.step_completed.result.blob.keys)
    flows.kill()
    lost = hold.s3.objects.pop(f"blobs/{key}")
    hold.worker("flows")
    reason = hold.until_status("r", RunStatus.NEEDS_ATTENTION)
    assert "has no" in reason
    assert key in reason
    hold.s3.objects[f"blobs/{key}"] = lost
    hold.house.open("g")
    hold.worker("flows")
    assert hold.tell("r").result(timeout="60s") == LARGE * 3
    hold.s3.objects.clear()
    with pytest.raises(BlobMissing):
        hold.client.run("r").result(timeout="5s")


def test_a_store_that_is_away_is_waited_for(hold: Hold) -> None:
    flows = hold.worker("flows")
    hold.worker("steps")
    hold.house.ready()
    hold.start("r", gate="g")
    hold.house.until_starts(1, "r", "square")
    flows.kill()
    hold.s3.down = True
    later = hold.worker("flows")
    hold.house.open("g")
    until("the worker says so", lambda: "value_not_opened" in later.said, seconds=60)
    assert hold.client.run("r").get().status is RunStatus.RUNNING
    hold.s3.down = False
    assert hold.tell("r").result(timeout="60s") == LARGE * 3


def test_workers_without_the_key_harm_no_run_and_fail_no_step_silently(hold: Hold, tmp_path: Path) -> None:
    wrong = tmp_path / "wrong"
    wrong.write_text(new_key("second"))
    stranger = hold.worker("flows", keys=wrong)
    hold.house.ready()
    hold.start("r")
    reason = hold.until_status("r", RunStatus.NEEDS_ATTENTION)
    assert "encrypted with key 'first', which is not among the keys here (second)" in reason
    stranger.kill()
    hold.worker("flows")
    blind = hold.worker("steps", keys=wrong)
    with pytest.raises(RunFailed) as failed:
        hold.client.run("r").result(timeout="60s")
    assert "step enlarge failed: PayloadUnreadable: it is encrypted with key 'first'" in str(failed.value)
    assert hold.kinds("r").count("attempt_failed") == 0, "no retry helps"
    blind.kill()
    with pytest.raises(RunFailed, match=r"StepError: \(encrypted\)"):
        hold.house.client.run("r").result(timeout="5s")


def test_nothing_of_a_value_can_be_read_outside(
    build: Build, lane: Lane, s3: S3Server, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    house = build(lane)
    spans = OtlpReceiver()
    loop = asyncio.new_event_loop()
    loop.run_until_complete(spans.start())
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    try:
        _nothing_can_be_read(house, s3, tmp_path, spans)
    finally:
        asyncio.run_coroutine_threadsafe(spans.stop(), loop).result(10)
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


def _nothing_can_be_read(house: House, s3: S3Server, folder: Path, spans: OtlpReceiver) -> None:
    hold = Hold(house, s3, folder, otlp=spans.endpoint, LOG_LEVEL="debug")
    with hold.client:
        for pool in ("flows", "steps"):
            hold.worker(pool, TREADLE_LOG_LEVEL="debug", OTEL_EXPORTER_OTLP_ENDPOINT=spans.endpoint)
        house.ready()
        hold.start("large")
        hold.start("small", times=2)
        assert hold.tell("large").result(timeout="60s") == LARGE * 3
        handle = hold.client.run("small")
        assert handle.ask("cargo", SECRET, timeout="30s") == SECRET * 2
        handle.signal("more", "!")
        assert handle.result(timeout="60s") == SECRET * 4 + "!"
        with pytest.raises(PayloadUnreadable, match="configure the codec"):
            house.client.run("small").result(timeout="5s")
        hold.start("fails", times="not a number")
        hold.client.run("fails").wait(timeout="60s")
        until("the spans have come", lambda: len(spans.spans) > 10)
        word = SECRET.strip().encode()
        assert all(word not in span.SerializeToString() for span in spans.spans)
        for process in house.processes():
            assert SECRET.strip() not in process.said, process.name
        assert word not in b"".join(s3.objects.values())
        assert _found(house.redis.data, word) == []
        if house.rabbit is not None:
            assert _found(house.rabbit.data, word) == []
        shown = [event for event in hold.history("small") if event.HasField("step_failed")]
        assert shown[0].step_failed.failure.message == SECRET, "who has the key can read it"


def _found(folder: Path, word: bytes) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file() and word in path.read_bytes()]
