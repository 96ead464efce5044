"""The planner against published numbers, and its command."""

import json
from pathlib import Path

import pytest

from policies.model.config import ModelConfig, tiny_config
from policies.model.decoder import WorldsmithForCausalLM
from worldsmith.capacity import (
    Machine,
    TrainingPlan,
    WorkModel,
    count_parameters,
    crossing,
    fewest_gpus,
    prices,
    training_memory,
)
from worldsmith.cli import main as cli
from worldsmith.plan_command import find_config, main, show


@pytest.fixture(scope="module")
def published() -> WorkModel:
    config = find_config("deepseek-v3.2")
    return WorkModel(config=config, parameters=count_parameters(config))


def test_parameters_are_those_that_deepseek_states(published: WorkModel) -> None:
    counts = published.parameters
    assert counts.total == pytest.approx(671.0e9, rel=2e-3)
    assert counts.active == pytest.approx(36.7e9, rel=5e-3)
    assert counts.indexer == 61 * 13_959_424
    assert counts.prediction == pytest.approx(11.5e9, rel=2e-2)
    assert counts.checkpoint == counts.total + counts.indexer + counts.prediction


def test_a_real_module_has_the_parameters_that_are_counted() -> None:
    config = tiny_config(64, num_nextn_predict_layers=1)
    counts = count_parameters(config)
    model = WorldsmithForCausalLM(config)
    assert counts.checkpoint == sum(p.numel() for p in model.parameters())
    assert counts.prediction == sum(p.numel() for p in model.model.prediction_layers()[0].parameters())
    # By hand: 3 mixtures of 8 experts of 3 x 128 x 96, of which 2 are used; the embedding is not multiplied.
    assert counts.experts == 3 * 8 * 3 * 128 * 96
    assert counts.active == counts.total - 3 * 6 * 3 * 128 * 96 - 64 * 128
    tied = count_parameters(tiny_config(64, tie_word_embeddings=True))
    assert tied.total == counts.total - 64 * 128
    assert tied.active == counts.active


def test_cache_and_work_are_those_of_the_architecture(published: WorkModel) -> None:
    assert published.cache_bytes(sparse=False) == 70_272
    assert published.cache_bytes(sparse=True) - 70_272 == 61 * 132
    far = published.decode(131_071, sparse=False)
    assert far.attention == 61 * 131_072 * 139_264
    assert far.read_bytes == 131_072 * 70_272
    sparse = published.decode(131_071, sparse=True)
    assert sparse.attention == 61 * 2048 * 139_264
    assert sparse.indexer == 61 * 131_072 * 8_192
    assert sparse.read_bytes == 61 * (2048 * 1152 + 131_072 * 132)
    assert published.prefill(131_071, sparse=False).attention == 61 * 131_072 * 40_960
    assert published.decode(99, sparse=True).attention == published.decode(99, sparse=False).attention


def test_prices_follow_the_published_curve_within_a_tenth(published: WorkModel) -> None:
    machine = Machine()
    start, far, farther = (prices(published, machine, at) for at in (0, 102 * 1024, 128 * 1024))
    assert start.prefill_dense == pytest.approx(0.053, rel=0.1)
    assert start.prefill_sparse == pytest.approx(0.061, rel=0.1)
    assert start.decode_dense == pytest.approx(0.071, rel=0.1)
    assert start.decode_sparse == pytest.approx(0.095, rel=0.1)
    assert far.decode_sparse == pytest.approx(0.228, rel=0.1)
    assert farther.prefill_dense / farther.prefill_sparse == pytest.approx(3.6, rel=0.1)
    assert farther.decode_dense / farther.decode_sparse == pytest.approx(8.6, rel=0.1)


def test_the_curves_bend_and_cross_where_the_published_ones_do(published: WorkModel) -> None:
    machine = Machine()

    def slope(at: int, phase: str) -> float:
        before, after = (getattr(prices(published, machine, x), f"{phase}_sparse") for x in (at, at + 100))
        return after - before

    # The published sparse curves bend at 6.6K (prefill) and 2.1K (decode).
    for phase, bend in (("prefill", 6.6 * 1024), ("decode", 2.1 * 1024)):
        assert slope(int(bend * 0.9) - 100, phase) > 4 * slope(int(bend * 1.1), phase)
    # Where the published lines meet, by their ends and bends: position 0, the bend, 128K.
    for phase, bend, dense, sparse in (
        ("prefill", 6.6 * 1024, (0.053, 0.666), (0.100, 0.187)),
        ("decode", 2.1 * 1024, (0.071, 2.154), (0.146, 0.249)),
    ):
        rise_dense = (dense[1] - dense[0]) / (128 * 1024)
        rise_sparse = (sparse[1] - sparse[0]) / (128 * 1024 - bend)
        published_at = (sparse[0] - rise_sparse * bend - dense[0]) / (rise_dense - rise_sparse)

        def is_dearer(at: int, phase: str = phase) -> bool:
            price = prices(published, machine, at)
            return getattr(price, f"{phase}_sparse") > getattr(price, f"{phase}_dense")

        assert crossing(is_dearer, 1 << 18) == pytest.approx(published_at, rel=0.1)


def test_crossing_finds_the_first_position() -> None:
    assert crossing(lambda at: at < 37, 1000) == 37
    assert crossing(lambda at: False, 1000) == 0
    assert crossing(lambda at: True, 1000) is None


def test_a_scaled_shape_answers_too() -> None:
    counts = count_parameters(find_config("scaled-1.6t"))
    assert counts.total == pytest.approx(1.6e12, rel=1e-2)
    assert 45e9 < counts.active < 55e9


def test_training_memory_shards_state_and_experts(published: WorkModel) -> None:
    config, counts = published.config, published.parameters
    small = training_memory(config, counts, TrainingPlan(gpus=512))
    wide = training_memory(config, counts, TrainingPlan(gpus=2048, expert_parallel=64))
    assert small.state == pytest.approx(18 * counts.checkpoint / 512, abs=1)
    assert wide.state == pytest.approx(small.state / 4, abs=4)
    # Two layers of 256 experts of 3 x 7168 x 2048 in bf16, against two of 4 experts.
    assert small.gathered - wide.gathered == pytest.approx(2 * 2 * 252 * 3 * 7168 * 2048, rel=0.03)
    assert wide.activations == small.activations
    fewest = fewest_gpus(config, counts, TrainingPlan(gpus=1, expert_parallel=64), 80)
    assert fewest is not None
    for gpus, fits in ((fewest, True), (fewest - 64, False)):
        memory = training_memory(config, counts, TrainingPlan(gpus=gpus, expert_parallel=64))
        assert (memory.total <= 80e9) == fits
    assert fewest_gpus(config, counts, TrainingPlan(gpus=1), 20) is None  # the gathered layers do not fit


def test_json_has_the_promised_keys(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli(["plan", "--model", "tiny", "--json", "--contexts", "10,20"]) == 0
    report = json.loads(capsys.readouterr().out.splitlines()[-1])
    counts = count_parameters(tiny_config(1024))
    assert report["parameters"]["total"] == counts.total
    assert report["parameters"]["active"] == counts.active
    assert [row["position"] for row in report["contexts"]] == [10, 20]
    assert report["training"]["fits"] is True
    text = show(report)
    assert "1.7 M" in text
    assert "fits; at least 1 GPUs" in text


def test_a_file_and_a_directory_are_models_too(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tiny_config(1024).to_json_file(tmp_path / "config.json")
    (tmp_path / "config.json").rename(tmp_path / "other.json")
    for path in (tmp_path / "other.json", tmp_path):
        if path == tmp_path:
            (tmp_path / "other.json").rename(tmp_path / "config.json")
        assert main(["--model", str(path)]) == 0
        assert "1.7 M" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--model", "deepseek-v32"], "did you mean deepseek-v3.2?"),
        (["--model", "tiny", "--contexts", "1,x"], "--contexts must be whole numbers"),
        (["--model", "tiny", "--contexts", "-1"], "--contexts must be whole numbers"),
        (
            ["--model", "tiny", "--gpus", "3", "--expert-parallel", "2"],
            "must be a multiple of expert_parallel",
        ),
        (["--model", "tiny", "--gpus", "3", "--expert-parallel", "3"], "must divide the 8 experts"),
        (["--model", "tiny", "--gpus", "0"], "gpus must be at least 1"),
        (["--model", "tiny", "--dollars-per-gpu-hour", "0"], "dollars_per_hour must be a positive number"),
        (["--model", "tiny", "--gpu-memory-gb", "nan"], "memory_gb must be a positive number"),
        (["--model", "tiny", "--gpu", "3"], "unrecognized arguments"),
        ([], "the following arguments are required: --model"),
    ],
)
def test_a_mistake_is_one_line(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli(["plan", *arguments]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert message in captured.err
    assert len(captured.err.strip().splitlines()) == 1


def test_a_file_that_is_no_configuration_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "config.json"
    for text, message in (
        ("{", "not readable as JSON"),
        ('{"model_type": "llama"}', "expected 'deepseek_v32'"),
        ('{"model_type": "deepseek_v32", "index_topk": 0}', "index_topk must be at least 1"),
        ('{"model_type": "deepseek_v32", "num_hidden_layers": 1000000000}', "must be at most 1000"),
    ):
        path.write_text(text)
        assert cli(["plan", "--model", str(tmp_path)]) == 2
        error = capsys.readouterr().err
        assert message in error
        assert len(error.strip().splitlines()) == 1


def test_other_machines_have_other_prices() -> None:
    config = ModelConfig(num_hidden_layers=4)
    work = WorkModel(config=config, parameters=count_parameters(config))
    plain = prices(work, Machine(), 50_000)
    half = prices(work, Machine(dollars_per_hour=1.0), 50_000)
    fast = prices(work, Machine(bf16_tflops=4 * 989, fp8_tflops=4 * 1979), 50_000)
    assert half.decode_sparse == pytest.approx(plain.decode_sparse / 2)
    assert fast.prefill_dense == pytest.approx(plain.prefill_dense / 4)
