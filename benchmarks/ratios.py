"""Treadle against the best peer of the same session, workload by workload; above 1 is better for Treadle."""

from __future__ import annotations

from typing import Final

from benchmarks.catalogue import CATALOGUE, MODES, Figure
from benchmarks.results import Results

__all__ = ("BOUNDS", "OURS", "best_peer", "ratio", "ratios_to_best_peer")

OURS: Final = "treadle"
BOUNDS: Final = frozenset({"raw", "composite"})
"""Limits of the parts: no peers, since they do none of the work of one."""


def ratio(ours: float, theirs: float, figure: Figure) -> float:
    """Return how many times better ours is."""
    mine, other = max(ours, figure.floor), max(theirs, figure.floor)
    return mine / other if figure.better == "more" else other / mine


def best_peer(results: Results, workload: str, figure: Figure) -> tuple[str, float] | None:
    """Return the peer ("system variant") with the best median of a figure, and that; None: no peer has it."""
    found = []
    for name, system, variant in results.series():
        if name == workload and system != OURS and system not in BOUNDS:
            cell = results.cell(name, system, variant, figure.name)
            if cell is not None:
                found.append((f"{system} {variant}", cell.median))
    if not found:
        return None
    return (max if figure.better == "more" else min)(found, key=lambda pair: pair[1])


def ratios_to_best_peer(results: Results) -> dict[str, float]:
    """Return "workload.figure" -> ratio, RabbitMQ and Redis against the best peer; "….queued" and "….embedded" for the
    other modes."""
    found = {}
    for workload in CATALOGUE.values():
        for figure in workload.figures:
            best = best_peer(results, workload.name, figure) if figure.compared else None
            for variant in MODES:
                cell = results.cell(workload.name, OURS, variant, figure.name)
                if best is not None and cell is not None:
                    name = f"{workload.name}.{figure.name}" + ("" if variant == "services" else f".{variant}")
                    found[name] = round(ratio(cell.median, best[1], figure), 3)
    return found
