"""`changed`, `set_tags` and versions in workflow code: what is allowed, said once, and known beforehand."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from tests.replay.feeder import Feeder

from treadle.protocol.errors import ConfigError, FieldInvalid
from treadle.protocol.tags import TAGS_AT_MOST, code_name, split_name, tags_of
from treadle.v1 import history_pb2 as h
from treadle.v1.common_pb2 import Tag
from treadle.worker import changed, set_tags, step, workflow
from treadle.worker.app import Registry
from treadle.worker.loop.execution import WorkflowExecution
from treadle.worker.loop.port import RunContext


@step(pool="p")
async def work(x: int) -> int:
    return x


@workflow
async def twice() -> list[bool]:
    found = [changed("a"), changed("b"), changed("a")]
    await work(1)
    return [*found, changed("c")]


def test_a_mark_is_said_once_before_what_follows_from_it() -> None:
    run = Feeder(twice)
    commands = run.take().commands
    assert [c.command_id for c in commands] == ["changed/a#1", "changed/b#1", "0/work#1"]
    for command in commands[:2]:
        run.feed(change_marked=h.ChangeMarked(command_id=command.command_id, name=command.mark_change.name))
    run.record(commands[2])
    run.complete("0/work#1", 1)
    assert run.result() == [True, True, True, True]
    assert [c.mark_change.name for c in run.take().commands] == ["c"], "it is said although the code has ended"


def test_what_the_history_has_is_known_before_it_is_fed() -> None:
    context = RunContext("default", "r", 3, "twice", passed_until=1, marks=frozenset({"b"}))
    execution = WorkflowExecution(context, twice)
    execution.feed(h.HistoryEvent(position=1, run_started=h.RunStarted()))
    assert [c.command_id for c in execution.take().commands] == ["0/work#1"], (
        "the old way has no mark, the new one has its"
    )
    execution.feed(h.HistoryEvent(position=2, change_marked=h.ChangeMarked(command_id="changed/b#1", name="b")))
    assert execution.divergence is None
    execution.close()


@workflow
async def tagged() -> None:
    set_tags(customer=42, state="new")
    set_tags(state="new")
    set_tags({"customer": None, "tier": "gold"}, state="paid")
    await work(1)


def test_tags_that_are_new_are_said() -> None:
    context = RunContext("default", "r", 3, "tagged")
    execution = WorkflowExecution(context, tagged)
    tags = [Tag(key="tier", value="gold")]
    execution.feed(h.HistoryEvent(position=1, run_started=h.RunStarted(tags=tags)))
    said = [[(t.key, t.value) for t in c.set_tags.tags] for c in execution.take().commands if c.HasField("set_tags")]
    assert said == [[("customer", "42"), ("state", "new")], [("customer", ""), ("state", "paid")]]
    assert execution.marks.tags == {"tier": "gold", "state": "paid"}
    execution.close()


def failing(body: Any) -> str:
    @workflow
    async def fails() -> None:
        body()

    failure = Feeder(fails).failure()
    return f"{failure.type}: {failure.message}"


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (lambda: changed(""), "printable"),
        (lambda: changed("x" * 101), "100"),
        (lambda: [changed(f"c{n}") for n in range(101)], "100 marked changes"),
        (lambda: set_tags({"a=b": "x"}), "'a=b'"),
        (lambda: set_tags(k="v" * 201), "200"),
        (lambda: set_tags(k=1.5), "whole number"),  # type: ignore[arg-type]
        (lambda: set_tags(k=True), "whole number"),
        (lambda: set_tags({f"k{n}": "v" for n in range(TAGS_AT_MOST + 1)}), "21 tags"),
    ],
)
def test_what_is_not_allowed_is_refused_where_it_is_said(body: Any, words: str) -> None:
    said = failing(body)
    assert said.startswith("ConfigError") and words in said


def test_outside_a_workflow_it_is_refused_and_in_a_plain_call_it_is_the_new_way() -> None:
    for call in (lambda: changed("a"), lambda: set_tags(a="b")):
        with pytest.raises(ConfigError, match="@workflow"):
            call()

    @workflow
    async def plain() -> bool:
        set_tags(a="b")
        return changed("a")

    assert asyncio.run(plain()) is True


def test_two_versions_of_a_name_stand_beside_each_other() -> None:
    @workflow(name="bill", version="1")
    async def first() -> int:
        return 1

    @workflow(name="bill", version="2.0-rc1")
    async def second() -> int:
        return 2

    @workflow(name="bill")
    async def plain() -> int:
        return 0

    registry = Registry().add(first, second, plain)
    assert set(registry.workflows) == {"bill@1", "bill@2.0-rc1", "bill"}
    assert (second.name, second.version, second.code) == ("bill", "2.0-rc1", "bill@2.0-rc1")

    @workflow(name="bill", version="1")
    async def other() -> int:
        return 3

    with pytest.raises(ConfigError, match="bill@1"):
        registry.add(other)


@pytest.mark.parametrize("version", ["", "a b", "@", "-1", "x" * 65, 2])
def test_a_version_is_a_short_word(version: Any) -> None:
    async def body() -> None: ...

    with pytest.raises(ConfigError, match="version"):
        workflow(name="bill", version=version)(body)


def test_names_and_versions_part_again() -> None:
    assert [split_name(code_name("bill", version)) for version in ("", "2")] == [("bill", ""), ("bill", "2")]
    assert split_name("@2") == ("@2", "")


def test_tags_are_sorted_and_each_key_is_there_once() -> None:
    given: dict[str, str | int] = {"b": "1", "a": 2}
    assert [(tag.key, tag.value) for tag in tags_of(given)] == [("a", "2"), ("b", "1")]
    with pytest.raises(FieldInvalid, match="twice"):
        tags_of([Tag(key="a", value="1"), Tag(key="a", value="2")])
    with pytest.raises(FieldInvalid, match="whole number"):
        tags_of({"a": True})
