"""One of several learners: what Ray Train runs in each of their processes.

Ray Train has joined the processes (gloo on CPUs, NCCL on GPUs) before `learn` begins. accelerate averages
their gradients by DDP, each holding the whole model; or FSDP2 does, each holding a share of every parameter
and of its moments. Either way a learner does what its orders say, in their order, at once with the others.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import ray
import torch
from ray import train
from ray.train.torch import get_device
from torch import Tensor, distributed
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from transformers import PreTrainedTokenizerFast

from policies.model.decoder import WorldsmithForCausalLM
from rl.cold_start import make_rl_optimizer
from rl.config import Sharding
from rl.learner import Feed, Learner, Objective, make_args
from rl.trajectory import Trajectory


@dataclass(frozen=True, kw_only=True, slots=True)
class Job:
    """What every learner begins with.

    settings: the arguments of `rl.learner.make_args`. moments: an optimizer's whole `state_dict`; None: a new
    one. sharding: `rl.sharding`.
    """

    model: WorldsmithForCausalLM
    tokenizer: PreTrainedTokenizerFast
    settings: dict[str, Any]
    objective: Objective
    moments: dict[str, Any] | None
    sharding: Sharding


@dataclass(frozen=True, kw_only=True, slots=True)
class Rows:
    """Take a step on these; the first learner answers with Stepped. seed: of torch's generator. rows: a
    reference to them.
    """

    seed: int
    rows: Any


@dataclass(frozen=True, kw_only=True, slots=True)
class SendMoments:
    """The first learner answers with the optimizer's state, whole."""


@dataclass(frozen=True, kw_only=True, slots=True)
class End:
    """There are no more orders."""


Order = Rows | SendMoments | End


@dataclass(frozen=True, kw_only=True, slots=True)
class Stepped:
    """What all learners made of their rows. weights: the whole state, by name."""

    weights: dict[str, Tensor]
    metrics: dict[str, float]


class Ended(Exception):  # noqa: N818 (no error)
    """Leaves the trainer's loop."""


def learn(config: dict[str, Any]) -> None:
    """Ray Train's loop in each process: steps until the orders end.

    config: `board`, an actor of `rl.board.Board`; `job`, a reference to the Job, in a list.
    """
    board, job = config["board"], ray.get(config["job"][0])
    assert isinstance(job, Job)
    rank = train.get_context().get_world_rank()
    ray.get(board.begin.remote(rank))
    model, optimizer = set_up(job, get_device())

    def answer(value: Any) -> None:
        if rank == 0:
            ray.get(board.answer.remote(rank, [ray.put(value)]))

    def next_batch() -> Sequence[Trajectory]:
        while True:
            order: Order = ray.get(board.take.remote(rank))
            if isinstance(order, Rows):
                torch.manual_seed(order.seed)  # TRL shuffles rows by it
                return ray.get(order.rows)
            if isinstance(order, End):
                raise Ended
            answer(whole_moments(optimizer))

    def after_step() -> None:
        answer(Stepped(weights=whole(model.state_dict()), metrics=learner.step_metrics))

    learner = Learner(
        model,
        tokenizer=job.tokenizer,
        # One step more than are ordered: after the last one, moments may still be asked for.
        args=make_args(**{**job.settings, "num_steps": job.settings["num_steps"] + 1}),
        objective=job.objective,
        feed=Feed(next_batch=next_batch, after_step=after_step),
        optimizer=optimizer,
    )
    # What Ray and accelerate chose goes by an actor's one CPU slot.
    cores = len(os.sched_getaffinity(0))
    torch.set_num_threads(max(1, cores // train.get_context().get_local_world_size()))
    try:
        learner.train()
    except Ended:
        return
    raise AssertionError("the trainer ended before its orders did")


def set_up(job: Job, device: torch.device) -> tuple[WorldsmithForCausalLM, torch.optim.Optimizer]:
    """The model on its device, in this learner's part or whole, and its optimizer as it was."""
    model = job.model
    model.to(device)  # pyright: ignore[reportArgumentType]
    if job.sharding == "full" or (job.sharding == "auto" and device.type != "cpu"):
        shard(model, device)
    optimizer = make_rl_optimizer(model, job.settings["learning_rate"])
    if job.moments is not None:
        load_moments(optimizer, job.moments)
    return model, optimizer


def shard(model: WorldsmithForCausalLM, device: torch.device) -> None:
    """FSDP2: each learner keeps its part of each parameter; a layer is whole while it is at work."""
    mesh = distributed.device_mesh.init_device_mesh(device.type, (distributed.get_world_size(),))
    for layer in model.model.layers:
        fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh)
    # The trainer leaves placement and gradients to such a model, rather than to DDP. accelerate's own FSDP2
    # plugin knows GPUs alone, and the trainer takes no optimizer beside it.
    model._is_distributed_loading_by_transformers = True


def whole(state: dict[str, Any]) -> dict[str, Any]:
    """The tensors on the CPU, gathered from all learners where each holds a part; all must ask together."""
    return {
        name: (value.full_tensor() if isinstance(value, DTensor) else value).detach().cpu()
        for name, value in state.items()
    }


def whole_moments(optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """The optimizer's `state_dict` as one learner alone would have it; all must ask together."""
    told = optimizer.state_dict()
    return {**told, "state": {index: whole(fields) for index, fields in told["state"].items()}}


def load_moments(optimizer: torch.optim.Optimizer, moments: dict[str, Any]) -> None:
    """Each learner takes its part of a whole `state_dict`, or all of it; rates stay as they are."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    state = {
        index: {name: like(parameters[int(index)], value) for name, value in fields.items()}
        for index, fields in moments["state"].items()
    }
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


def like(parameter: Tensor, value: Tensor) -> Tensor:
    """The value in the parameter's parts, if it has any; a step counter is whole everywhere."""
    if not isinstance(parameter, DTensor) or value.shape != parameter.shape:
        return value
    placed = value.to(parameter.device)
    return distribute_tensor(placed, parameter.device_mesh, parameter.placements, src_data_rank=None)
