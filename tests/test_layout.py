"""The four component folders share one import name; these tests keep it that way."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
COMPONENTS = {
    "proto": {"v1", "protocol"},
    "client": {"client", "cli"},
    "worker": {"worker", "testing"},
    "controlplane": {"controlplane"},
}
PACKAGES = [(component, package) for component, packages in COMPONENTS.items() for package in sorted(packages)]


@pytest.mark.parametrize("component", COMPONENTS)
def test_treadle_stays_a_namespace(component: str) -> None:
    """A `treadle/__init__.py` in one folder hides the others at run time; mypy does not notice."""
    assert not (ROOT / component / "treadle" / "__init__.py").exists()


@pytest.mark.parametrize("component", COMPONENTS)
def test_component_root_holds_no_other_python(component: str) -> None:
    """Component roots are on sys.path: anything else there would be a top-level module."""
    stray = {path.name for path in (ROOT / component).iterdir() if path.suffix == ".py" or path.is_dir()}
    assert stray - {"__pycache__"} == {"treadle"}


@pytest.mark.parametrize("component", COMPONENTS)
def test_component_holds_its_packages_only(component: str) -> None:
    found = {path.name for path in (ROOT / component / "treadle").iterdir()}
    assert found - {"__pycache__"} == COMPONENTS[component]


@pytest.mark.parametrize(("component", "package"), PACKAGES)
def test_package_is_regular_and_typed(component: str, package: str) -> None:
    folder = ROOT / component / "treadle" / package
    assert (folder / "__init__.py").is_file()
    assert (folder / "py.typed").is_file()
    bare = [sub for sub in folder.rglob("*") if sub.is_dir() and sub.name != "__pycache__" and list(sub.glob("*.py"))]
    assert all((sub / "__init__.py").is_file() for sub in bare)


@pytest.mark.parametrize(
    ("package", "forbidden"),
    [
        (
            "treadle.client",
            {"redis", "aio_pika", "treadle.worker", "treadle.controlplane", "rich", "cyclopts"},
        ),
        ("treadle.worker", {"redis", "treadle.controlplane", "treadle.cli"}),
        ("treadle.protocol", {"grpc", "redis", "aio_pika", "asyncio"}),
        ("treadle.testing", {"redis", "aio_pika", "grpc", "pytest", "treadle.cli"}),
        ("treadle.cli", {"redis", "aio_pika", "treadle.worker", "treadle.controlplane"}),
    ],
)
def test_import_pulls_in_nothing_forbidden(package: str, forbidden: set[str]) -> None:
    """Import in a fresh interpreter and look at what came along."""
    code = f"import {package}, sys; print(*sys.modules)"
    out = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert not forbidden & set(out.stdout.split())


@pytest.mark.parametrize("name", COMPONENTS)
def test_generic_names_are_not_installed(name: str) -> None:
    spec = importlib.util.find_spec(name)
    assert spec is None or spec.origin is None  # the bare folder, if the checkout is on sys.path
