"""A learner held to what a rollout recorded computes the function that played, whatever has moved since."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from envs.outcome import Cause
from policies.engine import Engine, Sampling
from policies.model.config import tiny_config
from policies.model.decoder import WorldsmithForCausalLM
from policies.model.experts import routers
from policies.tokenizer import build_tokenizer
from rl.cold_start import make_rl_optimizer
from rl.learner import Feed, Learner, Objective, make_args
from rl.losses import LossConfig
from rl.recorded import Keep, Recorded, entropy, recorded, rows_of
from rl.trajectory import Trajectory

ROWS, GROUP = 8, 4
SAMPLING = Sampling(top_p=0.8, max_new_tokens=24)
TOKENIZER = build_tokenizer({"hello": 3})


def make_model() -> WorldsmithForCausalLM:
    torch.manual_seed(1)
    sizes = {"num_hidden_layers": 3, "hidden_size": 64, "index_topk": 6}
    model = WorldsmithForCausalLM(tiny_config(len(TOKENIZER), **sizes)).eval()
    for parameter in model.parameters():
        if parameter.ndim >= 2:
            parameter.data.mul_(4)
    return model


def played(
    model: WorldsmithForCausalLM,
    *,
    record_selected: bool = True,
    dtype: torch.dtype = torch.float32,
    first_seed: int = 0,
) -> list[Trajectory]:
    """Eight sessions of random prompts, as rollouts leave them behind."""
    engine = Engine(
        model,
        num_slots=ROWS,
        max_length=64,
        stop_token_ids=[],
        record_selected=record_selected,
        dtype=dtype,
    )
    generator = torch.Generator().manual_seed(2)
    prompts = [torch.randint(10, 200, (9 + row,), generator=generator).tolist() for row in range(ROWS)]
    sessions = [
        engine.open(prompt, seed=first_seed + row, sampling=SAMPLING) for row, prompt in enumerate(prompts)
    ]
    ended: set[int] = set()
    while len(ended) < ROWS:
        ended |= {turn.session for turn in engine.step()}
    records = [engine.close(session) for session in sessions]
    return [
        Trajectory(
            task_id="t",
            domain="d",
            level=1,
            group=row // GROUP,
            sample=row % GROUP,
            attempt=0,
            seed=row,
            token_ids=tuple(record.token_ids),
            num_prompt_tokens=len(prompts[row]),
            sampled=tuple(record.sampled_mask),
            logps=tuple(record.logps),
            routes=record.routes,
            versions=tuple(record.weights_versions),
            reward=float(row % 2),
            cause=Cause.ANSWERED,
            verdict=None,
            messages=(),
            num_turns=1,
            seconds_environment=0.0,
            kept_sets=tuple(record.kept_sets),
            selected=record.selected,
        )
        for row, record in enumerate(records)
    ]


def drift(model: WorldsmithForCausalLM, batch: list[Trajectory], keep: Keep, directory: Path) -> float:
    """The largest |log p| between the learner and the rollout, in nats, over the sampled tokens."""
    learner = Learner(
        model,
        tokenizer=TOKENIZER,
        args=make_args(
            directory,
            rows_per_step=ROWS,
            rows_per_micro_batch=ROWS,
            group_size=GROUP,
            learning_rate=1e-3,
            num_steps=1,
        ),
        objective=Objective(loss=LossConfig(), keep=keep),
        feed=Feed(next_batch=lambda: batch, after_step=lambda: None),
        optimizer=make_rl_optimizer(model, 1e-3),
    )
    learner.train()
    return learner.step_metrics["logp_drift_max"]


def with_moved_choices(model: WorldsmithForCausalLM) -> WorldsmithForCausalLM:
    """Router biases and indexers elsewhere: other experts and other positions are chosen, nothing else."""
    torch.manual_seed(3)
    for router in routers(model):
        router.e_score_correction_bias.uniform_(-0.5, 0.5)
    for name, parameter in model.named_parameters():
        if ".indexer." in name and parameter.ndim >= 2:
            torch.nn.init.normal_(parameter)
    return model


def test_a_learner_that_keeps_every_choice_agrees_with_a_rollout_whose_choices_have_moved(
    tmp_path: Path,
) -> None:
    batch = played(make_model())
    assert drift(with_moved_choices(make_model()), batch, Keep(), tmp_path) < 1e-4


@pytest.mark.parametrize(
    "keep", [Keep(routing=False), Keep(selection=False), Keep(sampling_mask=False)], ids=str
)
def test_each_choice_that_is_not_kept_is_seen_in_the_log_probabilities(tmp_path: Path, keep: Keep) -> None:
    batch = played(make_model())
    assert drift(with_moved_choices(make_model()), batch, keep, tmp_path) > 0.01


def test_the_engine_records_the_positions_that_the_trainer_selects() -> None:
    model = make_model()
    for trajectory in played(model)[:3]:
        with torch.no_grad():
            live = model(torch.tensor([trajectory.token_ids]), return_selected=True).selected[0]
        assert trajectory.selected is not None
        for place in range(len(trajectory.token_ids) - 1):
            for layer in range(3):
                own = trajectory.selected[place, layer]
                assert set(own[own != 65535].tolist()) == set(live[place, layer].tolist()) - {-1}
        assert (trajectory.selected[-1] == 65535).all()  # sampled last, never read


def test_records_lie_where_their_tokens_lie_and_a_lost_episode_has_none() -> None:
    first, second = played(make_model())[:2]
    lost = replace(
        first,
        token_ids=(0, 0),
        num_prompt_tokens=1,
        routes=np.zeros((2, 0, 1), np.uint8),
        kept_sets=(),
        selected=None,
    )
    width = second.num_prompt_tokens  # one column more than the first's prompt
    held = recorded([first, second, lost], width, 24, Keep())
    assert held.routes is not None
    assert held.selected is not None
    assert held.kept is not None
    assert held.routes[0, 1].tolist() == first.routes[0].tolist()
    assert held.routes[1, 0].tolist() == second.routes[0].tolist()
    assert (held.routes[0, 0] == -1).all()
    assert all((part[2] == -1).all() for part in held.tensors().values())
    drawn = held.kept[0, width]
    assert first.token_ids[first.num_prompt_tokens] in drawn.tolist()
    assert recorded([lost], 1, 1, Keep()) == Recorded()
    off = Keep(routing=False, selection=False, sampling_mask=False)
    assert recorded([first], width, 24, off) == Recorded()


def test_a_micro_batch_is_held_to_the_records_of_its_own_rows() -> None:
    records = Recorded(routes=torch.arange(4).view(4, 1, 1, 1), kept=torch.arange(4).view(4, 1, 1) + 10)
    held = rows_of(records, torch.tensor([2, 0]))
    assert held.routes is not None
    assert held.kept is not None
    assert held.routes.flatten().tolist() == [2, 0]
    assert held.kept.flatten().tolist() == [12, 10]
    assert held.selected is None


def test_entropy_counts_nothing_for_ids_that_were_cut() -> None:
    logps = torch.tensor([0.5, 0.5, 0.0]).log()
    assert entropy(logps).item() == pytest.approx(np.log(2))
