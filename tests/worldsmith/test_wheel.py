"""The wheel, built and unpacked elsewhere, is complete without the checkout."""

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent.parent
PACKAGES = ("envs", "synthesis", "policies", "rl", "worldsmith")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    source = tmp_path_factory.mktemp("source")
    for name in PACKAGES:
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    out = tmp_path_factory.mktemp("wheel")
    # The build backend by itself: pip would do the same after looking for an index.
    build = f"from setuptools import build_meta; print(build_meta.build_wheel({str(out)!r}))"
    subprocess.run([sys.executable, "-c", build], cwd=source, capture_output=True, check=True)
    return next(out.glob("*.whl"))


def test_the_wheel_holds_the_packages_and_no_tests(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    assert {name.split("/")[0] for name in names if ".dist-info" not in name} == set(PACKAGES)
    assert {f"{package}/py.typed" for package in PACKAGES} <= set(names)
    assert "worldsmith/templates/report.html" in names
    modules = {path.relative_to(ROOT).as_posix() for name in PACKAGES for path in (ROOT / name).rglob("*.py")}
    assert modules <= set(names)


def test_the_unpacked_wheel_imports_from_an_empty_folder(wheel: Path, tmp_path: Path) -> None:
    unpacked = tmp_path / "site"
    zipfile.ZipFile(wheel).extractall(unpacked)
    (tmp_path / "empty").mkdir()
    probe = f"import sys; sys.path.insert(0, {str(unpacked)!r})\n"
    probe += "".join(
        f"import {name}; assert {name}.__file__.startswith({str(unpacked)!r})\n" for name in PACKAGES
    )
    probe += "from worldsmith.report import templates; templates().get_template('report.html')"
    subprocess.run([sys.executable, "-c", probe], cwd=tmp_path / "empty", check=True)
