"""A codec that raises now and then, as one does whose key service is away: what waits for a value tries again."""

from __future__ import annotations

import asyncio
import base64
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from traceback import format_exception
from typing import ClassVar

import pytest

from tests.integration.api_host import api_host
from treadle.client import Client, CodecFailed
from treadle.client.vault import Vault
from treadle.protocol.errors import PayloadUnreadable
from treadle.protocol.failures import failure_of
from treadle.protocol.sealing import FROM_RUN, TO_RUN, Place
from treadle.v1.common_pb2 import Failure, Payload
from treadle.worker import Retry, continue_as_new, progress, publish_state, receive, step, workflow
from treadle.worker.app import collect
from treadle.worker.config import WorkerConfig
from treadle.worker.core.port import Report
from treadle.worker.current import StepInfo
from treadle.worker.runtime import Worker
from treadle.worker.step_values import StepValues

SECRET = "4111-1111"


class Base64:
    errors = True

    def encode(self, payload: Payload, place: Place) -> Payload:
        return Payload(data=base64.b64encode(payload.data), encoding="base64", metadata={"was": payload.encoding})

    def decode(self, payload: Payload, place: Place) -> Payload:
        return Payload(data=base64.b64decode(payload.data), encoding=payload.metadata["was"])


class Failing(Base64):
    """Raises where `fails` says so, given the operation, the direction and how many times that was asked for."""

    fails: Callable[[str, str, int], bool] = staticmethod(lambda *_: False)
    asked: ClassVar[Counter[tuple[str, str]]] = Counter()

    def encode(self, payload: Payload, place: Place) -> Payload:
        self._ask("encode", payload, place)
        return super().encode(payload, place)

    def decode(self, payload: Payload, place: Place) -> Payload:
        self._ask("decode", payload, place)
        return super().decode(payload, place)

    def _ask(self, what: str, payload: Payload, place: Place) -> None:
        key = (what, place.direction)
        self.asked[key] += 1
        if Failing.fails(*key, self.asked[key]):
            raise ConnectionError(f"no key service for {payload.data!r}")


@pytest.fixture(autouse=True)
def fresh(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Failing, "asked", Counter())


@step
async def near(card: str) -> str:
    progress(card)
    return f"near {card}"


@step(pool="default", retry=Retry(attempts=6, initial="20ms"))
async def far(card: str) -> str:
    progress(card)
    return f"far {card}"


@step(pool="default", retry=Retry(attempts=1))
async def broken(card: str) -> str:
    raise ValueError(card)


@workflow
async def child(card: str) -> str:
    return f"child {card}"


@workflow
async def everything(card: str) -> list[str]:
    publish_state(card)
    found = [await near(card), await far(card), await child(card), await receive("word", str)]
    try:
        await broken(card)
    except Exception as error:
        found.append(str(error).rpartition(": ")[2])
    return found


@workflow
async def parts(number: int) -> str:
    if number:
        return await receive("second", str)
    await receive("first", str)
    continue_as_new(1)


APP = collect([near, far, broken, child, everything, parts])


@asynccontextmanager
async def working() -> AsyncIterator[Client]:
    async with asyncio.timeout(60), api_host() as host:
        worker = Worker(WorkerConfig(app="here", server=host.address, codec=f"{__name__}:Failing"), APP)
        runs = asyncio.create_task(worker.run())
        try:
            async with Client(host.address, codec=Base64()) as client:
                yield client
            assert not runs.done(), "the worker outlives what its codec raises"
        finally:
            worker.drain()
            await runs


def test_a_run_goes_on_when_the_codec_does(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(Failing, "fails", lambda what, direction, times: times <= 2)

    async def main() -> None:
        async with working() as client:
            run = await client.start(everything, SECRET, id="r")
            await run.signal("word", f"word {SECRET}")
            *found, error = await run.result()
            assert found == [f"{what} {SECRET}" for what in ("near", "far", "child", "word")]
            assert error == SECRET
            assert await run.state() == SECRET

    asyncio.run(main())
    assert {key for key, times in Failing.asked.items() if times > 2} >= {
        (what, direction)
        for what in ("encode", "decode")
        for direction in ("to-run", "from-run", "to-step", "from-step")
    } - {("encode", "to-run"), ("decode", "from-run")}, Failing.asked
    said = capsys.readouterr()
    assert SECRET not in said.out + said.err, "what a codec raises may quote the value"


def test_signals_that_go_along_with_a_run_that_continues_are_not_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Failing, "fails", lambda *asked: asked == ("encode", TO_RUN, 2))

    async def main() -> None:
        async with working() as client:
            run = await client.start(parts, 0, id="r")
            await run.signal("second", "kept")
            await run.signal("first", "go")
            assert await run.result() == "kept"

    asyncio.run(main())
    assert Failing.asked["encode", TO_RUN] == 4, "input and signal, and both again"


def test_whoever_asked_is_told_what_raised_and_not_which_value(monkeypatch: pytest.MonkeyPatch) -> None:
    place = Place("default", "r", FROM_RUN)
    vault = Vault("default", codec=Failing())
    sealed = vault.seal(Payload(data=SECRET.encode()), place, [])
    failure = vault.seal_failure(Failure(message=SECRET), place)
    monkeypatch.setattr(Failing, "fails", lambda *_: True)
    for ask in (
        lambda: vault.seal(Payload(data=SECRET.encode()), place, []),
        lambda: vault.open(sealed, place),
        lambda: vault.seal_failure(Failure(message=SECRET), place),
        lambda: vault.open_failure(failure, place),
    ):
        with pytest.raises(
            CodecFailed, match=r"codec Failing raised ConnectionError at .*test_failing_codec.py:\d+"
        ) as told:
            ask()
        assert SECRET not in "".join(format_exception(told.value))


def test_an_error_that_cannot_be_sealed_does_not_leave_the_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Failing, "fails", lambda *_: True)
    values = StepValues(Vault("default", codec=Failing()))
    info = StepInfo("r", "far", 1, "key", namespace="default", command_id="c")
    raised = Failure(type="ValueError", message=SECRET, traceback=SECRET, cause=Failure(message=SECRET), final=True)
    for report in (Report("failed", failure=raised), Report("completed", result=Payload(data=SECRET.encode()))):
        for said in (values.seal(report, info), asyncio.run(values.sealed(report, info))):
            assert said.kind == "failed" and said.failure is not None
            assert (said.failure.type, said.failure.final) == (
                ("ValueError", True) if report.failure else ("CodecFailed", False)
            )
            assert said.failure.message.startswith("(not told: codec Failing raised ConnectionError")
            assert SECRET.encode() not in said.failure.SerializeToString()
    assert values.seal_progress(SECRET.encode(), info) is None


@pytest.mark.parametrize("errors", [True, False])
def test_no_failure_that_leaves_a_worker_quotes_what_the_codec_raised(
    monkeypatch: pytest.MonkeyPatch, errors: bool
) -> None:
    """Neither the one of a result, nor that of arguments, which is told in the clear, so that all may read why."""
    monkeypatch.setattr(Failing, "fails", lambda *_: True)
    monkeypatch.setattr(Failing, "errors", errors)
    vault = Vault("default", codec=Failing())
    info = StepInfo("r", "far", 1, "key", namespace="default", command_id="c")
    said = StepValues(vault).seal(Report("completed", result=Payload(data=SECRET.encode())), info).failure
    assert said is not None
    assert SECRET.encode() not in said.SerializeToString()
    with pytest.raises(CodecFailed) as told:
        vault.open(Payload(data=SECRET.encode(), encoding="base64"), Place("default", "r", FROM_RUN))
    assert SECRET.encode() not in failure_of(told.value).SerializeToString()
    assert SECRET not in "".join(format_exception(told.value))


def test_an_error_that_a_codec_gives_back_damaged_is_unreadable_for_good() -> None:
    place = Place("default", "r", FROM_RUN)
    sealed = Base64().encode(Payload(data=b"\xff\xff", encoding="failure"), place)
    with pytest.raises(PayloadUnreadable, match="damaged"):
        Vault("default", codec=Base64()).open_failure(Failure(type="ValueError", sealed=sealed), place)


def test_what_a_codec_means_to_say_is_passed_on(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuses(*_: object) -> bool:
        raise PayloadUnreadable("no such key")

    monkeypatch.setattr(Failing, "fails", refuses)
    with pytest.raises(PayloadUnreadable, match="no such key"):
        Vault("default", codec=Failing()).open(Payload(data=b"x", encoding="base64"), Place("default", "r", FROM_RUN))
