"""Types survive the decorators: right code is accepted, wrong arguments are type errors."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

FOLDER = Path(__file__).parent
ROOT = FOLDER.parents[1]


def checked(path: Path) -> tuple[int, str]:
    command = [sys.executable, "-m", "mypy", "--no-error-summary", "--hide-error-context", str(path.relative_to(ROOT))]
    done = subprocess.run(command, capture_output=True, text=True, timeout=110, cwd=ROOT)
    return done.returncode, done.stdout + done.stderr


def test_right_code_is_accepted() -> None:
    status, output = checked(FOLDER / "right.py")
    assert status == 0, output


def test_each_mistake_is_found_at_its_line() -> None:
    path = FOLDER / "wrong_arguments.py"
    _, output = checked(path)
    errors: dict[int, str] = {}
    for number, text in re.findall(r"wrong_arguments\.py:(\d+): error: (.*)", output):
        errors.setdefault(int(number), text)
    marked = {
        number: line.split("# error: ")[1]
        for number, line in enumerate(path.read_text().splitlines(), 1)
        if "# error: " in line
    }
    assert set(errors) == set(marked), output
    for line_number, expected in marked.items():
        assert expected in errors[line_number], (line_number, errors[line_number])
