"""The benchmark of asynchronous training at its quick size: it runs, and reports what was run."""

import json
from pathlib import Path

import pytest

from benchmarks.async_rl import main

pytestmark = [pytest.mark.slow, pytest.mark.integration, pytest.mark.timeout(400)]


def test_asynchronous_training_is_measured_beside_its_prediction(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--quick", "--json", "--start", str(tmp_path / "start")]) == 0
    turns, beside, wide = json.loads(capsys.readouterr().out.splitlines()[-1])["results"]
    assert [one["max_staleness"] for one in (turns, beside, wide)] == [0, 1, 0]
    assert turns["ratio"] == 1.0
    assert turns["staleness_max"] == 0
    assert beside["staleness_max"] <= 1
    assert (turns["groups_per_step"], wide["groups_per_step"]) == (1, 2)
    for one in (turns, beside, wide):
        assert one["tokens"][0] > 0
        assert one["tokens_per_s"] > 0
        assert 0 < one["bubble_share"] < 1
        assert one["prediction_error"] == pytest.approx(
            one["predicted_tokens_per_s"] / one["tokens_per_s"] - 1
        )


@pytest.mark.parametrize(
    ("arguments", "says"), [(["--steps", "1"], "at least 2"), (["--staleness", "0"], "at least 1")]
)
def test_settings_that_cannot_be_are_refused(
    arguments: list[str], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        main(arguments)
    assert says in capsys.readouterr().err
