"""A pipeline in miniature: what each stage begins with, what it leaves, and going on after a stop."""

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import rl.pipeline
import rl.reinforce
import rl.train
from policies.model.checkpoint import load_model
from rl.config import PipelineConfig
from rl.measure import read_metrics
from rl.pipeline import cold_start_source, groups_of, narrowed, plan_stages
from rl.pipeline_figures import heldout_rewards
from rl.run import Data
from rl.statistics import paired_difference
from rl.train import train
from tests.rl.small_pipeline import STAGES, go, pipeline_config, pipeline_data
from tests.rl.small_run import make_config
from tests.rl.test_resume import figures as metrics_of


class StopHereError(Exception):
    """Stands in for a kill: nothing after it runs."""


@pytest.fixture(scope="module")
def data() -> Data:
    return pipeline_data()


@pytest.fixture(scope="module")
def whole(data: Data, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pipeline that nothing disturbed."""
    out = tmp_path_factory.mktemp("whole") / "run"
    go(pipeline_config(), data, out)
    return out


def weights(policy: Path) -> dict[str, torch.Tensor]:
    return load_model(policy).state_dict()


def same_weights(one: Path, other: Path) -> bool:
    ours, theirs = weights(one), weights(other)
    return all(torch.equal(ours[name], theirs[name]) for name in ours)


def lines(out: Path, kind: str) -> list[dict[str, Any]]:
    return [record for record in read_metrics(out) if record["kind"] == kind]


def test_each_stage_begins_with_the_policy_that_it_should(whole: Path) -> None:
    starts = {name: json.loads((whole / name / "run.json").read_text())["config"]["start"] for name in STAGES}
    cold = str(whole / "cold-start" / "policy")
    assert starts == {
        "cold-start": None,
        "specialist-orders": cold,
        "specialist-trip": cold,
        "distilled": cold,
        "mixed": str(whole / "distilled" / "policy"),
    }
    assert not same_weights(whole / "distilled" / "policy", Path(cold))  # it learnt; RL here has no signal
    for name in STAGES[1:]:
        tokenizer = (whole / name / "policy" / "tokenizer.json").read_bytes()
        assert tokenizer == (whole / "cold-start" / "policy" / "tokenizer.json").read_bytes()


def test_specialists_see_their_own_domains_and_the_others_all(whole: Path) -> None:
    tried = {
        name: set(json.loads((whole / name / "run.json").read_text())["counts"].items()) for name in STAGES
    }
    assert ("heldout_tasks", 6) in tried["specialist-orders"]
    assert ("heldout_tasks", 3) in tried["specialist-trip"]
    assert all(("heldout_tasks", 9) in tried[name] for name in ("cold-start", "distilled", "mixed"))
    played = {"specialist-orders": {"retail"}, "specialist-trip": {"trip"}}
    for name, domains in played.items():
        assert set(lines(whole / name, "eval")[-1]["by_domain"]) == domains


def test_the_distilled_policy_learns_what_passed_and_only_that(whole: Path) -> None:
    counted = {record["specialist"]: record for record in lines(whole / "distilled", "distill")}
    assert set(counted) == {"specialist-orders", "specialist-trip"}
    for record, tasks in ((counted["specialist-orders"], 8), (counted["specialist-trip"], 6)):
        # the gold passes, the agent that does nothing does not
        assert (record["sampled"], record["kept"], record["failed"]) == (2 * tasks, tasks, tasks)
    steps = lines(whole / "distilled", "cold_start")
    assert [record["step"] for record in steps] == [0, 1, 2]
    assert {record["phase"] for record in steps} == {"mixed, lightning attention"}
    note = " ".join(json.loads((whole / "distilled" / "run.json").read_text())["notes"])
    assert "14 episodes that specialists played" in note


def test_the_figures_are_those_of_the_stages(whole: Path) -> None:
    found = lines(whole, "figures")[-1]
    assert set(found["groups"]) == {"orders", "trip"}
    for name, domain in (("orders", "retail"), ("trip", "trip")):
        group = found["groups"][name]
        ours = heldout_rewards(whole / "mixed", "after", [domain])
        theirs = heldout_rewards(whole / f"specialist-{name}", "after", [domain])
        difference, interval = paired_difference(ours, theirs)
        assert (group["difference"], group["interval"]) == (difference, list(interval))
        assert group["kept"] == (difference >= -0.05)
        for kind, stage, when in (
            ("cold start", "cold-start", "before"),
            ("specialist", f"specialist-{name}", "after"),
            ("distilled", "distilled", "before"),
            ("mixed", "mixed", "after"),
        ):
            told = [r for r in lines(whole / stage, "eval") if r["when"] == when and r["policy"] == "policy"]
            assert group[kind]["pass_rate"] == told[0]["by_domain"][domain]["pass_rate"]


def test_the_ledger_of_compute_is_the_sum_of_the_stages(whole: Path) -> None:
    found = lines(whole, "figures")[-1]
    by_stage = found["compute_by_stage"]
    assert set(by_stage) == set(STAGES)
    active = json.loads((whole / "mixed" / "run.json").read_text())["counts"]["active_parameters"]
    tokens = lines(whole / "cold-start", "cold_start")[-1]["tokens"]
    assert found["compute"]["pretraining_flops"] == by_stage["cold-start"]["pretraining_flops"]
    assert found["compute"]["pretraining_flops"] == 6 * active * tokens
    rl_stages = ("specialist-orders", "specialist-trip", "mixed")
    assert all(by_stage[name]["rl_flops"] > 0 for name in rl_stages)
    assert found["compute"]["rl_flops"] == sum(by_stage[name]["rl_flops"] for name in rl_stages)
    learnt = lines(whole / "distilled", "cold_start")[-1]["tokens"]
    sampled = sum(record["tokens"] for record in lines(whole / "distilled", "distill"))
    assert found["compute"]["distillation_flops"] == active * (6 * learnt + 2 * sampled)
    # the mixed stage's own record counts the specialists in
    record = lines(whole / "mixed", "compute")[-1]
    assert record["rl_flops"] == found["compute"]["rl_flops"]
    assert record["share"] == pytest.approx(found["compute"]["rl_share"])


def test_a_finished_pipeline_runs_nothing_again(
    whole: Path, data: Data, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = {path: path.read_bytes() for path in whole.glob("*/metrics.jsonl")}
    assert len(before) == len(STAGES)
    monkeypatch.setattr(rl.pipeline, "run_stage", lambda *args: pytest.fail("a stage ran again"))
    go(pipeline_config(), data, whole)
    assert {path: path.read_bytes() for path in before} == before
    with pytest.raises(ValueError, match=r"pipeline\.specialists\.steps = 2"):
        go(pipeline_config(pipeline=PIPELINE | {"specialists": {"steps": 3}}), data, whole)


PIPELINE: dict[str, Any] = pipeline_config().model_dump(mode="json")["pipeline"]


def stop_at(monkeypatch: pytest.MonkeyPatch, module: Any, name: str, when: Any) -> None:
    """Lets the function do its work, and then nothing more once `when` says so of its arguments."""
    original = getattr(module, name)

    def stopping(*args: Any, **named: Any) -> Any:
        result = original(*args, **named)
        if when(*args, **named):
            raise StopHereError
        return result

    monkeypatch.setattr(module, name, stopping)


def stops(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """One place after the other, in the order of the stages."""

    def of_mixed(run: Any, step: int, *rest: Any, **named: Any) -> bool:
        return run.out.name == "mixed" and step == 1

    places = [
        (rl.train, "save_checkpoint", lambda directory, *, step, **rest: step == 3),
        (rl.train, "record_compute", lambda run, model: run.out.name == "cold-start"),
        (rl.reinforce, "record_step", lambda run, step, *rest, **named: step == 1),
        (rl.pipeline, "play_all", lambda run, workers, name, **rest: name == "specialist-orders"),
        (rl.train, "save_checkpoint", lambda directory, **rest: "distilled" in str(directory)),
        (rl.reinforce, "record_step", of_mixed),
        (rl.train, "record_compute", lambda run, model: run.out.name == "mixed"),
    ]
    for place in places:
        with monkeypatch.context() as patch:
            stop_at(patch, *place)
            yield


def test_stopped_between_and_inside_its_stages_it_comes_to_the_same_to_the_bit(
    whole: Path, data: Data, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "run"
    count = 0
    for _ in stops(monkeypatch):
        with pytest.raises(StopHereError):
            go(pipeline_config(), data, out)
        count += 1
    assert count == 7
    go(pipeline_config(), data, out)
    for name in STAGES:
        assert metrics_of(str(out / name)) == metrics_of(str(whole / name)), name
        assert same_weights(out / name / "policy", whole / name / "policy"), name
    assert lines(out, "figures") == lines(whole, "figures")


def test_rl_ends_at_its_share_and_counts_what_the_specialists_had(
    whole: Path, data: Data, tmp_path: Path
) -> None:
    """From the undisturbed pipeline's own figures: a share that the third mixed step reaches."""
    found = lines(whole, "figures")[-1]
    first, second = (record["compute_share"] for record in lines(whole / "mixed", "rl"))
    base = pipeline_config()
    rl_section = base.rl.model_dump(mode="json") | {"steps": 9, "until_share": (first + second) / 2}
    out = tmp_path / "run"
    go(pipeline_config(rl=rl_section), data, out)
    steps = lines(out / "mixed", "rl")
    assert [record["compute_share"] for record in steps] == [first, second]  # the second is the first beyond
    assert second == pytest.approx(found["compute"]["rl_share"])
    record = json.loads((out / "mixed" / "run.json").read_text())
    assert any("RL ended after 2 steps, as its share was reached" in note for note in record["notes"])
    assert [r["step"] for r in lines(out / "mixed", "eval") if r["when"] == "after"] == [2]
    assert same_weights(out / "mixed" / "policy", whole / "mixed" / "policy")


def test_a_cold_start_is_taken_over_as_it_was(whole: Path, data: Data, tmp_path: Path) -> None:
    source = tmp_path / "source"
    config = pipeline_config()
    cold = plan_stages(config, data, tmp_path / "unused")[0]
    train(cold.config, narrowed(data, cold.domains), source)
    begun = json.loads((source / "run.json").read_text())
    del begun["config"]["cold_start"]["indexer_learning_rate"]  # as before there was such a field
    (source / "run.json").write_text(json.dumps(begun))
    taking = pipeline_config(pipeline=PIPELINE | {"cold_start_from": str(source)})
    checkpoint = cold_start_source(taking)
    assert checkpoint is not None
    stage = plan_stages(taking, data, tmp_path / "run")[0]
    rl.pipeline.take_over(checkpoint, stage)
    train(stage.config, narrowed(data, stage.domains), stage.out)
    assert same_weights(stage.policy, whole / "cold-start" / "policy")
    assert metrics_of(str(stage.out)) == metrics_of(str(whole / "cold-start"))

    other = pipeline_config(
        pipeline=PIPELINE | {"cold_start_from": str(source)}, model={"sizes": {"index_topk": 9}}
    )
    with pytest.raises(ValueError, match=r"had model\.sizes\.hidden_size = 32, this config has None"):
        cold_start_source(other)
    unmade = pipeline_config(pipeline=PIPELINE | {"cold_start_from": str(tmp_path / "absent")})
    with pytest.raises(ValueError, match=r"absent is no run; make it first"):
        cold_start_source(unmade)
    (source / "checkpoints" / "cold-start" / "step-8").rename(tmp_path / "gone")
    with pytest.raises(ValueError, match="not come to its end"):
        cold_start_source(taking)


@pytest.mark.parametrize(
    ("groups", "message"),
    [
        ({"a": ["retail"], "b": ["retail", "trip"]}, "'retail' is in two groups"),
        ({"a": ["retail"]}, "domain 'trip' of unused is in no group"),
        ({"a": ["retail", "trips"], "b": ["trip"]}, "no task of domain 'trips' at the trained levels"),
        ({"a": ["retail", "trip"], "b": []}, r"pipeline\.groups\.b has no domain"),
    ],
)
def test_groups_that_do_not_fit_the_corpus_are_refused(data: Data, groups: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        groups_of(pipeline_config(pipeline=PIPELINE | {"groups": groups}), data)


def test_without_groups_each_domain_has_a_specialist(data: Data) -> None:
    config = pipeline_config(pipeline=PIPELINE | {"groups": {}})
    assert groups_of(config, data) == {"retail": ("retail",), "trip": ("trip",)}
    without = replace(data, heldout=[p for p in data.heldout if p.task.domain != "trip"])
    with pytest.raises(ValueError, match="has no task of domain 'trip'"):
        groups_of(config, without)


def test_specialists_that_pass_nothing_teach_nothing_and_say_so(
    data: Data, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tests.rl.small_pipeline.GoldPlayers._play", _failing(data))
    with pytest.raises(ValueError, match=r"no episode of the specialists passed.*specialists\.steps"):
        go(pipeline_config(), data, tmp_path / "run")


def _failing(data: Data) -> Any:
    from tests.rl.gold_players import GoldPlayers

    play = GoldPlayers._play
    return lambda self, request: replace(play(self, request), reward=0.0)


def test_a_run_may_start_from_a_policy_alone(whole: Path, data: Data, tmp_path: Path) -> None:
    base = make_config(rollout={"workers": 0}, rl={"steps": 1})
    none = base.cold_start.model_copy(update={"clean_steps": 0, "warm_up_steps": 0, "sparse_steps": 0})
    config = base.model_copy(update={"start": str(whole / "cold-start" / "policy"), "cold_start": none})
    train(config, replace(data, clean=[], mixed=[]), tmp_path / "run")
    assert lines(tmp_path / "run", "cold_start") == []
    assert [record["step"] for record in lines(tmp_path / "run", "rl")] == [0]
    assert lines(tmp_path / "run", "compute")[0]["share"] is None
    share = config.model_copy(update={"rl": config.rl.model_copy(update={"until_share": 0.1})})
    with pytest.raises(ValueError, match=r"rl\.until_share needs a cold start"):
        train(share, data, tmp_path / "other")


def test_the_config_of_a_stage_is_the_pipelines_own_but_for_what_the_stage_is(data: Data) -> None:
    config = pipeline_config()
    assert isinstance(config, PipelineConfig)
    for stage in plan_stages(config, data, Path("x")):
        assert stage.config.rollout == config.rollout
        assert stage.config.rl.learning_rate == config.rl.learning_rate
        assert stage.config.seed == config.seed
