"""The Python of the topic pages is a program each: it is executed, in order, and its `main` runs on a real control plane."""

from __future__ import annotations

import asyncio
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from treadle.client import Client
from treadle.client.encryption import new_key
from treadle.controlplane.embedded import embedded
from treadle.worker.app import collect
from treadle.worker.config import WorkerConfig
from treadle.worker.runtime import Worker
from treadle.worker.steps import Step
from treadle.worker.workflows import Workflow

DEADLINE_S = 30.0
DOCS = Path(__file__).resolve().parents[1] / "docs"
PAGES = {
    "steps": True,
    "signals": "charged 12",
    "continue-as-new": ("Ada has paid 5 months", 3),
    "schedules": ["orders", "3 days", "started", "started", "started"],
    "events": ["shipped 7", "order.created 7"],
    "fan-out": ["reserve", "release"],
    "redrive": ["charged chair", "shipped chair"],
    "failures": ("read-1", "StepError", {"page": "wrong"}),
    "payloads": "40000 contacts of Ada",
    "children": [
        "charged 1",
        "charged 2",
        "failed: StepError: step charge failed: Fatal: order -1 does not exist",
    ],
    "long-steps": [sum(range(1000)), "12: approved by Ada"],
    "versions": ["size 30", "weight 21", "weight 21", "shipped for 14"],
    "search": [["order-12", "order-14"], ["order-13"], False, 3],
    "time": ["room 2 reserved", "a badge by hand", "found near", "it ran longer than its timeout of 1 s"],
    "from-celery": ["Summer: small-a.png+small-slow.png"],
    "from-temporal": ["charge of 12 for order-42; order-42 is on its way", "charge of 12 for order-42"],
    "from-inngest": "welcomed account of ada@example.com",
    "from-step-functions": ["2 rows, approved by Ada", "Rejected: a row is empty"],
}
"""Page -> what its `main` returns."""

SETTINGS: dict[str, dict[str, Any]] = {"payloads": {"keys_file": "keys"}}
"""Page -> further settings of its worker."""


@contextmanager
def program(page: Path) -> Iterator[ModuleType]:
    """Yield the Python blocks of a page as one imported module; a failure names the page's line."""
    text = page.read_text(encoding="utf-8")
    module = ModuleType(f"docs_{page.stem}".replace("-", "_"))
    sys.modules[module.__name__] = module  # dataclasses and type hints look their module up
    try:
        for found in re.finditer(r"^```python\n(.*?)^```$", text, re.M | re.S):
            line = text.count("\n", 0, found.start(1))
            exec(compile("\n" * line + found[1], str(page), "exec", dont_inherit=True), module.__dict__)
        yield module
    finally:
        del sys.modules[module.__name__]


@pytest.mark.parametrize("name", PAGES)
def test_the_examples_of_a_page_run(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("keys").write_text(new_key("2026-11"))

    async def main(module: ModuleType) -> object:
        registry = collect([value for value in vars(module).values() if isinstance(value, Step | Workflow)])
        async with embedded(tmp_path, 0) as address:
            settings = SETTINGS.get(name, {})
            worker = Worker(WorkerConfig(app=name, server=address, pool="default", **settings), registry)
            working = asyncio.create_task(worker.run())
            try:
                async with Client(address) as client, asyncio.timeout(DEADLINE_S):
                    while not any(pool.workers for pool in await client.pools()):  # a start by name needs one
                        await asyncio.sleep(0.01)
                return await module.main(address)
            finally:
                worker.drain()
                await working

    with program(DOCS / f"{name}.md") as module:
        assert asyncio.run(main(module)) == PAGES[name]


def test_the_tests_of_the_testing_page_pass() -> None:
    with program(DOCS / "testing.md") as module:
        tests = [value for name, value in vars(module).items() if name.startswith("test_")]
        assert len(tests) == 5
        for test in tests:
            test()
