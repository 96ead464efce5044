"""A run's record: what it is gone on with by, and what a kill may leave of its files."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from rl.config import PipelineConfig, TrainConfig, default_fields, load_config
from rl.run import open_log
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
