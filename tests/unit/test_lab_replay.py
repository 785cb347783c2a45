"""What a lab does when a test has passed: replays every run, and finds code that depends on what a replay does not have."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from itertools import count
from pathlib import Path
from types import ModuleType

import pytest

from treadle.protocol.errors import ConfigError, NotDeterministic
from treadle.testing import Lab, NeedsAttention
from treadle.worker import changed, continue_as_new, set_tags, step, workflow

CALLS = count()


@step
def a(number: int) -> int:
    return number


@step
def b(number: int) -> int:
    return number


@workflow
async def other_input() -> int:
    return await a(next(CALLS))


@workflow
async def other_step() -> int:
    first = await a(1)
    return first + await (a if next(CALLS) % 2 else b)(2)


@workflow
async def other_timer() -> None:
    await asyncio.sleep(10 + next(CALLS))


@workflow
async def other_result() -> int:
    await a(1)
    return next(CALLS)


@workflow
async def other_error() -> None:
    await a(1)
    raise ValueError(f"number {next(CALLS)}")


@workflow
async def other_child() -> int:
    await a(1)
    return await other_input() if next(CALLS) % 2 == 0 else await other_result()


@pytest.mark.parametrize(
    ("flow", "words"),
    [
        (other_input, "local try 1 '0/a#1', with another input before"),
        (other_step, r"after event \d the code asks for local try 1 '0/[ab]#[12]'|expected step 0/[ab]#[12]"),
        (other_timer, "start_timer '0/sleep#1', with another input before"),
        (other_result, "it ended with the result 0, and a replay ends otherwise"),
        (other_error, "it ended with ValueError: number 0, and a replay ends otherwise"),
    ],
)
def test_code_that_is_not_the_same_again_is_found(flow: object, words: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(globals(), "CALLS", count())
    lab = Lab(check_replay=False)
    try:
        run = lab.start(flow)  # type: ignore[call-overload]
        lab.advance("1d")
        assert run.closed
        with pytest.raises(NotDeterministic, match=words) as caught:
            lab.check_replay()
        assert f"run {run.id} (workflow {flow.name})" in str(caught.value)  # type: ignore[attr-defined]
    finally:
        lab.close()


def test_the_end_of_the_block_checks_unless_the_test_has_failed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(globals(), "CALLS", count())
    with pytest.raises(NotDeterministic), Lab() as lab:
        lab.start(other_result)
    with Lab(check_replay=False) as lab:
        lab.start(other_result)
    with pytest.raises(KeyError), Lab() as lab:
        lab.start(other_result)
        raise KeyError


@workflow
async def long(steps: int) -> int:
    total = 0
    for number in range(steps):
        total += await a(number)
        await asyncio.sleep(3600)
    return total


def test_long_histories_are_sampled() -> None:
    with Lab() as lab:
        assert lab.start(long, 150).result() == sum(range(150))


@workflow(name="sale")
async def old_sale(days: int) -> int:
    first = await a(1)
    await asyncio.sleep(86400 * days)
    return first + await a(2)


@workflow(name="sale")
async def new_sale(days: int) -> int:
    first = await a(1)
    await asyncio.sleep(86400 * days)
    return first + await b(20)


@workflow(name="sale")
async def other_sale(days: int) -> int:
    first = await b(1)
    await asyncio.sleep(86400 * days)
    return first + await b(2)


def test_workers_that_are_replaced_replay_what_is_open() -> None:
    with Lab() as lab:
        lab.replace(a, returns=5, takes="1h")
        waiting, working = lab.start(old_sale, 2), lab.start(old_sale, 2)
        lab.advance("90m")
        lab.replace(a, returns=7, takes="1h")
        later = lab.start(old_sale, 2)
        lab.restart()
        assert [run.result() for run in (waiting, working, later)] == [12, 12, 14]
        assert [call.attempt for call in later.calls] == [1, 1, 1], "a drain uses up no attempt of a local step"
        assert later.steps == ["a", "a"]


def test_new_code_goes_on_where_the_old_one_was() -> None:
    with Lab() as lab:
        run, closed = lab.start(old_sale, 2), lab.start(old_sale, 0)
        assert closed.result() == 3
        lab.restart(new_sale)
        assert run.result() == 21
        assert lab.start(new_sale, 0).result() == 21


def test_new_code_that_does_not_fit_needs_attention() -> None:
    with Lab() as lab:
        run = lab.start(old_sale, 2)
        lab.restart(other_sale)
        for _ in range(2):
            with pytest.raises(NeedsAttention, match=r"the code diverged from the history: expected step 0/a#1"):
                run.result()
        assert run.status == "needs_attention"
        run.terminate("wrong deploy")
        assert run.closed


def test_old_code_is_checked_before_it_is_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(globals(), "CALLS", count())
    with Lab(check_replay=False) as lab:
        lab.start(other_result)
        lab.restart(new_sale)
    with pytest.raises(NotDeterministic), Lab() as lab:
        lab.start(other_result)
        lab.restart(new_sale)


@workflow
async def parts(left: int) -> None:
    await a(next(CALLS) if left == 2 else 0)
    if left:
        continue_as_new(left - 1)


def test_each_part_of_a_run_that_goes_on_as_new_is_replayed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(globals(), "CALLS", count())
    with pytest.raises(NotDeterministic, match="local try 1 '0/a#1', with another input"), Lab() as lab:
        lab.start(parts, 3).result()


def test_names_are_found_where_the_code_names_them() -> None:
    away = ModuleType("away")
    exec(
        "from treadle.worker import step\n@step(pool='away')\ndef far(x: int) -> int: return x + 1\n",
        away.__dict__,
    )

    hidden = {"far": away.far}

    @step(pool="near")
    def near(x: int) -> int:
        return x * 2

    async def helper(x: int) -> int:
        return await near(x)

    @workflow
    async def by_name(x: int) -> int:
        return await helper(x) + int(await away.far(x))

    @workflow
    async def by_key(x: int) -> int:
        return int(await hidden["far"](x))

    with Lab() as lab:
        assert lab.start(by_name, 3).result() == 10
    with Lab() as lab, pytest.raises(ConfigError, match="run by_key-1 needs step 'far' of pool 'away', which the lab"):
        lab.start(by_key, 3)
    with Lab(away) as lab:
        assert lab.start(by_key, 3).result() == 4


def test_the_fixture_is_named_in_a_conftest(tmp_path: Path) -> None:
    (tmp_path / "conftest.py").write_text('pytest_plugins = ["treadle.testing.plugin"]\n')
    (tmp_path / "test_it.py").write_text(Path(__file__).with_name("lab_tests.txt").read_text())
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-p",
        "no:cacheprovider",
        "-rN",  # the summary tells messages in full again where CI is set
        "--rootdir",
        str(tmp_path),
        str(tmp_path),
    ]
    ran = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert "1 failed, 2 passed, 1 error" in ran.stdout, ran.stdout
    assert ran.stdout.count("is not the same when it is replayed") == 1, "a test that failed is not told twice"


# --- code that changes in marked places, and versions ------------------------------------------------------------------
@workflow(name="sale")
async def marked_sale(days: int) -> int:
    first = await (b(10) if changed("bigger") else a(1))
    await asyncio.sleep(86400 * days)
    return first + await (b(20) if changed("dearer") else a(2))


def test_a_marked_change_takes_the_old_way_where_the_run_has_passed_it() -> None:
    with Lab() as lab:
        run = lab.start(old_sale, 2)
        lab.restart(marked_sale)
        assert run.result() == 1 + 20
        assert lab.start(marked_sale, 2).result() == 10 + 20


@workflow(name="bill", version="1")
async def first_bill(days: int) -> int:
    await asyncio.sleep(86400 * days)
    return await a(1)


@workflow(name="bill", version="2")
async def second_bill(days: int) -> int:
    set_tags(version="second")
    await asyncio.sleep(86400 * days)
    return await b(2)


def test_versions_of_a_workflow_run_side_by_side() -> None:
    with Lab() as lab:
        first, second = lab.start(first_bill, 2), lab.start(second_bill, 2)
        lab.restart()
        assert (first.result(), second.result()) == (1, 2)
        assert (first.tags, second.tags) == ({}, {"version": "second"})
