"""Resolve everything that `[dev]` needs, from nothing, and write constraints.txt."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
HEADER = """\
# Exact versions of everything that `pip install -e .[dev]` brings in, resolved on Python {version}.
# Written by `make constraints`.
"""


def resolve() -> list[str]:
    """Return `name==version` of each distribution pip would install but treadle itself, sorted by name."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder, "report.json")
        pip = [sys.executable, "-m", "pip", "install", "--dry-run", "--ignore-installed", "--quiet"]
        subprocess.run([*pip, "--report", str(report), "--editable", ".[dev]"], cwd=ROOT, check=True)
        installs = json.loads(report.read_text())["install"]
    found = {item["metadata"]["name"]: item["metadata"]["version"] for item in installs}
    del found["treadle"]
    return [f"{name}=={found[name]}" for name in sorted(found, key=str.lower)]


def main() -> None:
    """Write the file; pip's own errors go to the terminal and end the program."""
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    lines = HEADER.format(version=version) + "\n".join(resolve()) + "\n"
    (ROOT / "constraints.txt").write_text(lines, encoding="utf-8")


if __name__ == "__main__":
    main()
