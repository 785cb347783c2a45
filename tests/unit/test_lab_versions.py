"""What schedules and events start in the lab where workflows have versions, and conditions that are refused."""

from __future__ import annotations

import sys
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from treadle.protocol.errors import FieldInvalid
from treadle.testing import Lab
from treadle.worker import workflow
from treadle.worker.workflows import Workflow


@workflow(name="ship", version="2", on="shipped", cron="0 6 * * *")
async def second_ship() -> str:
    return "second"


@workflow(name="ship", version="1", on="shipped", cron="0 6 * * *")
async def first_ship() -> str:
    return "first"


def test_what_names_a_workflow_starts_the_version_that_came_last() -> None:
    with Lab(second_ship, first_ship) as lab:
        lab.schedule(first_ship)
        assert lab.send("shipped") == 1
        lab.advance("7h")
        assert [run.result() for run in lab.runs] == ["second", "second"]

    with Lab(first_ship) as lab:
        lab.schedule(first_ship)
        lab.advance("7h")
        assert lab.runs[0].result() == "second", "it stands in the same module, which one worker registers"


def _lone(number: str) -> Workflow[[], str]:
    async def lone() -> str:
        return number

    return workflow(name="lone", version=number, cron="0 6 * * *")(lone)


def test_a_version_that_is_deployed_takes_over_the_schedule() -> None:
    old, new = _lone("2"), _lone("1")
    with Lab(old) as lab:
        lab.schedule(old)
        lab.advance("1d")
        lab.restart(new)
        lab.advance("1d")
        assert [run.result() for run in lab.runs] == ["2", "1"]


def _wants(condition: str) -> Workflow[[], None]:
    async def wants() -> None: ...

    return workflow(on="order.*", when=condition)(wants)


def test_a_condition_that_is_none_is_refused_as_at_a_registration() -> None:
    with Lab(_wants("event.data >")) as lab, pytest.raises(FieldInvalid, match=r"wants.*line 1, column 13"):
        lab.send("order.created", 7)


def test_conditions_that_nobody_can_evaluate_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cel", None)
    with Lab(_wants("event.data > 41")) as lab, pytest.raises(FieldInvalid, match="evaluates no conditions"):
        lab.send("order.created", 7)


def test_what_the_lab_needs_for_conditions_comes_with_it() -> None:
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]
    assert any("cel" in Requirement(line).extras for line in project["optional-dependencies"]["testing"])
