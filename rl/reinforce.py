"""GRPO: each step publishes weights, takes groups of episodes, and lets the learner take one step.

With `rollout.max_staleness` 0 rollouts and learner take turns; above it groups are played beside the learner.
"""

import copy
from pathlib import Path
from typing import Any

import torch

from policies.model.decoder import WorldsmithForCausalLM
from policies.tokenizer import TextCodec
from policies.weights import publish
from rl.checkpoints import (
    Checkpoint,
    latest_checkpoint,
    load_checkpoint_model,
    load_optimizers,
    save_checkpoint,
)
from rl.cold_start import make_rl_optimizer
from rl.learner import Feed, Learner, Objective, make_args
from rl.ledger import Ledger
from rl.losses import LossConfig
from rl.measure import StepClock, evaluate, record_step
from rl.recorded import Keep
from rl.replica_workers import AnyWorkers
from rl.rollout_worker import ActorSeats, Workers
from rl.rollouts import AsynchronousRollouts, Batch, Rollouts, Saved, SynchronousRollouts, staleness
from rl.run import Run, sampling
from rl.run_files import trim_metrics
from rl.stored import pack, unpack
from rl.trajectory import Trajectory

BUFFER = "buffer.safetensors"
"""In a checkpoint: the groups that were ready."""


def reinforce(run: Run, workers: AnyWorkers, model: WorldsmithForCausalLM, codec: TextCodec) -> None:
    """TRL's trainer turns the loop; each of its steps calls `next_batch` once and `after_step` once."""
    config, directory = run.config.rl, run.out / "checkpoints"
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(".indexer." not in name)  # the indexer stays as it is in RL, as in GLM-5
    reference = copy.deepcopy(model).eval() if config.loss.kl_weight else None
    optimizer = make_rl_optimizer(model, config.learning_rate)
    found = load_latest(directory, model, optimizer)
    start = found.step if found else 0
    if start >= config.steps:
        return
    trim_metrics(run.out, kind="rl", from_step=start)
    clock = StepClock()
    rollouts = start_rollouts(run, workers, found)
    batch = Batch(taught=[], played=[])

    def next_batch() -> list[Trajectory]:
        nonlocal batch
        clock.begin_generation()
        batch = rollouts.next_batch()
        clock.end_generation()
        return batch.taught

    def after_step() -> None:
        done = start + learner.state.global_step
        rollouts.step_done(publish(model, version=done))
        saved = rollouts.saved()
        terms = learner.step_metrics | beside_the_learner(run, batch, clock, done - 1)
        record_step(run, done - 1, batch.played, terms, clock, ledger=saved.ledger)
        if done % config.checkpoint_every == 0 or done == config.steps:
            save_step(directory, done, model, optimizer, saved)
        if run.config.eval.every and done % run.config.eval.every == 0 and done < config.steps:
            with rollouts.quiet():
                evaluate(run, workers, model, when=f"step-{done}", step=done)
        clock.begin_step()

    learner = Learner(
        model,
        tokenizer=codec.tokenizer,
        args=make_args(
            run.out / ".trl",
            rows_per_step=config.groups_trained * config.group_size,
            rows_per_micro_batch=config.rows_per_micro_batch,
            group_size=config.group_size,
            learning_rate=config.learning_rate,
            num_steps=config.steps - start,
            temperature=run.config.rollout.temperature,
        ),
        objective=Objective(
            loss=LossConfig(**config.loss.model_dump()), reference=reference, keep=kept_choices(run)
        ),
        feed=Feed(next_batch=next_batch, after_step=after_step),
        optimizer=optimizer,
    )
    with run.log.stage("rl"):
        run.observer.begin("GRPO", total=config.steps, done=start, unit="steps")
        rollouts.begin(publish(model, version=start))
        try:
            learner.train()
        finally:
            rollouts.close()
        run.observer.end()


def load_latest(
    directory: Path, model: WorldsmithForCausalLM, optimizer: torch.optim.Optimizer
) -> Checkpoint | None:
    """The newest checkpoint of GRPO, its weights and moments in place."""
    found = latest_checkpoint(directory)
    if found:
        model.load_state_dict(load_checkpoint_model(found).state_dict())
        load_optimizers(found, [optimizer])
    return found


def start_rollouts(run: Run, workers: AnyWorkers, found: Checkpoint | None) -> Rollouts:
    """Goes on from what the checkpoint kept, its ledger checked."""
    saved = saved_in(found, run.config.rl.group_size) if found else Saved(ledger=Ledger())
    if run.config.rollout.max_staleness == 0:
        return SynchronousRollouts(run, workers, saved.ledger)
    assert isinstance(workers, Workers)
    return AsynchronousRollouts(
        run,
        ActorSeats(workers, sampling(run)),
        saved,
        num_seats=len(workers.actors),
        version=found.step if found else 0,
    )


def save_step(
    directory: Path,
    step: int,
    model: WorldsmithForCausalLM,
    optimizer: torch.optim.Optimizer,
    saved: Saved,
) -> None:
    """The checkpoint after `step` steps: learner and rollouts as they are at this moment."""
    state = {"ledger": saved.ledger.as_fields(), "next_group": saved.next_group, "open": list(saved.open)}
    files = {BUFFER: pack([member for members in saved.ready for member in members])}
    save_checkpoint(directory, step=step, model=model, optimizers=[optimizer], state=state, files=files)


def saved_in(found: Checkpoint, group_size: int) -> Saved:
    """What `save_step` kept. Raises ValueError where the ledger does not balance with the groups."""
    state, where = found.state, str(found.path)
    ledger = Ledger.from_fields(state.get("ledger", {}), where=where)
    ready = unpack(found.read(BUFFER), where=f"{where}/{BUFFER}") if found.has(BUFFER) else []
    groups = [tuple(ready[i : i + group_size]) for i in range(0, len(ready), group_size)]
    unsettled = len(ready) + group_size * len(state.get("open", ()))
    if ledger.in_flight != unsettled:
        raise ValueError(
            f"{where}: its ledger has {ledger.in_flight} episodes in flight, its buffer has {unsettled}"
        )
    return Saved(
        ledger=ledger,
        next_group=state.get("next_group", 0),
        open=tuple(state.get("open", ())),
        ready=tuple(groups),
    )


def beside_the_learner(run: Run, batch: Batch, clock: StepClock, step: int) -> dict[str, Any]:
    """What asynchronous steps are measured by: the learner's waiting, how old its tokens were, its groups."""
    if run.config.rollout.max_staleness == 0:
        return {}
    return {
        "seconds_waiting": clock.generation,
        "bubble_share": clock.generation / clock.step if clock.step else 0.0,
        "groups": list(dict.fromkeys(t.group for t in batch.taught)),
        **staleness(batch, step),
    }


def kept_choices(run: Run) -> Keep:
    rollout = run.config.rollout
    return Keep(
        routing=rollout.keep_routing,
        selection=rollout.keep_selection,
        sampling_mask=rollout.keep_sampling_mask,
    )
