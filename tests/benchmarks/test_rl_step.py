"""The benchmark beside TRL's own path at its quick size: it runs, and reports what was run."""

import json
from pathlib import Path

import pytest

from benchmarks.rl_step import main

pytestmark = [pytest.mark.slow, pytest.mark.integration, pytest.mark.timeout(400)]


def test_a_step_of_ours_is_measured_beside_trls_own(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--quick", "--json", "--start", str(tmp_path / "start")]) == 0
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    for side in (result["theirs"], result["ours"]):
        assert len(side["seconds_of_steps"]) == 1
        assert side["episodes_per_s"] == pytest.approx(16 / side["seconds"])
        assert 0 < side["tokens"] <= 384
    assert result["ratio"] == pytest.approx(result["theirs"]["seconds"] / result["ours"]["seconds"])


def test_rows_that_do_not_divide_a_step_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--groups", "3", "--rows", "64"])
    assert "must divide" in capsys.readouterr().err
