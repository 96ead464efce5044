"""`worldsmith explain` on a run's directory made here: its table, its plot, its answers to wrong wishes."""

import json
from pathlib import Path

import pytest

from rl.attribution import keep_for_attribution
from rl.checkpoints import save_checkpoint
from tests.rl.test_recorded import make_model, played, with_moved_choices
from worldsmith.explain_command import main


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("run")
    (out / "run.json").write_text(json.dumps({"config": {"rollout": {"temperature": 1.0}}}))
    keep_for_attribution(out, played(make_model()), 0)
    save_checkpoint(
        out / "checkpoints" / "cold-start", step=9, model=make_model(), optimizers=[], state={"tokens": 1}
    )
    newer = with_moved_choices(make_model())
    save_checkpoint(out / "checkpoints", step=4, model=newer, optimizers=[], state={})
    return out


def test_the_causes_that_were_put_there_are_found_and_drawn(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(run), "--json"]) == 0
    *text, last = capsys.readouterr().out.splitlines()
    answer = json.loads(last)
    assert (answer["sampled"], answer["scored"]) == (0, 4)
    assert answer["numerics"] + sum(answer["parts"].values()) == pytest.approx(answer["total"], abs=1e-6)
    assert min(answer["parts"][cause] for cause in ("routing", "selection", "sampling mask")) > 0.01
    assert [line.split()[0] for line in text if "%" in line][:3] == ["numerics", "staleness", "routing"]
    plot = (run / "explain.svg").read_text()
    assert plot.startswith("<svg")
    assert all(cause in plot for cause in answer["parts"])


@pytest.mark.parametrize(
    ("arguments", "answer"),
    [(["--sampled", "3"], "kept episodes of 0"), (["--scored", "7"], "has checkpoints of 0, 4")],
)
def test_a_version_that_is_not_there_is_refused_with_those_that_are(
    run: Path, arguments: list[str], answer: str
) -> None:
    with pytest.raises(ValueError, match=answer):
        main([str(run), *arguments])


def test_a_run_that_kept_nothing_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="it has kept no episodes"):
        main([str(tmp_path)])
