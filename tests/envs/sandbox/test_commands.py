"""The commands that show boxes to people: sandbox, doctor."""

import json

import pytest

from envs.sandbox import namespaces
from envs.sandbox.probes import ATTACKS
from worldsmith import doctor, sandbox_command

pytestmark = pytest.mark.skipif(
    namespaces.why_unavailable() is not None, reason="this kernel refuses namespaces"
)


def test_sandbox_runs_a_command_and_tells_a_program_what_came_back(
    capsys: pytest.CaptureFixture[str],
) -> None:
    code = sandbox_command.main(
        ["--tier", "namespaces", "--json", "--", "sh", "-c", "echo out; echo err >&2; exit 3"]
    )
    captured = capsys.readouterr()
    assert code == 0
    assert json.loads(captured.out.splitlines()[-1]) == {
        "exit_code": 3,
        "stdout": "out\n",
        "stderr": "err\n",
        "tier": "namespaces",
        "cause": "tool_failed",
    }
    assert "boxes: tier namespaces" in captured.err


@pytest.mark.parametrize(
    "argv",
    [
        [],
        ["--tier", "podman", "--", "true"],
        ["--timeout", "0", "--", "true"],
        ["--memory-mb", "1", "--", "true"],
    ],
)
def test_sandbox_refuses_bad_usage_with_2(argv: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert sandbox_command.main(argv) == 2
    error = capsys.readouterr().err
    assert error.startswith("worldsmith sandbox: ")
    assert error.count("\n") == 1


def test_sandbox_tells_of_a_tier_that_is_not_there_with_3(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DOCKER_HOST", "unix:///nonexistent/docker.sock")
    assert sandbox_command.main(["--tier", "docker", "--json", "--", "true"]) == 3
    captured = capsys.readouterr()
    shown = json.loads(captured.out)
    assert (shown["exit_code"], shown["tier"], shown["cause"]) == (None, "docker", "start_failed")
    assert "worldsmith sandbox: tier docker: no Docker engine answers" in captured.err
    assert "Traceback" not in captured.err


def test_doctor_reports_every_tier_in_one_line_of_json(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DOCKER_HOST", "unix:///nonexistent/docker.sock")
    quick = {name: ATTACKS[name] for name in ("no_network", "bytes_exact")}  # test_probes.py tries them all
    monkeypatch.setattr("envs.sandbox.probes.ATTACKS", quick)
    monkeypatch.setattr("worldsmith.doctor.ATTACKS", quick)
    assert doctor.main(["--json"]) == 0
    report = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert report["tiers"]["namespaces"]["available"] is True
    assert all(report["tiers"]["namespaces"]["held"].values())
    assert report["tiers"]["process"]["held"]["no_network"] is False
    assert report["tiers"]["docker"]["available"] is False
    assert any("docker.sh" in line for line in report["advice"])
