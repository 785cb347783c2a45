"""Ratios, targets and tables from records that are written here: no figure is measured."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from benchmarks.catalogue import CATALOGUE, Figure
from benchmarks.measure import Record
from benchmarks.peers import PEERS
from benchmarks.profiling import rooms
from benchmarks.ratios import best_peer, ratio, ratios_to_best_peer
from benchmarks.report import number, page, tables
from benchmarks.results import Results, newest, save
from benchmarks.targets import TARGETS, judged


def record(workload: str, who: str, rep: int = 0, *, others: float = 0.0, error: str = "", **metrics: float) -> Record:
    system, _, variant = who.partition(" ")
    cpu, peak = {"server": 0.5, "client": 0.25}, {"server": 80.0}
    return Record(
        system,
        variant,
        workload,
        rep,
        steps=1000,
        metrics=metrics,
        cpu_s=cpu,
        peak_mib=peak,
        others=others,
        error=error,
    )


def results(*records: Record) -> Results:
    return Results("2026-01-02", {"cores": "2"}, {"scale": "1"}, list(records))


def test_ratio_is_above_one_where_treadle_is_better() -> None:
    more, less = Figure("steps_per_s", "steps/s", "more"), Figure("wall_s", "s")
    assert ratio(200, 100, more) == 2
    assert ratio(100, 200, less) == 2
    assert ratio(100, 200, more) == 0.5


def test_what_cannot_be_measured_counts_as_the_floor() -> None:
    repeated = Figure("repeated", "attempts", floor=1.0)
    assert ratio(0, 0, repeated) == 1
    assert ratio(0, 21, repeated) == 21
    assert ratio(-0.2, 0.5, Figure("extra_s", "s", floor=0.01)) == 50


def test_best_peer_is_the_best_median_and_no_limit_of_a_part() -> None:
    found = results(
        record("W1b", "treadle services", steps_per_s=3000.0),
        *(
            record("W1b", "restate call-granian", rep, steps_per_s=value)
            for rep, value in enumerate((900.0, 1000.0, 5000.0))
        ),
        record("W1b", "taskiq quorum", steps_per_s=1500.0),
        record("W1b", "raw frames", steps_per_s=50_000.0),
        record("W2a", "treadle services", p50_ms=2.0, p99_ms=8.0),
        record("W2a", "treadle embedded", p50_ms=1.0, p99_ms=4.0),
        record("W2a", "restate run-granian", p50_ms=4.0, p99_ms=4.0),
    )
    assert best_peer(found, "W1b", CATALOGUE["W1b"].figures[0]) == ("taskiq quorum", 1500.0)
    assert ratios_to_best_peer(found) == {
        "W1b.steps_per_s": 2.0,
        "W2a.p50_ms": 2.0,
        "W2a.p50_ms.embedded": 4.0,
        "W2a.p99_ms": 0.5,
        "W2a.p99_ms.embedded": 1.0,
    }


def test_noisy_and_failed_runs_do_not_count_while_there_are_quiet_ones() -> None:
    found = results(
        record("W1a", "treadle services", 0, steps_per_s=100.0),
        record("W1a", "treadle services", 1, steps_per_s=10.0, others=0.9),
        record("W1a", "treadle services", 2, error="AssertionError: lost"),
        record("W1a", "restate run-granian", 0, steps_per_s=50.0, others=0.9),
    )
    ours = found.cell("W1a", "treadle", "services", "steps_per_s")
    theirs = found.cell("W1a", "restate", "run-granian", "steps_per_s")
    assert ours is not None and (ours.median, ours.runs, ours.noisy) == (100.0, 1, False)
    assert theirs is not None and (theirs.median, theirs.noisy) == (50.0, True)
    text = tables(found)
    assert "100 steps/s" in text
    assert "~50 steps/s" in text
    assert "AssertionError: lost" in text


def test_row_has_medians_ratio_cpu_and_memory() -> None:
    found = results(
        *(
            record("W1a", "treadle services", rep, steps_per_s=value)
            for rep, value in enumerate((1000.0, 3000.0, 2000.0))
        ),
        record("W1a", "restate run-granian", steps_per_s=1000.0),
    )
    rows = [line for line in tables(found).splitlines() if line.startswith("| W1a |")]
    cpu = "server 0.5, client 0.25 | server 500, client 250 | server 80"
    assert rows[0] == f"| W1a | treadle services | 2,000 (1,000–3,000) steps/s | 2.00 | {cpu} |"
    assert rows[1] == f"| W1a | restate run-granian | 1,000 steps/s | 2.00 | {cpu} |"


def test_targets_are_judged_when_both_sides_were_measured() -> None:
    found = results(
        record("W1a", "treadle services", steps_per_s=3000.0),
        record("W1a", "restate run-granian", steps_per_s=1000.0),
        record("W4", "treadle services", kib_durable=3.5),
    )
    lines = {line[0]: line[1:] for line in judged(found)}
    assert lines["W1a local steps/s, all started"] == (
        "≥ 2 × Restate run",
        "3",
        "yes",
        "≥ 4 × Restate run",
        "3",
        "**no**",
    )
    assert lines["W4 Redis + server, a sleeping run"][2] == "**no**"
    assert len(lines) == 2
    assert len({target.name for target in TARGETS}) == len(TARGETS)


@pytest.mark.parametrize(
    ("value", "text"), [(0, "0"), (0.01234, "0.0123"), (9.876, "9.88"), (12345.6, "12,346"), (-3, "-3")]
)
def test_numbers_have_three_digits(value: float, text: str) -> None:
    assert number(value) == text


def test_results_are_numbered_within_a_day_and_read_again(tmp_path: Path) -> None:
    found = results(record("W1a", "treadle services", steps_per_s=1.0))
    files = [save(found.to_json(ratios_to_best_peer={"W1a.steps_per_s": 2.0}), tmp_path) for _ in range(11)]
    assert [file.name for file in files[::5]] == ["2026-01-02-1.json", "2026-01-02-6.json", "2026-01-02-11.json"]
    assert newest(tmp_path) == files[-1]
    read = json.loads(files[-1].read_text())
    assert read["ratios_to_best_peer"] == {"W1a.steps_per_s": 2.0}
    assert Results.from_json(read) == found


def test_page_shows_the_newest_results() -> None:
    """`python -m benchmarks.report` writes it."""
    file = newest()
    assert file is not None
    shown = Path(__file__).resolve().parents[2] / "docs" / "benchmarks.md"
    assert shown.read_text() == page(Results.from_json(json.loads(file.read_text())), file.name)


def test_kept_results_have_their_ratios() -> None:
    file = newest()
    assert file is not None
    kept = json.loads(file.read_text())
    assert kept["ratios_to_best_peer"] == ratios_to_best_peer(Results.from_json(kept))


def test_every_peer_has_a_script_and_pinned_packages() -> None:
    scripts = Path(__file__).resolve().parents[2] / "benchmarks" / "peers"
    for peer in PEERS.values():
        assert (scripts / f"{peer.name}.py").is_file()
        pinned = [package for package in peer.packages if "==" in package]
        assert pinned, peer.name


def test_samples_belong_to_the_innermost_room_and_waiting_does_not_count() -> None:
    stacks = [
        "main (controlplane/__main__.py:3);run (asyncio/runners.py:118);Committer._batch (controlplane/committer.py:193) 2",
        "run (asyncio/runners.py:118);Committer._batch (controlplane/committer.py:193);encode_message (_message.abi3.so) 5",
        "Committer._batch (controlplane/committer.py:193);decide (controlplane/machine/decide.py:94);malloc (libc.so.6) 1",
        "0x7f26e953 (grpc/_cython/cygrpc.cpython-311-x86_64-linux-gnu.so);epoll_wait (libc.so.6) 90",
        "rest (worker/beats.py:90);PyThread_acquire_lock_timed (libpython3.11.so.1.0);0x1 (libc.so.6);0x2 (libc.so.6) 90",
        "main (somewhere.py:1) 2",
    ]
    assert rooms(stacks) == {"protobuf": 0.5, "committer, engine": 0.2, "else": 0.2, "decide": 0.1}


def test_profile_has_a_column_for_each_process_and_the_largest_room_first() -> None:
    server, worker = record("P-a-server", "treadle services"), record("P-a-worker", "treadle services")
    server.rooms, worker.rooms = {"decide": 20.0, "protobuf": 30.0}, {"protobuf": 10.0}
    table = tables(results(server, worker)).partition("## Where the CPU of a step goes\n\n")[2].splitlines()
    assert table == [
        "| µs a step | W1a-server | W1a-worker |",
        "| --- | --- | --- |",
        "| protobuf | 30 | 10 |",
        "| decide | 20 | 0 |",
        "| all | 50 | 10 |",
    ]
