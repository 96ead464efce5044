"""The study that compares selectors: what it asks, how it measures, that it goes on where it stopped."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from benchmarks import selectors
from benchmarks.selector_exams import macs, sit, sum_up
from benchmarks.selector_report import plot, table
from benchmarks.selector_tasks import (
    FILLERS,
    NUM_COLOURS,
    QUESTIONS,
    RECORDS,
    Exam,
    Retrieval,
    Text,
    library_files,
)
from benchmarks.selectors import INDEXER_RATE, RECIPES, WARM_UP_RATE, main, train, with_indexer
from policies.model.config import tiny_config
from policies.model.decoder import WorldsmithForCausalLM
from policies.model.rotary import rotary_tables, rotate_neighbours
from policies.model.selectors import SELECTORS
from rl.cold_start import next_tokens


def test_each_answer_is_the_colour_of_the_items_one_record() -> None:
    exam = Retrieval().exam(512, 3)
    ids = exam.batch.input_ids_BT[0]
    assert len(exam.columns_N) == 16
    for column, distance in zip(exam.columns_N.tolist(), exam.reach_N.tolist(), strict=True):
        item, colour = divmod(int(ids[column - distance]) - RECORDS, NUM_COLOURS)
        assert ids[column].tolist() == QUESTIONS + item
        assert ids[column + 1] == colour
        of_the_item = (ids - RECORDS).div(NUM_COLOURS, rounding_mode="floor") == item
        assert (of_the_item & (ids < FILLERS)).sum() == 1
    targets = next_tokens(exam.batch)[0]
    assert (targets >= 0).nonzero().flatten().tolist() == exam.columns_N.tolist()


def test_a_batch_of_retrieval_trains_on_answers_alone() -> None:
    batch = Retrieval().train_batch(3, 256, np.random.default_rng(0))
    targets = next_tokens(batch)
    counts = (targets >= 0).sum(1)
    assert counts.unique().tolist() in ([8], [16], [32], [64])
    assert int(targets.max()) < NUM_COLOURS


def test_asked_again_half_of_a_text_are_questions_of_the_same_records() -> None:
    batch = Retrieval().train_batch(2, 1024, np.random.default_rng(1), ask_again=True)
    for ids, targets in zip(batch.input_ids_BT, next_tokens(batch), strict=True):
        columns = (targets >= 0).nonzero().flatten()
        assert columns.tolist() == list(range(512, 1024, 2))
        records = ids[:512][(ids[:512] >= RECORDS) & (ids[:512] < FILLERS)] - RECORDS
        colours = {int(record) // NUM_COLOURS: int(record) % NUM_COLOURS for record in records}
        asked = (ids[columns] - QUESTIONS).tolist()
        assert [colours[item] for item in asked] == ids[columns + 1].tolist()
        assert {asked.count(item) for item in colours} == {256 // len(colours)}
    with pytest.raises(ValueError, match="asks no questions"):
        Text().train_batch(1, 64, np.random.default_rng(0), ask_again=True)


def test_no_exam_holds_a_stretch_that_was_trained_on() -> None:
    text = Text()
    seen = {bytes(text._train[i : i + 64]) for i in range(0, len(text._train) - 64)}
    exam = text.exam(4096, 5)
    ids = exam.batch.input_ids_BT[0].numpy().astype(np.int32)
    shared = [bytes(ids[i : i + 64]) in seen for i in range(0, 4096 - 64, 64)]
    assert sum(shared) < 5  # a licence, perhaps
    assert "argparse.py" in dict(library_files())
    assert exam.reach_N.tolist() == list(range(1, 4096))


def tiny(selector: str) -> WorldsmithForCausalLM:
    torch.manual_seed(0)
    sizes = {"num_hidden_layers": 2, "hidden_size": 48, "intermediate_size": 64, "moe_intermediate_size": 24}
    model = WorldsmithForCausalLM(tiny_config(64, **sizes, index_topk=8, token_selector=selector)).eval()
    for parameter in model.parameters():
        if parameter.ndim >= 2:
            parameter.data.mul_(5)
    return model


def row(length: int) -> Exam:
    exam = Retrieval().exam(length, 0)
    ids = exam.batch.input_ids_BT % 64
    batch = type(exam.batch)(
        input_ids_BT=ids, attention_mask_BT=exam.batch.attention_mask_BT, weight_BT=exam.batch.weight_BT
    )
    return Exam(batch=batch, columns_N=exam.columns_N, reach_N=exam.reach_N)


def mass_by_hand(model: WorldsmithForCausalLM, ids: torch.Tensor) -> float:
    """Of the first layer's queries from place 8 on: dense attention's share on the places it recorded."""
    with torch.no_grad():
        chosen = model(ids, return_selected=True).selected[0, :, 0]
        layer = next(iter(model.model.decoder_layers()))
        attention = layer.self_attn
        hidden = layer.input_layernorm(model.model.embed_tokens(ids[0]))
        latents = attention.kv_a_proj_with_mqa(hidden)
        rank = model.config.kv_lora_rank
        kv = attention.kv_b_proj(attention.kv_a_layernorm(latents[:, :rank]))
        q = attention.q_b_proj(attention.q_a_layernorm(attention.q_a_proj(hidden)))
        cos, sin = rotary_tables(torch.arange(len(hidden)), 16, 10_000.0)
        heads = model.config.num_attention_heads
        q, kv = q.view(len(q), heads, -1), kv.view(len(kv), heads, -1)
        shared = rotate_neighbours(latents[:, rank:], cos, sin)
        shares = []
        for place in range(8, len(hidden)):
            turned = rotate_neighbours(q[place, :, 32:], cos[place], sin[place])
            logits = torch.einsum("hn,shn->hs", q[place, :, :32], kv[: place + 1, :, :32])
            logits = (logits + turned @ shared[: place + 1].t()) * attention.scale
            mass = logits.softmax(-1).mean(0)
            shares.append(mass[chosen[place].long()].sum().item())
    return float(np.mean(shares))


@pytest.mark.parametrize("selector", ["lightning", "window", "lsh"])
def test_recall_is_the_share_of_dense_attention_on_the_chosen_places(selector: str) -> None:
    model, exam = tiny(selector), row(64)
    before = dict(SELECTORS)
    whole = sit(model, exam)["recall"]
    assert whole is not None
    assert before == SELECTORS  # the watching ends with the exam
    one_layer = model
    one_layer.model.layers = one_layer.model.layers[:1]
    one_layer.config.num_hidden_layers = 1
    one_layer.config.mlp_layer_types = (one_layer.config.mlp_layer_types or [])[:1]
    recall = sit(one_layer, exam)["recall"]
    assert recall is not None
    assert recall[0] == pytest.approx(mass_by_hand(one_layer, exam.batch.input_ids_BT), abs=1e-5)
    assert 0 < whole[0] < 1


def test_dense_attention_reads_all_and_oracle_the_most() -> None:
    exam = row(64)
    shares = {name: sit(tiny(name), exam)["recall"][0] for name in ("dense", "oracle", "window", "random")}
    assert shares["dense"] == 1.0
    assert shares["oracle"] > max(shares["window"], shares["random"])


@pytest.mark.parametrize(
    ("indexer", "first", "last"), [("warm-up", WARM_UP_RATE, 0.28), ("sparse", INDEXER_RATE, 1.0)]
)
def test_the_indexers_rate_falls_in_the_warm_up_alone(
    monkeypatch: pytest.MonkeyPatch, indexer: str, first: float, last: float
) -> None:
    made: list[list[torch.optim.Optimizer]] = []

    def make(*args: Any, **kwargs: Any) -> list[torch.optim.Optimizer]:
        made.append(selectors_make(*args, **kwargs))
        return made[-1]

    selectors_make = selectors.make_optimizers
    monkeypatch.setattr(selectors, "make_optimizers", make)
    model, batch = tiny("dense" if indexer == "warm-up" else "lightning"), row(32).batch
    names = {parameter: name for name, parameter in model.named_parameters()}
    rates: list[float] = []
    steps = train(model, iter([batch] * 6), 6, RECIPES["retrieval"], share=1.0, indexer=indexer)
    for _ in steps:
        groups = [group for optimizer in made[0] for group in optimizer.param_groups]
        rates += [g["lr"] for g in groups if all(".indexer." in names[p] for p in g["params"])]
    assert rates[0] == pytest.approx(first)
    assert rates[-1] == pytest.approx(first * last)  # the last of 6 steps: 1 - 0.9 x 4 / 5


def test_a_new_indexer_leaves_the_rest_as_it_was() -> None:
    model, ids = tiny("dense"), row(64).batch.input_ids_BT
    changed = with_indexer(model, {"index_n_heads": 6, "index_head_dim": 24}).eval()
    assert changed.state_dict()["model.layers.1.self_attn.indexer.wq_b.weight"].shape[0] == 6 * 24
    assert (changed.config.token_selector, changed.config.index_topk) == ("dense", 8)
    with torch.no_grad():
        assert torch.equal(model(ids).logits, changed(ids).logits)


def test_sums_of_rows_count_each_target_once() -> None:
    zero = [0, 0, 0.0]
    rows = [
        {"counts": [[1, 1, 0.5], [3, 0, 6.0], *[zero] * 5], "recall": [0.5, 0.1]},
        {"counts": [[1, 0, 1.5], *[zero] * 6], "recall": [0.7, 0.3]},
    ]
    total = sum_up(rows)
    assert total["targets"] == 5
    assert total["accuracy"] == pytest.approx(1 / 5)
    assert total["loss"] == pytest.approx(8.0 / 5)
    assert (total["recall"], total["recall_at_targets"]) == pytest.approx((0.6, 0.2))
    assert total["by_reach"]["0"] == {"targets": 2, "accuracy": 0.5, "loss": 1.0}
    assert total["by_reach"]["64"]["accuracy"] == 0.0
    assert "256" not in total["by_reach"]


def test_multiply_adds_by_hand() -> None:
    """Two heads, latents of 6 and 2 rotary columns: a pair takes 2 x (6 + 2) + 2 x 6 = 28."""
    sizes = {"num_attention_heads": 2, "num_key_value_heads": 2, "kv_lora_rank": 6, "qk_rope_head_dim": 2}
    index = {"index_n_heads": 3, "index_head_dim": 4, "index_topk": 10, "lsh_tables": 2, "lsh_bits": 5}

    def of(selector: str) -> int:
        return macs(tiny_config(64, **sizes, **index, token_selector=selector), 1000)

    assert of("dense") == 28_000
    assert of("window") == of("random") == 280
    assert of("lightning") == 280 + 12_000
    assert of("oracle") == 16_000 + 280
    assert of("lsh") == 280 + 4 * 4 * 10 + 40 * 12  # hashes of a key and three queries; 40 candidates


@pytest.mark.slow
def test_a_study_is_taken_up_where_it_stopped(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    arguments = ["--out", str(tmp_path / "study"), "--quick", "--seeds", "0"]
    assert main([*arguments, "--tasks", "retrieval", "--selectors", "dense", "lsh"]) == 0
    model = tmp_path / "study" / "retrieval-0-model" / "model.safetensors"
    before = model.stat().st_mtime_ns
    (tmp_path / "study" / "retrieval-0-lsh.json").unlink()
    assert main([*arguments, "--plot", str(tmp_path / "plot.png"), "--json"]) == 0
    assert model.stat().st_mtime_ns == before
    results = json.loads(capsys.readouterr().out.splitlines()[-1])["results"]
    assert len(results) == 12
    with pytest.raises(SystemExit, match="figures of other settings"):  # not --quick: another recipe
        main([argument for argument in arguments if argument != "--quick"])
    assert (tmp_path / "plot.png").stat().st_size > 10_000
    for task in ("retrieval", "text"):  # one alone has a picture, too
        plot([result for result in results if result["task"] == task], tmp_path / f"{task}.svg")
        assert (tmp_path / f"{task}.svg").stat().st_size > 10_000
    plot(results, tmp_path / "again.svg")
    shown = table(results)
    assert "retrieval, 256 tokens" in shown
    assert "| lightning |" in shown
