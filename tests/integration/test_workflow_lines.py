"""Lines that workflow code logs name its run, and are not written again when another worker executes the code again."""

from __future__ import annotations

import asyncio
import logging
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from tests.integration.api_host import ApiHost, api_host
from treadle.client import Client
from treadle.protocol.ids import trace_id
from treadle.worker import receive, step, workflow
from treadle.worker.app import collect
from treadle.worker.config import WorkerConfig
from treadle.worker.logs import NotReplayed, of_step
from treadle.worker.runtime import Worker

log = logging.getLogger(__name__)


@step
async def near() -> int:
    log.info("in the step")
    return 1


@workflow
async def tells() -> int:
    log.info("begins")
    found = await near()
    log.info("first: %d", found)
    await receive("on", str)
    log.info("ends")
    return found


class Heard(logging.Handler):
    """Keeps what it is told, with what a line of a real log would say beside it."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[tuple[str, dict[str, Any]]] = []
        self.waits = asyncio.Event()

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append((record.getMessage(), dict(of_step(None, "info", {}))))
        if record.getMessage() == "first: 1":
            self.waits.set()


@pytest.fixture
def heard() -> Iterator[Heard]:
    handler = Heard()
    handler.addFilter(NotReplayed())
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    yield handler
    log.removeHandler(handler)


@asynccontextmanager
async def working(host: ApiHost) -> AsyncIterator[None]:
    worker = Worker(WorkerConfig(app="here", server=host.address), collect([near, tells]))
    works = asyncio.create_task(worker.run())
    try:
        yield
    finally:
        worker.drain()
        await works


def test_a_line_is_written_once_whoever_has_the_run(heard: Heard) -> None:
    async def main() -> int:
        async with asyncio.timeout(60), api_host() as host, Client(host.address) as client:
            async with working(host):
                run = await client.start(tells, id="r")
                await heard.waits.wait()
            async with working(host):
                await run.signal("on", "go")
                assert await run.result() == 1
            return (await run.get()).incarnation

    incarnation = asyncio.run(main())
    assert [text for text, _ in heard.lines] == ["begins", "in the step", "first: 1", "ends"]
    workflow_said = {"run": "r", "workflow": "tells", "trace_id": trace_id("default", "r", incarnation)}
    for text, said in heard.lines:
        if text == "in the step":
            assert (said["run"], said["step"], said["trace_id"]) == ("r", "near", workflow_said["trace_id"])
        else:
            assert said == workflow_said


def test_the_log_of_a_worker_leaves_replayed_lines_out() -> None:
    """In a process of its own: it is configured for good there."""
    program = (
        "import logging; from treadle.worker.logs import NotReplayed, configure_logging; configure_logging();"
        "print([type(found).__name__ for handler in logging.getLogger().handlers for found in handler.filters])"
    )
    told = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert told.stdout == "['NotReplayed']\n"
