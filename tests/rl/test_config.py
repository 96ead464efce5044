"""Configurations: each shipped one loads, and a wrong one is one line that names the field."""

from pathlib import Path

import pytest

from rl.config import PipelineConfig, TrainConfig, load_config

CONFIGS = sorted((Path(__file__).parents[2] / "configs").glob("*.yaml"))
DEMO = Path(__file__).parents[2] / "configs" / "demo.yaml"
PIPELINE = DEMO.with_name("pipeline.yaml")


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.name)
def test_every_shipped_config_loads(path: Path) -> None:
    assert isinstance(load_config(path), TrainConfig)


def test_an_override_changes_one_field() -> None:
    config = load_config(DEMO, ["rl.steps=3", "model.sizes.index_topk=16", "rl.reward_order=shuffled"])
    assert (config.rl.steps, config.model.sizes["index_topk"], config.rl.reward_order) == (3, 16, "shuffled")


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("rl.stepz=3", "no field rl.stepz; did you mean steps?"),
        ("modle.sizes=1", "no field modle; did you mean model?"),
        ("rl.group_size=1", "rl.group_size"),
        ("rl.learning_rate=fast", "rl.learning_rate"),
        ("rl.groups_trained=65", "groups_trained must be at most groups_per_step"),
        (
            "rl.rows_per_micro_batch=7",
            r"must divide groups_trained x group_size \(256\)",
        ),
        ("rl.learners=0", "rl.learners"),
        ("rl.learners=3", r"learners \(3\) must divide groups_trained \(32\)"),
        ("rl.learners=8", r"must divide groups_trained x group_size / learners \(32\)"),
        ("rl.sharding=full", "sharding: full needs learners"),
        ("rl.sharding=half", "rl.sharding"),
        ("rl.balance_step=-1", "rl.balance_step"),
        ("rl.reward_order=random", "rl.reward_order"),
        ("rl.loss.kl_estimator=k2", "rl.loss.kl_estimator"),
        ("rl.loss.clip_low=5", r"rl.loss: loss.clip_low must lie in \(0, 1\), got 5"),
        ("rl.loss.off_policy_delta=-3", "loss.off_policy_delta must be above 0 nats"),
        ("rl.learning_rate=.inf", "rl.learning_rate: Input should be a finite number"),
        ("rl.loss.clip_high=.nan", "rl.loss.clip_high: Input should be a finite number"),
        ("rollout.tool_latency.sigma=.inf", "rollout.tool_latency.sigma: Input should be a finite number"),
        ("model.sizes.hidden_size=.nan", "model.sizes.hidden_size"),
        ("rl.levels=[]", "rl.levels"),
        ("rl.steps=true", "rl.steps: a truth value is no number, got True"),
        ("rl.levels=[1, true]", "rl.levels: a truth value is no number"),
        ("rl.loss.off_policy_delta=true", "rl.loss.off_policy_delta: a truth value is no number"),
        ("corpus=true", "corpus: Input should be a valid string"),
        ("rl.loss={clip_low: 0.1, clip_low: 0.2}", "is not a YAML value"),
        ('start="a\\0b"', "start: text may not hold a NUL character"),
        ("rl.steps=" + 2000 * "[", "not a YAML value"),
        ("rollout.dtype=float16", "rollout.dtype"),
        ("seed", "expected a.b=value"),
        ("seed.x=1", "not inside a section"),
        ("seed=[", "not a YAML value"),
    ],
)
def test_a_wrong_field_is_one_line(override: str, message: str) -> None:
    with pytest.raises(ValueError, match=message.replace("?", r"\?")) as caught:
        load_config(DEMO, [override])
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: [", "line"),
        ("- 1", "mapping"),
        ("", "mapping"),
        (2000 * "[", "not readable as YAML"),
        ("seed: 1\nrl: {steps: 3}\nseed: 2", "line 3: not readable as YAML: seed stands twice"),
        ("rl: {steps: 3, steps: 4}", "line 1: .*steps stands twice"),
        ("!!python/object/apply:os.system ['true']", "not readable"),
    ],
)
def test_a_file_that_is_no_config_is_one_line(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text(text)
    with pytest.raises(ValueError, match=message) as caught:
        load_config(path)
    assert "\n" not in str(caught.value)


def test_a_key_may_stand_again_where_another_mapping_is_taken_over(tmp_path: Path) -> None:
    path = tmp_path / "merged.yaml"
    path.write_text("a: &a {k: 1}\nx: {inner: &b {<<: *a, k: 2}}\ny: {<<: *b, z: 3}\n")
    with pytest.raises(ValueError, match="corpus: Field required"):  # read, and then no config
        load_config(path)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"none\.yaml"):
        load_config(tmp_path / "none.yaml")


def test_a_section_makes_it_a_pipeline_with_the_demos_cold_start() -> None:
    config, demo = load_config(PIPELINE), load_config(DEMO)
    assert isinstance(config, PipelineConfig)
    assert not isinstance(demo, PipelineConfig)
    assert (config.model, config.cold_start, config.corpus) == (demo.model, demo.cold_start, demo.corpus)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("pipeline.specialist={steps: 3}", "no field pipeline.specialist; did you mean specialists?"),
        ("pipeline.distill.zzz=3", "no field pipeline.distill.zzz; there are samples"),
        ("pipeline.groups={../x: [trip]}", "names a folder"),
        ("pipeline.margin=1.5", "pipeline.margin"),
        ("rl.steps=0", "ends with mixed RL"),
        ("rl.until_share=0", "rl.until_share"),
        ("start=runs/demo/policy", "begins with a cold start"),
    ],
)
def test_a_wrong_field_of_a_pipeline_is_one_line(override: str, message: str) -> None:
    with pytest.raises(ValueError, match=message.replace("?", r"\?")) as caught:
        load_config(PIPELINE, [override])
    assert "\n" not in str(caught.value)
