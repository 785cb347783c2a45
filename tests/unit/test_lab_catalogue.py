"""The workflows of the simulation and of the replay tests, in a lab: they end there as they end elsewhere."""

from __future__ import annotations

import json
from functools import partial
from typing import Any

import pytest
from tests.replay.catalogue import CATALOGUE, REGISTRY, approve
from tests.replay.catalogue import LETTERS as CATALOGUE_LETTERS
from tests.simulation.workflows import EVERYTHING, LETTERS, MENDED, REDRIVEN, STEPS, WORKFLOWS

from treadle.controlplane.machine.requests import SignalRun
from treadle.protocol.errors import RunError, RunFailed
from treadle.testing import Lab, Run, Stuck
from treadle.v1.common_pb2 import Payload
from treadle.worker.app import collect

TRIED_AGAIN = {"failures": ["ConnectionError/3/k", "Fatal/1/never again", "ValueError/5/broken 3"]}
"""The server of the replay tests tries a pool step once."""


KNOWN = frozenset(
    (
        *("chain", "fan", "naps", "race", "impatient", "once", "local_once", "tidy", "group", "collected", "waiting"),
        *(
            "signalled",
            "queued",
            "failing_group",
            "told",
            "asked",
            "families",
            "chapters",
            "decided",
            "loads",
            "once_more",
        ),
    )
)
"""Those of the simulation that need no more than what is sent to them here."""


def send(lab: Lab, run: Run[Any], after_ms: int, name: str, data: bytes, asks: bool) -> None:
    """A question is only sent here: who asks would wait for its answer."""
    request = SignalRun(f"{name}-{after_ms}-{data!r}", name, Payload(data=data), asks)
    lab.later(after_ms / 1000, partial(lab._house.request, run._key, request))


@pytest.mark.parametrize("name", WORKFLOWS)
def test_of_the_simulation(name: str) -> None:
    workflow, result = WORKFLOWS[name]
    MENDED.clear()
    with Lab(collect(EVERYTHING)) as lab:
        for step in lab._house.registry.steps.values():
            if step.name in STEPS:
                lab.replace(step, calls=STEPS[step.name], takes="20ms")
        for number in (1, 4):
            run = lab.start(workflow, number)
            for order, (letter, value, asks) in enumerate(LETTERS.get(name, ())):
                send(lab, run, 100 * (order + 1), letter, b"%d" % value, asks)
            if name in REDRIVEN:
                with pytest.raises(RunFailed):
                    run.result()
                MENDED.add(number)
                run.retry()
            try:
                assert run.result() == result(number)
            except Stuck as error:
                if name in KNOWN:
                    raise
                pytest.skip(f"it waits for what only the simulation brings: {error}")


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize(("workflow", "args", "expected"), [pytest.param(*one, id=one[0].name) for one in CATALOGUE])
def test_of_the_replay_tests(workflow: Any, args: tuple[Any, ...], expected: Any, seed: int) -> None:
    with Lab(REGISTRY, seed=seed) as lab:
        lab.replace(approve, returns="approved", takes="0.3s")  # the replay tests finish it from outside
        run = lab.start(workflow, *args)
        for letter in CATALOGUE_LETTERS.get(workflow.name, ()):
            send(lab, run, *letter)
        try:
            result = run.result()
        except RunFailed as error:
            assert error.failure is not None
            assert error.failure.type == expected
        except Stuck:
            assert workflow.name == "goes_on", "that one has as many parts as it is sent signals, and one more"
        else:
            expected = TRIED_AGAIN.get(workflow.name, expected)
            assert expected is None or json.loads(json.dumps(result)) == expected


@pytest.mark.parametrize("after_ms", [0, 40, 300])
@pytest.mark.parametrize(("workflow", "args", "_"), [pytest.param(*one, id=one[0].name) for one in CATALOGUE])
def test_of_the_replay_tests_cancelled(workflow: Any, args: tuple[Any, ...], _: Any, after_ms: int) -> None:
    with Lab(REGISTRY) as lab:
        for step in REGISTRY.steps.values():
            lab.replace(step, calls=step.function, takes="50ms")
        run = lab.start(workflow, *args)
        for letter in CATALOGUE_LETTERS.get(workflow.name, ()):
            send(lab, run, *letter)
        lab.advance(after_ms / 1000)
        if not run.closed:
            run.cancel("enough")
            lab.restart()
        try:
            run.result()
        except RunError:
            pass
        assert run.closed
