"""A run's record: what it is gone on with by, and what a kill may leave of its files."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from rl.config import PipelineConfig, TrainConfig, default_fields, load_config
from rl.measure import read_metrics
from rl.run import open_log
from rl.run_files import differences, locked, mend_metrics, publish_directory, trim_metrics, with_defaults
from tests.rl.small_run import make_config

CONFIGS = Path(__file__).parents[2] / "configs"


def leaves(fields: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in fields.items():
        if isinstance(value, dict):
            yield from leaves(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def without(fields: dict[str, Any], name: str) -> dict[str, Any]:
    first, _, rest = name.partition(".")
    inner = {first: without(fields[first], rest)} if rest else {}
    return {key: value for key, value in fields.items() if key != first} | inner


def age(out: Path, *names: str) -> None:
    """As a Worldsmith left it that did not have these fields yet."""
    record = json.loads((out / "run.json").read_text())
    for name in names:
        record["config"] = without(record["config"], name)
    (out / "run.json").write_text(json.dumps(record))


def record_of(out: Path) -> dict[str, Any]:
    """As it stands on the disk."""
    return json.loads((out / "run.json").read_text())


def test_the_record_says_what_goes_on_as_it_goes_on(tmp_path: Path) -> None:
    log = open_log(make_config(), tmp_path)
    assert (record_of(tmp_path)["finished"], record_of(tmp_path)["stage"]) == (None, "")
    with log.stage("rl", "on two cores"):
        begun = record_of(tmp_path)
        assert (begun["stage"], begun["stage_log"][-1]["seconds"]) == ("rl", None)
        assert begun["stage_log"][-1]["note"] == "on two cores"
    assert record_of(tmp_path)["stage_log"][-1]["seconds"] >= 0
    for _ in range(2):
        log.note("once is enough")
    assert record_of(tmp_path)["notes"] == ["once is enough"]
    log.finish()
    assert record_of(tmp_path)["finished"]


def test_a_stage_that_was_cut_off_has_no_seconds(tmp_path: Path) -> None:
    log = open_log(make_config(), tmp_path)
    with pytest.raises(OSError, match="full"), log.stage("rl"):
        raise OSError("the disk is full")
    assert [entry["seconds"] for entry in record_of(tmp_path)["stage_log"]] == [None]


def test_each_start_of_a_run_is_told_and_it_is_unfinished_again(tmp_path: Path) -> None:
    open_log(make_config(), tmp_path).finish()
    for count in (1, 2):
        open_log(make_config(), tmp_path)
        told = record_of(tmp_path)
        assert (len(told["resumed"]), told["finished"]) == (count, None)


def test_a_metric_is_on_the_disk_as_soon_as_it_is_told(tmp_path: Path) -> None:
    log = open_log(make_config(), tmp_path)
    for step in range(2):
        log.metric("rl", {"step": step, "note": "é"})
        assert (tmp_path / "metrics.jsonl").read_text(encoding="utf-8").count("\n") == step + 1
    assert read_metrics(tmp_path)[1] == {"kind": "rl", "step": 1, "note": "é"}


def test_what_a_kill_wrote_past_a_checkpoint_or_half_is_dropped(tmp_path: Path) -> None:
    lines = [
        {"kind": "rl", "step": 1},
        {"kind": "rl", "step": 2},
        {"kind": "rl", "step": 3},
        {"kind": "cold_start", "step": 9},
        {"kind": "rl"},
    ]
    whole = "".join(json.dumps(line) + "\n" for line in lines)
    (tmp_path / "metrics.jsonl").write_text(whole + '{"kind": "rl", "st')
    mend_metrics(tmp_path)
    assert (tmp_path / "metrics.jsonl").read_text() == whole
    trim_metrics(tmp_path, kind="rl", from_step=2)
    assert read_metrics(tmp_path) == [lines[0], lines[3], lines[4]]
    mend_metrics(tmp_path / "nothing there")


def test_a_directory_is_published_over_an_older_one(tmp_path: Path) -> None:
    for content in ("old", "new"):
        temporary = tmp_path / f".{content}"
        (temporary / "inner").mkdir(parents=True)
        (temporary / "inner" / content).write_text(content)
        publish_directory(temporary, tmp_path / "final")
        assert not temporary.exists()
    assert [path.name for path in (tmp_path / "final" / "inner").iterdir()] == ["new"]


def test_a_directory_is_one_runs_at_a_time(tmp_path: Path) -> None:
    with locked(tmp_path / "run"):
        with pytest.raises(ValueError, match="another run works there"), locked(tmp_path / "run"):
            pass
        with locked(tmp_path / "other"):
            pass
    with locked(tmp_path / "run"):
        pass


def test_a_field_that_there_was_not_when_the_run_began_counts_as_its_default(tmp_path: Path) -> None:
    config = make_config()
    open_log(config, tmp_path)
    age(tmp_path, "rl.balance_step", "rl.loss.clip_low", "rollout.tool_latency", "eval.every", "start")
    assert open_log(config, tmp_path).record["resumed"]
    other = make_config(rl={"balance_step": 0.001})
    with pytest.raises(ValueError, match=r"began with rl\.balance_step = 0\.0, the config now says 0\.001"):
        open_log(other, tmp_path)


def test_a_whole_section_that_there_was_not_yet_counts_as_its_default(tmp_path: Path) -> None:
    config = make_config().model_copy(update={"eval": TrainConfig.model_fields["eval"].default})
    open_log(config, tmp_path)
    age(tmp_path, "eval")
    open_log(config, tmp_path)
    with pytest.raises(ValueError, match=r"began with eval\.samples = 2, the config now says 1"):
        open_log(make_config(), tmp_path)


def test_a_field_without_a_default_or_one_that_is_no_more_is_a_difference(tmp_path: Path) -> None:
    config = make_config()
    open_log(config, tmp_path)
    age(tmp_path, "rl.learning_rate")
    with pytest.raises(ValueError, match=r"began with rl\.learning_rate = None, the config now says 0\.001"):
        open_log(config, tmp_path)
    open_log(config, tmp_path / "other")
    record = json.loads((tmp_path / "other" / "run.json").read_text())
    record["config"]["rl"]["momentum"] = 0.9
    (tmp_path / "other" / "run.json").write_text(json.dumps(record))
    with pytest.raises(ValueError, match=r"began with rl\.momentum = 0\.9, the config now says None"):
        open_log(config, tmp_path / "other")


def test_differences_are_told_by_the_whole_name_with_both_values() -> None:
    old = {"a": {"x": 1, "y": (1, 2)}, "b": {"x": 1}, "gone": 3}
    new = {"a": {"x": 2, "y": [1, 2]}, "b": {"x": 1}, "come": 4}
    assert differences(old, new) == [("a.x", 1, 2), ("come", None, 4), ("gone", 3, None)]
    assert with_defaults({"a": {"x": 1}}, {"a": {"x": 5, "y": 6}, "c": 7}) == {"a": {"x": 1, "y": 6}, "c": 7}


@pytest.mark.parametrize(("kind", "name"), [(TrainConfig, "demo"), (PipelineConfig, "pipeline")])
def test_the_defaults_are_what_a_config_has_that_leaves_them_out(kind: Any, name: str) -> None:
    config = load_config(CONFIGS / f"{name}.yaml")
    full = config.model_dump(mode="json")
    known = dict(leaves(default_fields(kind)))
    assert known["rl.loss.kl_estimator"] == "unbiased"
    assert known["rollout.tool_latency.longest_s"] == 600.0
    assert "rl.steps" not in known
    for path, value in known.items():
        left_out: Any = kind.model_validate(without(full, path)).model_dump(mode="json")
        for step in path.split("."):
            left_out = left_out[step]
        assert left_out == value, path
