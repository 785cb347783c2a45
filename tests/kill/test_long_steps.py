"""Long steps whose workers and servers are killed: where they go on, and how they are finished from outside."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.kill.house import House
from tests.kill.process import until
from treadle.client import StepSettled, SyncClient, Unavailable

pytestmark = [pytest.mark.kill, pytest.mark.redis, pytest.mark.rabbitmq]

RUNS = 4
COUNT = 30


def counted(house: House, run: str) -> int:
    """How far the step of a run is, as clients see it."""
    said = house.client.run(run).get().progress
    return int(said[0].value(int)) if said else 0


def test_the_next_attempt_goes_on_where_the_one_before_was_seen_to_be(house: House) -> None:
    house.worker("flows")
    for _ in range(2):
        house.worker("steps")
    house.ready()
    runs = [f"r{n}" for n in range(RUNS)]
    for run in runs:
        house.start(run, "loading", n=COUNT, gate="g")
    begun = house.until_starts(RUNS, step="load")
    until("all have said how far they are", lambda: all(counted(house, run) == COUNT for run in runs))
    victim = house.worker_of(begun[0])
    lost = {entry.run for entry in begun if entry.pid == victim.pid}
    victim.kill()
    house.until_starts(RUNS + len(lost), step="load")
    assert all(counted(house, run) == COUNT for run in runs), "nothing was said since"
    house.open("g")
    house.check({run: COUNT if run in lost else 0 for run in runs})
    assert not any(house.client.run(run).get().progress for run in runs)


def test_a_server_that_dies_is_told_again(house: House) -> None:
    """Silence counts from when the servers are back, and the last word reaches them then."""
    server = house.servers[0]
    house.worker("flows")
    worker = house.worker("steps")
    house.ready()
    house.start("r", "loading", n=COUNT, gate="g")
    house.until_starts(1, step="load")
    server.kill()
    server.restart()
    until("it is told", lambda: counted(house, "r") == COUNT)
    worker.kill()
    worker.start()
    house.until_starts(1, step="load", attempt=2)
    house.open("g")
    house.check({"r": COUNT})


def token(house: House, run: str, attempt: int = 1) -> str:
    """What the step of a run handed out."""
    path = house.gates / f"token-{run}-{attempt}"
    until(f"the token of {run}", path.exists)
    return path.read_text()


def deferred(house: House, run: str) -> bool:
    """Whether the step of a run is held by nobody, and waits."""
    return "step_deferred" in house.kinds(run)


def finish(client: SyncClient, token: str, value: int, request_id: str) -> bool:
    """Finish a step, asking until there is an answer; False: somebody else has."""
    while True:
        try:
            client.complete_step(token, value, request_id=request_id)
            return True
        except StepSettled:
            return False
        except Unavailable:
            continue


def test_a_step_is_finished_once_whoever_dies_in_between(house: House) -> None:
    server = house.servers[0]
    workers = [house.worker("flows"), house.worker("steps")]
    house.ready()
    runs = [f"r{n}" for n in range(RUNS)]
    for n, run in enumerate(runs):
        house.start(run, "deciding", n=n, gate="")
    tokens = {run: token(house, run) for run in runs}
    until("all are deferred", lambda: all(deferred(house, run) for run in runs))
    for worker in workers:
        worker.kill()
    server.kill()
    calls = [(run, person) for run in runs for person in ("Ada", "Bob", "Ada")]
    with ThreadPoolExecutor(len(calls)) as pool:
        asked = [pool.submit(finish, house.client, tokens[run], 5 * int(run[1:]), person) for run, person in calls]
        server.restart()
        done = [(call, future.result(60)) for call, future in zip(calls, asked, strict=True)]
    for run in runs:
        winners = {person for (of, person), won in done if of == run and won}
        answers = [won for (of, person), won in done if of == run and person in winners]
        assert len(winners) == 1 and all(answers), "the same call has the same answer"
    for worker in workers:
        worker.start()
    house.check({run: 5 * n for n, run in enumerate(runs)})
    assert all(len(house.starts(run)) == 1 for run in runs)


def test_a_token_that_was_handed_out_before_its_worker_died_is_good(house: House) -> None:
    house.worker("flows")
    for _ in range(2):
        house.worker("steps")
    house.ready()
    house.start("r", "deciding", n=1, gate="never")
    (begun,) = house.until_starts(1, step="decide")
    first = token(house, "r")
    house.worker_of(begun).kill()
    house.until_starts(1, step="decide", attempt=2)
    assert token(house, "r", attempt=2) == first, "all attempts of a try hand out the same one"
    assert finish(house.client, first, 8, "Ada"), "it waits until the second attempt cannot begin any more"
    house.check({"r": 8})
    with pytest.raises(StepSettled):
        house.client.fail_step(first, "too late")
    assert "step_deferred" not in house.kinds("r")


@pytest.mark.parametrize("lane", ["session"])
def test_a_worker_that_hangs_is_found_silent(house: House) -> None:
    """Its loop is blocked: it beats and cannot report. The servers end the attempt 5 s after the heartbeat is missing."""
    house.worker("flows")
    for _ in range(2):
        house.worker("steps")
    house.ready()
    house.start("r", "stalling", n=3, seconds=20)
    house.check({"r": 9})
    first, second = house.starts("r")
    assert first.pid != second.pid and 6.0 <= second.boot - first.boot < 15.0
    (missed,) = [event.attempt_failed for event in house.history("r") if event.HasField("attempt_failed")]
    assert missed.failure.type == "HeartbeatMissed" and "its worker did not report" in missed.failure.message
