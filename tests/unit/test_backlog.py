"""What the next batch takes: timers first, what woken runs ask for last, and each line has a part."""

from __future__ import annotations

from collections import Counter
from random import Random

from treadle.controlplane.backlog import Backlog
from treadle.controlplane.batches import Item
from treadle.controlplane.machine.requests import FireTimer, Registered
from treadle.protocol.ids import RunKey

EACH = 200


def put(backlog: Backlog, run_id: str, *, timer: bool = False) -> None:
    request = FireTimer("c") if timer else Registered("")
    backlog.put(RunKey("n", run_id), Item(request, lambda reply: None, 0))


def kinds(batch: dict[RunKey, list[Item]]) -> Counter[str]:
    return Counter(run.run_id[0] for run in batch)


def storm(backlog: Backlog) -> dict[RunKey, list[Item]]:
    """Let a batch of sleepers wake while more of them sleep; each asks for something at once."""
    for i in range(EACH):
        put(backlog, f"s{i}", timer=True)
    woken = backlog.take()
    assert kinds(woken) == {"s": 50}
    for run in woken:
        put(backlog, run.run_id)
    assert len(backlog) == EACH - 50, "they are in flight"
    backlog.release(woken)
    return woken


def test_what_woken_runs_ask_for_comes_last_but_has_a_part() -> None:
    backlog = Backlog()
    woken = storm(backlog)
    for i in range(EACH):
        put(backlog, f"o{i}")
    batch = backlog.take()
    assert len(woken.keys() & batch.keys()) == 4
    assert kinds(batch) == {"s": 38 + 4, "o": 8}


def test_without_others_woken_runs_have_no_more() -> None:
    backlog = Backlog()
    woken = storm(backlog)
    assert len(woken.keys() & backlog.take().keys()) == 4


def test_after_the_storm_who_woke_is_as_everybody() -> None:
    backlog = Backlog()
    woken = storm(backlog)
    done = 50
    while done < EACH + 50:
        batch = backlog.take()
        done += len(batch)
        backlog.release(batch)
    assert not len(backlog)
    assert not backlog.runs
    put(backlog, "o")
    for run in woken:
        put(backlog, run.run_id)
    assert kinds(backlog.take()) == {"o": 1, "s": 49}
    assert len(backlog.take()) == 1


def test_what_is_put_back_is_first_of_its_run() -> None:
    backlog = Backlog()
    put(backlog, "o")
    ((run, items),) = backlog.take().items()
    put(backlog, "o", timer=True)
    backlog.put_back(run, items)
    assert not len(backlog)
    backlog.release([run])
    again = backlog.take()[run]
    assert again[0] is items[0]
    assert len(again) == 2


def test_nothing_is_lost_whatever_the_order() -> None:
    """Storms begin and end while runs wait; one that stood in two lines was taken twice, the second time with nothing."""
    rng = Random(7)
    backlog, asked, given = Backlog(), 0, 0
    for _ in range(300):
        for _ in range(rng.choice((0, 20, 200))):
            put(backlog, f"r{rng.randrange(150)}", timer=rng.random() < 0.3)
            asked += 1
        batches = [backlog.take() for _ in range(rng.choice((1, 2, 8)))]
        for batch in batches:
            assert all(batch.values())
            given += sum(map(len, batch.values()))
            for run in list(batch)[:10]:
                put(backlog, run.run_id)
                asked += 1
        for batch in batches:
            backlog.release(batch)
    while len(backlog):
        batch = backlog.take()
        given += sum(map(len, batch.values()))
        backlog.release(batch)
    assert (given, backlog.runs) == (asked, 0)
