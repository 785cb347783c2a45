"""The wheel: one import name, everything generated in it, nothing else."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path, PurePosixPath

import pytest

ROOT = Path(__file__).resolve().parents[1]
COMPONENTS = ("proto", "client", "worker", "controlplane")


@pytest.fixture(scope="module")
def members(tmp_path_factory: pytest.TempPathFactory) -> set[str]:
    """Return the names in a wheel built from this checkout, without its metadata."""
    out = tmp_path_factory.mktemp("wheel")
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(out)]
    run = subprocess.run(build, cwd=ROOT, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stdout + run.stderr
    (wheel,) = out.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        return {name for name in archive.namelist() if ".dist-info/" not in name}


def test_only_the_shared_name_lands_in_site_packages(members: set[str]) -> None:
    assert {PurePosixPath(name).parts[0] for name in members} == {"treadle"}
    assert "treadle/__init__.py" not in members


def test_every_file_of_the_packages_is_in(members: set[str]) -> None:
    """Generated code, scripts for Redis and type markers as well: ignore files must not drop them."""
    files = [
        str(path.relative_to(ROOT / component))
        for component in COMPONENTS
        for path in (ROOT / component / "treadle").rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    ]
    assert "treadle/v1/history_pb2.py" in files
    assert set(files) == members
