"""The judgement of a peer: inspect-ai's own checks of sandboxes, in its own environment, on our boxes."""

import os
import shutil
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest

from envs.sandbox import docker_engine, namespaces

HERE = Path(__file__).resolve().parent
NUM_CHECKS = 44
NEEDS_ROOT_IN_THE_BOX = "test_exec_as_user"
"""It makes a user as root. That a box has no root is a guarantee, so this is the one expected failure."""
KINDS = [
    pytest.param("namespaces:unshare"),
    pytest.param("namespaces:bubblewrap"),
    pytest.param("docker", marks=pytest.mark.docker),
]


@pytest.mark.slow
@pytest.mark.integration
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("kind", KINDS)
def test_our_boxes_pass_the_checks_that_inspect_ai_has_for_its_own(kind: str, tmp_path: Path) -> None:
    skip_where_there_is_no_box(kind)
    outcomes, said = run_checks(kind, tmp_path / "results.xml")
    failed = {name for name, outcome in outcomes.items() if outcome != "passed"}
    assert failed == {NEEDS_ROOT_IN_THE_BOX}, said[-6000:]
    assert outcomes[NEEDS_ROOT_IN_THE_BOX] == "pytest.xfail", said[-6000:]
    assert len(outcomes) == NUM_CHECKS


def skip_where_there_is_no_box(kind: str) -> None:
    if kind == "namespaces:bubblewrap" and shutil.which("bwrap") is None:
        pytest.skip("bubblewrap is not installed")
    fault = docker_engine.why_unavailable() if kind == "docker" else namespaces.why_unavailable()
    if fault is not None:
        pytest.skip(f"{kind}: {fault}")


def run_checks(kind: str, results: Path) -> tuple[dict[str, str], str]:
    """Check -> `passed`, or the kind of its failure as pytest writes it; and what the peer's pytest said."""
    made = subprocess.run(
        [sys.executable, HERE / "peers.py", "inspect-ai"], capture_output=True, text=True, check=False
    )
    assert made.returncode == 0, made.stderr
    argv = [made.stdout.strip(), "-m", "pytest", HERE / "inspect_checks.py", f"--junitxml={results}"]
    argv += ["-c", os.devnull, f"--rootdir={HERE}", "-p", "no:cacheprovider", "-q", "-rxX"]
    variables = {
        "PYTHONPATH": f"{HERE.parent.parent}:{HERE}",
        "BOX_KIND": kind,
        "PYTHONDONTWRITEBYTECODE": "1",
    }
    kept = {
        name: os.environ[name] for name in ("PATH", "HOME", "DOCKER_HOST", "TMPDIR") if name in os.environ
    }
    done = subprocess.run(argv, env=kept | variables, capture_output=True, text=True, check=False)
    said = done.stdout + done.stderr
    assert results.exists(), said[-6000:]
    outcomes = {}
    for case in ElementTree.parse(results).iter("testcase"):
        fault = next((child for child in case if child.tag in ("failure", "error", "skipped")), None)
        outcomes[case.get("name", "")] = "passed" if fault is None else fault.get("type", fault.tag)
    return outcomes, said
