"""Beats from a thread: what they say, when they are silent, and what is said about a loop that is blocked."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from structlog.testing import capture_logs

from treadle.v1.state_pb2 import HeldToken
from treadle.v1.worker_service_pb2 import BeatRequest, BeatResponse
from treadle.worker import loop_watch, step
from treadle.worker.app import Registry
from treadle.worker.beats import BeatThread
from treadle.worker.clock import monotonic_ms
from treadle.worker.loop_watch import LoopWatch


class Source:
    """What the core would say."""

    def __init__(self) -> None:
        self.list: tuple[int, tuple[HeldToken, ...]] = (1, ())
        self.read_at: list[int] = []

    def held(self) -> tuple[int, tuple[HeldToken, ...]]:
        self.read_at.append(monotonic_ms())
        return self.list

    def counts(self) -> tuple[int, int]:
        return 2, 3


class Channel:
    """Keeps the beats; answers what it is told to."""

    def __init__(self) -> None:
        self.beats: list[tuple[str, BeatRequest]] = []
        self.answers: list[BeatResponse | ConnectionError] = []
        self.closed = False
        self._came = threading.Condition()

    def send(self, address: str, beat: BeatRequest) -> BeatResponse:
        with self._came:
            self.beats.append((address, beat))
            self._came.notify_all()
        answer = self.answers.pop(0) if self.answers else BeatResponse()
        if isinstance(answer, ConnectionError):
            raise answer
        return answer

    def close(self) -> None:
        self.closed = True

    def wait(self, count: int) -> list[BeatRequest]:
        with self._came:
            assert self._came.wait_for(lambda: len(self.beats) >= count, 20), f"{len(self.beats)} of {count} beats"
            return [beat for _, beat in self.beats]


@contextmanager
def beating(source: Source, channel: Channel, watch: LoopWatch | None = None) -> Iterator[BeatThread]:
    crashes: list[BaseException] = []
    thread = BeatThread("w", source, channel, watch or LoopWatch(Registry()), beat_ms=20)
    thread.start(crashes.append)
    try:
        yield thread
    finally:
        thread.stop()
        assert not crashes and channel.closed


def test_no_beat_without_a_session_and_at_once_with_one() -> None:
    source, channel = Source(), Channel()
    with beating(source, channel) as thread:
        assert not channel.beats
        thread.session_opened("s1", "host:1")
        first = channel.wait(1)[0]
        assert (first.worker_id, first.session_id, first.steps_running, first.runs_open) == ("w", "s1", 2, 3)
        thread.session_ended()
        # One beat may be under way while the session ends; after it there are no more.
        assert_quiet(channel)
        thread.session_opened("s2", "host:2")
        count = len(channel.beats) + 1
        channel.wait(count)
        assert channel.beats[-1][0] == "host:2"


def assert_quiet(channel: Channel) -> None:
    before = -1
    deadline = time.monotonic() + 20
    while before != len(channel.beats):
        assert time.monotonic() < deadline, "beats go on without a session"
        before = len(channel.beats)
        threading.Event().wait(0.2)


def test_the_list_goes_out_when_it_changed_or_is_wanted() -> None:
    source, channel = Source(), Channel()
    channel.answers = [ConnectionError("away"), BeatResponse(), BeatResponse(want_list=True)]
    with beating(source, channel) as thread:
        thread.session_opened("s", "a:1")
        beats = channel.wait(5)
        # Unanswered, answered, known, wanted, known again.
        assert [beat.list_given for beat in beats[:5]] == [True, True, False, True, False]
        token = HeldToken(run_id="r", token=b"t")
        source.list = (2, (token,))
        changed = next(beat for beat in iter_beats(channel) if beat.list_id == 2)
        assert changed.list_given and list(changed.held) == [token]


def iter_beats(channel: Channel) -> Iterator[BeatRequest]:
    for index in range(10_000):
        yield channel.wait(index + 1)[index]


def test_the_send_time_is_taken_before_the_list_is_read() -> None:
    source, channel = Source(), Channel()
    with beating(source, channel) as thread:
        thread.session_opened("s", "a:1")
        beats = channel.wait(3)
        assert all(beat.sent_ms <= read for beat, read in zip(beats, source.read_at, strict=False))


def test_a_loop_that_never_comes_back_silences_the_beats() -> None:
    source, channel = Source(), Channel()
    watch = LoopWatch(Registry())
    watch._stamp = monotonic_ms() - 70_000
    with beating(source, channel, watch) as thread:
        thread.session_opened("s", "a:1")
        assert_quiet(channel)
        assert not channel.beats
        watch._stamp = monotonic_ms()
        channel.wait(1)


@step
async def hogs(release: Any) -> None:
    release.wait(3)


async def until_marked(watch: LoopWatch) -> None:
    """Return when the loop was seen to run."""
    before = watch._stamp
    while watch._stamp == before:
        await asyncio.sleep(0.01)


def test_a_blocked_loop_is_named_and_beats_go_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop_watch, "BLOCKED_MS", 50)
    source, channel = Source(), Channel()
    said = threading.Event()

    async def main() -> None:
        watch = LoopWatch(Registry().add(hogs))
        watch.start()
        report = watch._report

        def reported(lag: int) -> None:
            report(lag)
            said.set()

        monkeypatch.setattr(watch, "_report", reported)
        with beating(source, channel, watch) as thread:
            thread.session_opened("s", "a:1")
            for _ in range(5):  # a machine that stands still for 50 ms meanwhile is another warning
                await hogs.function(said)  # holds the loop until the warning was written
                if said.is_set():
                    break
                await until_marked(watch)
            count = len(channel.beats)
            assert count and channel.wait(count + 1)
        watch.stop()

    with capture_logs() as logs:
        asyncio.run(main())
    assert said.is_set()
    warning = next(line for line in logs if line["event"] == "event_loop_blocked")
    assert warning["step"] == "hogs" and "executor='process'" in warning["remedy"]
    assert warning["at"].startswith(__file__)


def test_a_stop_of_the_whole_process_is_not_blamed_on_a_step() -> None:
    watch = LoopWatch(Registry())
    with capture_logs() as logs:
        watch.look(stood_still_ms=10_000)
    assert [line["event"] for line in logs] == ["process_stood_still"]


def test_the_clock_goes_on() -> None:
    first: Callable[[], int] = monotonic_ms
    assert 0 < first() <= monotonic_ms()
