"""What a checker says about calls of the client: right ones pass, wrong ones are found."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]


@pytest.mark.timeout(300)
def test_wrong_calls_are_type_errors_and_right_ones_are_not() -> None:
    files = [HERE / "right_client.py", HERE / "wrong_client.py"]
    run = subprocess.run(
        [sys.executable, "-m", "mypy", "--no-error-summary", "--no-pretty", *map(str, files)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    found = {(name, int(line)) for name, line in re.findall(r"(\w+\.py):(\d+): error", run.stdout)}
    expected = {
        ("wrong_client.py", number)
        for number, line in enumerate(files[1].read_text().splitlines(), start=1)
        if line.endswith("# wrong")
    }
    assert found == expected, run.stdout + run.stderr
