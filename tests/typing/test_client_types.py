"""What a checker says about calls of the client and of the lab: right ones pass, wrong ones are found."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]


@pytest.mark.timeout(300)
@pytest.mark.parametrize("of", ["client", "lab"])
def test_wrong_calls_are_type_errors_and_right_ones_are_not(of: str) -> None:
    files = [HERE / f"right_{of}.py", HERE / f"wrong_{of}.py"]
    run = subprocess.run(
        [sys.executable, "-m", "mypy", "--no-error-summary", "--no-pretty", *map(str, files)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    found = {(name, int(line)) for name, line in re.findall(r"(\w+\.py):(\d+): error", run.stdout)}
    expected = {
        (f"wrong_{of}.py", number)
        for number, line in enumerate(files[1].read_text().splitlines(), start=1)
        if line.endswith("# wrong")
    }
    assert found == expected, run.stdout + run.stderr
