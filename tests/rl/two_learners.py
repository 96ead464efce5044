"""Trains the same batches by one learner, and by two processes joined over gloo; keeps what they came to.

    python -m tests.rl.two_learners OUT

Of the two it runs what `rl.learner_process` runs, without Ray. The parent imports once and forks.
"""

import copy
import os
import socket
import sys
import traceback
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import distributed

from policies.model.config import tiny_config
from policies.model.decoder import WorldsmithForCausalLM
from policies.tokenizer import build_tokenizer
from rl.config import Sharding
from rl.learner import Feed, Learner, Objective, make_args
from rl.learner_process import Job, set_up, whole, whole_moments
from rl.learners import parts
from rl.losses import LossConfig
from rl.trajectory import Trajectory
from tests.rl.test_learner import GROUP, ROWS, batch_of

STEPS = 2
RATE = 1e-5
"""Small: where a gradient is about as small as AdamW's epsilon, its rounding becomes a part of the rate."""
LOSSES = {
    "response": LossConfig(kl_weight=0.3, off_policy_delta=1.0),
    "token": LossConfig(normalization="token", kl_weight=0.3),
    "constant": LossConfig(normalization="constant", max_tokens=40),
}
SHARDINGS: tuple[Sharding, ...] = ("none", "full")
EXPERTS = ((0, 1), (6, 7))
"""Those that the first group's rows use, and the second's, which another learner has."""


def batch(step: int) -> list[Trajectory]:
    """The first group has few tokens of the policy's, the second many; they share no expert."""
    rows: list[Trajectory] = []
    for place, row in enumerate(batch_of(step)):
        routes = np.empty_like(row.routes)
        routes[:] = EXPERTS[place // GROUP]
        few = [wrote and n == row.num_prompt_tokens for n, wrote in enumerate(row.sampled)]
        sampled = row.sampled if place >= GROUP else tuple(few)
        rows.append(replace(row, routes=routes, sampled=sampled))
    return rows


def job(loss: LossConfig, sharding: Sharding, num_learners: int, out: Path) -> Job:
    torch.manual_seed(0)
    tokenizer = build_tokenizer({"hello": 3})
    sizes = tiny_config(len(tokenizer), num_hidden_layers=2, index_topk=8, num_nextn_predict_layers=1)
    model, reference = WorldsmithForCausalLM(sizes), WorldsmithForCausalLM(sizes).eval()
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(".indexer." not in name)
    return Job(
        model=model,
        tokenizer=tokenizer,
        settings={
            "directory": out,
            "rows_per_step": ROWS,
            "rows_per_micro_batch": 2,
            "group_size": GROUP,
            "learning_rate": RATE,
            "num_steps": STEPS,
            "num_learners": num_learners,
        },
        objective=Objective(loss=loss, reference=reference if loss.kl_weight else None, balance_step=0.001),
        moments=None,
        sharding=sharding,
    )


def trained(made: Job, steps: range, rank: int) -> dict[str, Any]:
    """Weights, moments and metrics after those steps, with this learner's rows of each."""
    count = made.settings["num_learners"]
    left = list(steps)
    metrics: list[dict[str, float]] = []
    model, optimizer = set_up(made, torch.device("cpu"))
    moments: list[dict[str, Any]] = []

    def after_step() -> None:
        metrics.append(learner.step_metrics)
        moments.append(copy.deepcopy(whole_moments(optimizer)))

    def next_batch() -> list[Trajectory]:
        torch.manual_seed(left[0])
        return parts(batch(left.pop(0)), count)[rank]

    args = make_args(**{**made.settings, "num_steps": len(steps)})
    if made.objective.loss != LOSSES["response"]:
        args.max_grad_norm = 100.0  # a gradient cut to length would hide its size
    learner = Learner(
        model,
        tokenizer=made.tokenizer,
        args=args,
        objective=made.objective,
        feed=Feed(next_batch=next_batch, after_step=after_step),
        optimizer=optimizer,
    )
    assert learner.accelerator.num_processes == count
    learner.train()
    return {"weights": whole(model.state_dict()), "moments": moments, "metrics": metrics}


def gone_on(loss: LossConfig, sharding: Sharding, out: Path, rank: int) -> dict[str, Any]:
    """As `trained`, with the last step by learners that begin anew from what the others came to."""
    first = trained(job(loss, sharding, 2, out), range(STEPS - 1), rank)
    again = job(loss, sharding, 2, out)
    again.model.load_state_dict(first["weights"])
    return trained(replace(again, moments=first["moments"][-1]), range(STEPS - 1, STEPS), rank)


def learn_alone(out: Path) -> None:
    for name, loss in LOSSES.items():
        torch.save(trained(job(loss, "none", 1, out), range(STEPS), 0), out / f"{name}-alone.pt")
    before = job(LOSSES["response"], "none", 1, out).model.state_dict()
    torch.save(before, out / "before.pt")


def learn_in_two(out: Path, rank: int, port: int) -> None:
    os.environ |= {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": "2",
        "LOCAL_WORLD_SIZE": "2",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }
    distributed.init_process_group("gloo")
    for name, loss in LOSSES.items():
        for sharding in SHARDINGS:
            came_to = trained(job(loss, sharding, 2, out), range(STEPS), rank)
            torch.save(came_to, out / f"{name}-{sharding}-{rank}.pt")
    for sharding in SHARDINGS:
        resumed = gone_on(LOSSES["token"], sharding, out, rank)
        torch.save(resumed, out / f"resumed-{sharding}-{rank}.pt")
    distributed.destroy_process_group()


def forked(work: Any, *args: Any) -> int:
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        work(*args)
        code = 0
    except BaseException:
        traceback.print_exc()
    os._exit(code)


def main(argv: list[str]) -> int:
    out = Path(argv[0])
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    children = [forked(learn_alone, out), *(forked(learn_in_two, out, rank, port) for rank in range(2))]
    return max(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
