"""The tables of a session as Markdown, and the page that shows the newest one.

python -m benchmarks.report          # writes docs/benchmarks.md from the newest results
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from statistics import median

from benchmarks.catalogue import CATALOGUE, Figure, Workload
from benchmarks.measure import Record
from benchmarks.ratios import BOUNDS, OURS, best_peer, ratio
from benchmarks.results import Cell, Results, newest
from benchmarks.targets import judged

__all__ = ("PAGE", "page", "tables")

PAGE = Path(__file__).resolve().parents[1] / "docs" / "benchmarks.md"
_INTRODUCTION = Path(__file__).with_name("introduction.md")


def number(value: float) -> str:
    """Return three significant digits, thousands with a comma."""
    if value == 0:
        return "0"
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def _cell(cell: Cell) -> str:
    mark = "~" if cell.noisy else ""
    if cell.least == cell.most:
        return mark + number(cell.median)
    return f"{mark}{number(cell.median)} ({number(cell.least)}–{number(cell.most)})"


def _figures(results: Results, workload: Workload, system: str, variant: str) -> str:
    shown = []
    for figure in workload.figures:
        cell = results.cell(workload.name, system, variant, figure.name)
        if cell is not None:
            shown.append(f"{figure.label} {_cell(cell)} {figure.unit}".strip())
    return "; ".join(shown)


def _ratio(results: Results, workload: Workload, system: str, variant: str) -> str:
    """Treadle's rows: against the best peer. A peer's: Treadle's services against it."""
    shown = []
    for figure in workload.figures:
        found = _one_ratio(results, workload, figure, system, variant) if figure.compared else None
        if found is not None:
            shown.append(f"{figure.label} {found:.2f}".strip())
    return "; ".join(shown) or "–"


def _one_ratio(results: Results, workload: Workload, figure: Figure, system: str, variant: str) -> float | None:
    here = results.cell(workload.name, system, variant, figure.name)
    if here is None or system in BOUNDS:
        return None
    if system == OURS:
        best = best_peer(results, workload.name, figure)
        return None if best is None else ratio(here.median, best[1], figure)
    ours = results.cell(workload.name, OURS, "services", figure.name)
    return None if ours is None else ratio(ours.median, here.median, figure)


def _by_group(records: Sequence[Record], name: str, divide: bool = False) -> str:
    shown = []
    for group in dict.fromkeys(group for record in records for group in getattr(record, name)):
        values = [getattr(record, name).get(group, 0.0) for record in records]
        value = median(values) / records[0].steps * 1e6 if divide else median(values)
        if value >= (0.5 if divide else 0.005):
            shown.append(f"{group} {number(round(value, 2))}")
    return ", ".join(shown) or "–"


def _row(results: Results, workload: Workload, system: str, variant: str, records: Sequence[Record]) -> list[str]:
    return [
        workload.name,
        f"{system} {variant}",
        _figures(results, workload, system, variant),
        _ratio(results, workload, system, variant),
        _by_group(records, "cpu_s"),
        _by_group(records, "cpu_s", divide=True) if records[0].steps else "–",
        _by_group(records, "peak_mib"),
    ]


def _markdown(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = ["| " + " | ".join(head) + " |", "|" + " --- |" * len(head)]
    return "\n".join([*lines, *("| " + " | ".join(row) + " |" for row in rows)])


def tables(results: Results) -> str:
    """Return the targets, if any can be judged, and the one table of all series."""
    parts = []
    met = judged(results)
    if met:
        head = ("target", "must", "measured", "met", "aim", "measured", "met")
        parts += ["## Targets\n", _markdown(head, met), ""]
    rows = []
    series = results.series()
    order = {name: place for place, name in enumerate(CATALOGUE)}
    known = [key for key in series if key[0] in CATALOGUE]
    for name, system, variant in sorted(known, key=lambda key: (order[key[0]], key[1] != OURS, key[1] in BOUNDS)):
        rows.append(_row(results, CATALOGUE[name], system, variant, series[name, system, variant]))
    head = ("workload", "system", "median (min–max)", "ratio", "CPU s", "CPU µs a step", "peak MiB (PSS)")
    parts += ["## Results\n", _markdown(head, rows)]
    shown = {key[0] for key in known}
    titles = [(name, workload.title) for name, workload in CATALOGUE.items() if name in shown]
    parts += ["\n## Workloads\n", _markdown(("workload", "what"), titles)]
    sampled = [record for record in results.records if record.rooms]
    if sampled:
        parts += ["\n## Where the CPU of a step goes\n", _profile(sampled)]
    if results.errors():
        failed = [
            (one.workload, f"{one.system} {one.variant}", one.error.replace("|", "/")) for one in results.errors()
        ]
        parts += ["\n## Failed\n", _markdown(("workload", "system", "why"), failed)]
    return "\n".join(parts)


def _profile(sampled: Sequence[Record]) -> str:
    """µs of CPU a step by room, a column for each process; the largest rooms first."""
    every = dict.fromkeys(room for record in sampled for room in record.rooms)
    ordered = sorted(every, key=lambda room: -sum(record.rooms.get(room, 0.0) for record in sampled))
    rows = [[room, *(number(record.rooms.get(room, 0.0)) for record in sampled)] for room in ordered]
    rows.append(["all", *(number(sum(record.rooms.values())) for record in sampled)])
    return _markdown(("µs a step", *(f"W1{record.workload.removeprefix('P-')}" for record in sampled)), rows)


def page(results: Results, name: str) -> str:
    """Return the page of docs/ for results that are kept under this name."""
    facts = [(key, value) for part in (results.machine, results.settings) for key, value in part.items()]
    facts += [("date", results.date), ("results", f"[{name}](../benchmarks/results/{name})")]
    introduction = _INTRODUCTION.read_text().strip()
    return f"{introduction}\n\n## Machine and settings\n\n{_markdown(('', ''), facts)}\n\n{tables(results)}\n"


def main() -> None:
    """Write the page from the newest results."""
    file = newest()
    if file is None:
        sys.exit("there are no results: run `make bench` first")
    PAGE.write_text(page(Results.from_json(json.loads(file.read_text())), file.name))
    print(f"{PAGE} shows {file.name}")


if __name__ == "__main__":
    main()
