"""An outcome that is said beside the checkpoint it follows from, before that stands in the history (R5)."""

from __future__ import annotations

from typing import Any

import pytest
from tests.unit.machine_rig import Owner, Rig, local, value

from treadle.v1.common_pb2 import Failure
from treadle.v1.history_pb2 import HistoryEvent
from treadle.v1.state_pb2 import RUN_OUTCOME_CANCELLED, RUN_OUTCOME_COMPLETED, RUN_OUTCOME_FAILED, RUN_STATE_OPEN
from treadle.v1.worker_service_pb2 import (
    ANSWER_LEASE_LOST,
    ANSWER_NEWS,
    ANSWER_OK,
    ANSWER_SETTLED,
    REPORT_KIND_FAILED,
    OwnerRequest,
)


def opened() -> tuple[Rig, Owner]:
    rig = Rig()
    rig.start()
    return rig, rig.open().catch_up()


def ahead(rig: Rig, owner: Owner, **more: Any) -> OwnerRequest:
    fields: dict[str, Any] = {"checkpoints": [rig.checkpoint(result=value("r"), ended_ms=77)], "ahead": True, **more}
    if not {"fail", "cancelled", "park"} & set(more):
        fields["complete"] = {"result": value("end")}
    return owner.request(**fields)


def kinds(rig: Rig) -> list[str]:
    return [event.WhichOneof("kind") or "" for event in rig.history()]


@pytest.mark.parametrize(
    ("word", "kind", "outcome"),
    [
        ({}, "run_completed", RUN_OUTCOME_COMPLETED),
        ({"fail": {"failure": Failure(type="Boom")}}, "run_failed", RUN_OUTCOME_FAILED),
        ({"cancelled": {}}, "run_cancelled", RUN_OUTCOME_CANCELLED),
    ],
)
def test_checkpoint_and_outcome_are_one_commit(word: dict[str, Any], kind: str, outcome: int) -> None:
    rig, owner = opened()
    assert owner.send(ahead(rig, owner, **word)).answer == ANSWER_OK
    *_, completed, end = rig.history()
    assert (completed.WhichOneof("kind"), end.WhichOneof("kind")) == ("step_completed", kind)
    assert completed.revision == end.revision and completed.step_completed.ended_ms == 77
    assert rig.head.outcome == outcome


def test_the_same_request_again_finds_the_run_closed() -> None:
    rig, owner = opened()
    ask = ahead(rig, owner)
    owner.send(ask)
    before = rig.history()
    assert owner.send(ask).answer == ANSWER_SETTLED and rig.history() == before


def test_without_the_mark_the_checkpoint_is_news_to_the_outcome() -> None:
    rig, owner = opened()
    reply = owner.send(ahead(rig, owner, ahead=False))
    assert reply.answer == ANSWER_NEWS and kinds(rig)[-1] == "step_completed"


def test_what_came_in_between_keeps_the_run_open_and_the_result_recorded() -> None:
    rig, owner = opened()
    ask = ahead(rig, owner)
    rig.cancel_run()
    reply = owner.send(ask)
    assert reply.answer == ANSWER_NEWS and rig.head.state == RUN_STATE_OPEN
    assert [event.WhichOneof("kind") for event in reply.events] == ["cancel_requested", "step_completed"]
    assert owner.send(ask).answer == ANSWER_NEWS and kinds(rig).count("step_completed") == 1


def _with_a_command(rig: Rig, owner: Owner) -> OwnerRequest:
    ask = ahead(rig, owner)
    ask.commands.append(local("0/m#1"))
    return ask


def _with_two_checkpoints(rig: Rig, owner: Owner) -> OwnerRequest:
    ask = ahead(rig, owner)
    ask.checkpoints.append(rig.checkpoint("0/m#1", result=value("m")))
    return ask


def _after_a_failure(rig: Rig, owner: Owner) -> OwnerRequest:
    return ahead(rig, owner, checkpoints=[rig.checkpoint(kind=REPORT_KIND_FAILED, failure=Failure(type="Boom"))])


def _that_parks(rig: Rig, owner: Owner) -> OwnerRequest:
    return ahead(rig, owner, park={"cached": True})


@pytest.mark.parametrize("ask", [_with_a_command, _with_two_checkpoints, _after_a_failure, _that_parks])
def test_only_an_outcome_that_follows_from_one_result_is_taken(ask: Any) -> None:
    rig, owner = opened()
    assert owner.send(ask(rig, owner)).answer == ANSWER_NEWS and rig.head.state == RUN_STATE_OPEN


def test_a_result_that_stands_already_is_not_one_that_came_along() -> None:
    rig, owner = opened()
    owner.send(owner.request(checkpoints=[rig.checkpoint(result=value("r"))]))
    late: list[HistoryEvent] = rig.history()
    assert owner.send(ahead(rig, owner)).answer == ANSWER_NEWS and rig.history() == late


def test_an_owner_that_was_replaced_ends_nothing() -> None:
    rig, owner = opened()
    ask = ahead(rig, owner)
    rig.kill("")
    assert owner.send(ask).answer == ANSWER_LEASE_LOST and "run_completed" not in kinds(rig)
