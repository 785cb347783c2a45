"""The results of a session: records, summed up by median, as JSON; and the newest ones that were kept."""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.measure import NOISY, Record

__all__ = ("RESULTS", "Cell", "Results", "newest", "save")

RESULTS = Path(__file__).with_name("results")


@dataclass(frozen=True, slots=True)
class Cell:
    """One figure of one series.

    Attributes:
        median, least, most: Of its runs.
        runs: How many they are.
        noisy: True: others used the machine in most of them.
    """

    median: float
    least: float
    most: float
    runs: int
    noisy: bool

    @classmethod
    def of(cls, values: list[float], *, noisy: bool) -> Cell:
        return cls(statistics.median(values), min(values), max(values), len(values), noisy)


@dataclass(slots=True)
class Results:
    """What a session gave.

    Attributes:
        date: Of its start, "2026-11-22".
        machine, settings: What a reader must know.
        records: In order.
    """

    date: str
    machine: dict[str, str]
    settings: dict[str, str]
    records: list[Record] = field(default_factory=list)

    def series(self) -> dict[tuple[str, str, str], list[Record]]:
        """Return (workload, system, variant) -> the runs that count: those without errors, and the quiet ones if there are
        any."""
        found: dict[tuple[str, str, str], list[Record]] = {}
        for record in self.records:
            if not record.error:
                found.setdefault((record.workload, record.system, record.variant), []).append(record)
        return {key: [one for one in runs if one.others <= NOISY] or runs for key, runs in found.items()}

    def cell(self, workload: str, system: str, variant: str, metric: str) -> Cell | None:
        """Return a figure; None: it was not measured."""
        runs = self.series().get((workload, system, variant), [])
        values = [record.metrics[metric] for record in runs if metric in record.metrics]
        return Cell.of(values, noisy=all(record.others > NOISY for record in runs)) if values else None

    def errors(self) -> list[Record]:
        return [record for record in self.records if record.error]

    def to_json(self, **more: Any) -> dict[str, Any]:
        """Return everything, with further keys in front of the records."""
        head = {"date": self.date, "machine": self.machine, "settings": self.settings}
        return {**head, **more, "records": [record.to_json() for record in self.records]}

    @classmethod
    def from_json(cls, found: Mapping[str, Any]) -> Results:
        records = [Record.from_json(record) for record in found["records"]]
        return cls(found["date"], dict(found["machine"]), dict(found["settings"]), records)


def newest(folder: Path = RESULTS) -> Path | None:
    """Return the newest file of results; None: there is none."""
    found = sorted(folder.glob("*.json"), key=_age)
    return found[-1] if found else None


def next_name(date: str, names: Iterable[str]) -> str:
    """Return the name of the next file of that date: "2026-11-22-3.json"."""
    taken = [_number(name) for name in names if name.startswith(f"{date}-")]
    return f"{date}-{max(taken, default=0) + 1}.json"


def save(found: Mapping[str, Any], folder: Path = RESULTS) -> Path:
    """Write results behind the ones that are there; returns the file."""
    folder.mkdir(exist_ok=True)
    path = folder / next_name(found["date"], [file.name for file in folder.glob("*.json")])
    records = [json.dumps(record) for record in found["records"]]
    head = json.dumps({key: value for key, value in found.items() if key != "records"}, indent=1)
    path.write_text(f'{head[:-2]},\n "records": [\n  ' + ",\n  ".join(records) + "\n ]\n}\n")
    return path


def _number(name: str) -> int:
    text = name.removesuffix(".json").rpartition("-")[2]
    return int(text) if text.isdecimal() else 0


def _age(file: Path) -> tuple[str, int]:
    return file.name.removesuffix(".json").rpartition("-")[0], _number(file.name)
