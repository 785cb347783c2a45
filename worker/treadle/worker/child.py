"""`python -m treadle.worker.child APP`: runs attempts, one at a time, for the worker at the other end of its pipes.

It imports the app, says Ready, and then runs what it is told. Its death is the failure of one attempt and harms nobody;
the worker's death is the end of its input, and ends it. What user code prints goes to stderr.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import signal
import sys
import threading
from collections.abc import Sequence
from queue import SimpleQueue
from typing import Any, BinaryIO, NoReturn

import structlog

from treadle.protocol.errors import PayloadError, TreadleError
from treadle.v1.common_pb2 import Payload
from treadle.worker.app import Registry, load_app
from treadle.worker.bodies import failed, run_async, run_sync
from treadle.worker.child_pulse import ChildPulse
from treadle.worker.child_wire import HEADER_BYTES, Cancel, Ended, Ready, Run, ToChild, ToParent, pack, unpack
from treadle.worker.core.port import Report
from treadle.worker.current import STEP_INFO, StepInfo
from treadle.worker.logs import configure_logging
from treadle.worker.spans import Spans, set_up
from treadle.worker.steps import Step

__all__ = ("main",)

_log = structlog.stdlib.get_logger(__name__)


class Child:
    """The process: a reader thread for what the worker says, user code on the main thread."""

    def __init__(self, registry: Registry, source: BinaryIO, sink: BinaryIO, spans: Spans) -> None:
        self._steps = registry.steps
        self._source = source
        self._sink = sink
        self._spans = spans
        self._runs: SimpleQueue[Run] = SimpleQueue()
        self._info: StepInfo | None = None
        self._task: tuple[asyncio.AbstractEventLoop, asyncio.Task[Report]] | None = None
        self._sync = False
        self._writing = threading.Lock()
        self._pulse = ChildPulse(self._say)

    def _say(self, message: ToParent) -> None:
        with self._writing:
            say(self._sink, message)

    def serve(self) -> NoReturn:
        """Run attempts until the worker closes the pipe."""
        signal.signal(signal.SIGTERM, self._terminated)
        threading.Thread(target=self._read, name="pipe", daemon=True).start()
        self._say(Ready())
        while True:
            run = self._runs.get()
            try:
                report = self._run(run)
            except asyncio.CancelledError as error:  # the signal came between two instructions of ours
                report = failed(error, run.info, 0)
            self._pulse.end()
            self._say(Ended.of(report))

    def _run(self, run: Run) -> Report:
        self._info = run.info
        self._pulse.begin(run.progress, run.deferral)
        run.info.live = self._pulse
        STEP_INFO.set(run.info)
        try:
            with self._spans.under(run.info.traceparent):
                step = self._steps.get(run.step)
                if step is None:
                    return failed(LookupError(f"the app has no step {run.step!r} any more"), run.info, 0)
                payload = Payload.FromString(run.payload)
                if step.is_async:
                    return asyncio.run(self._run_async(step, payload, run))
                return self._run_sync(step, payload, run)
        finally:
            run.info.live = None
            self._info = None

    def _run_sync(self, step: Step[..., Any], payload: Payload, run: Run) -> Report:
        self._sync = True
        try:
            return run_sync(step, payload, run.info, run.limit)
        finally:
            self._sync = False

    async def _run_async(self, step: Step[..., Any], payload: Payload, run: Run) -> Report:
        try:
            arguments = step.signature.decode_call(payload)
        except PayloadError as error:
            return failed(error, run.info, 0)
        task = asyncio.create_task(run_async(step, arguments, run.info, run.limit))
        self._task = (asyncio.get_running_loop(), task)
        try:
            if run.info.cancel_reason:
                return failed(asyncio.CancelledError(), run.info, 0)
            return await task
        finally:
            self._task = None
            task.cancel()

    def _read(self) -> None:
        """On a thread of its own. The end of the pipe is the worker's end: nothing may run on after it."""
        while (message := hear(self._source)) is not None:
            if isinstance(message, Run):
                self._runs.put(message)
            else:
                self._cancel(message.reason)
        os._exit(0)

    def _cancel(self, reason: str) -> None:
        info, task = self._info, self._task
        if info is None:
            return
        info.cancel_reason = reason
        if task is not None:
            task[0].call_soon_threadsafe(task[1].cancel, reason)
        else:
            os.kill(os.getpid(), signal.SIGTERM)  # interrupts what the main thread waits in

    def _terminated(self, signum: int, frame: object) -> None:
        """SIGTERM from elsewhere goes to the whole group, and the worker drains: only a cancel cuts off what runs."""
        if self._sync and self._info is not None and self._info.cancel_reason:
            raise asyncio.CancelledError(self._info.cancel_reason)


def say(sink: BinaryIO, message: ToParent) -> None:
    """Write a frame; a worker that is gone ends this process."""
    try:
        sink.write(pack(message))
        sink.flush()
    except BrokenPipeError:
        os._exit(0)


def hear(source: BinaryIO) -> ToChild | None:
    """Read a frame; None at the end of the pipe."""
    header = source.read(HEADER_BYTES)
    if len(header) < HEADER_BYTES:
        return None
    body = source.read(int.from_bytes(header, "big"))
    message = unpack(body)
    assert isinstance(message, Run | Cancel), "a worker says nothing else"
    return message


def _private_pipes() -> tuple[BinaryIO, BinaryIO]:
    """Keep stdin and stdout for the wire; user code reads nothing, and prints to stderr."""
    source, sink = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.close(nothing)
    os.dup2(2, 1)
    return source, sink


def main(argv: Sequence[str] | None = None) -> int:
    """Load the app and serve. Returns 2 when the app cannot be loaded."""
    parser = argparse.ArgumentParser(prog="python -m treadle.worker.child")
    parser.add_argument("app")
    parser.add_argument("--log-level", default="info")
    parser.add_argument("--service", default="treadle")
    given = parser.parse_args(argv)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the worker, which drains
    source, sink = _private_pipes()
    configure_logging(level=given.log_level)
    try:
        registry = load_app(given.app)
    except TreadleError as error:
        say(sink, Ready(error=str(error)))
        return 2
    set_up(os.environ, service=given.service, worker_id=f"child-{os.getpid()}")
    Child(registry, source, sink, Spans()).serve()


if __name__ == "__main__":
    sys.exit(main())
