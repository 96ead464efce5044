"""GRPO: each step publishes weights, takes groups of episodes, and lets the learner take one step.

With `rollout.max_staleness` 0 rollouts and learner take turns; above it groups are played beside the learner.
"""

import copy
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch

from envs.task import stable_seed
from policies.model.decoder import WorldsmithForCausalLM
from policies.tokenizer import TextCodec
from policies.weights import publish
from rl.attribution import keep_for_attribution
from rl.budget import active_parameters, step_compute
from rl.checkpoints import (
    Checkpoint,
    latest_checkpoint,
    load_checkpoint_model,
    load_optimizers,
    save_checkpoint,
)
from rl.cold_start import make_rl_optimizer
from rl.config import Sharding
from rl.learner import Feed, Learner, Objective, make_args
from rl.ledger import Ledger
from rl.losses import LossConfig
from rl.measure import StepClock, evaluate, own_compute, record_step
from rl.recorded import Keep
from rl.replica_workers import AnyWorkers
from rl.rollout_worker import ActorSeats, Workers
from rl.rollouts import AsynchronousRollouts, Batch, Rollouts, Saved, SynchronousRollouts, staleness
from rl.run import Run, sampling
from rl.run_files import trim_metrics
from rl.stopping import Terminated
from rl.stored import pack, unpack
from rl.trajectory import Trajectory

BUFFER = "buffer.safetensors"
"""In a checkpoint: the groups that were ready."""


def reinforce(run: Run, workers: AnyWorkers, model: WorldsmithForCausalLM, codec: TextCodec) -> int:
    """TRL's trainer turns the loop, or this process does for several learners; each step calls `next_batch`
    once and `after_step` once.

    Returns the number of steps done, which `rl.until_share` may end before `rl.steps`.
    """
    config = run.config.rl
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(".indexer." not in name)  # the indexer stays as it is in RL, as in GLM-5
    reference = copy.deepcopy(model).eval() if config.loss.kl_weight else None
    optimizer = make_rl_optimizer(model, config.learning_rate)
    found = load_latest(run.out / "checkpoints", model, optimizer)
    start = found.step if found else 0
    trim_metrics(run.out, kind="rl", from_step=start)
    allowance = Allowance(run, model)
    if start >= config.steps or allowance.used_up:
        allowance.tell(start)
        return start
    loop = Reinforcement(run, workers, model, optimizer, found, allowance)
    settings = {
        "directory": run.out.resolve() / ".trl",
        "rows_per_step": config.groups_trained * config.group_size,
        "rows_per_micro_batch": config.rows_per_micro_batch,
        "group_size": config.group_size,
        "learning_rate": config.learning_rate,
        "num_steps": config.steps - start,
        "temperature": run.config.rollout.temperature,
        "num_learners": config.learners,
    }
    objective = Objective(
        loss=LossConfig(**config.loss.model_dump()),
        reference=reference,
        keep=kept_choices(run),
        balance_step=config.balance_step,
    )
    with run.log.stage("rl"):
        run.observer.begin("GRPO", total=config.steps, done=start, unit="steps")
        if config.learners == 1:
            learn_here(loop, codec, settings, objective)
        else:
            learn_together(loop, codec, settings, objective, config.sharding)
        run.observer.end()
    allowance.tell(loop.done)
    return loop.done


def learn_here(
    loop: "Reinforcement", codec: TextCodec, settings: dict[str, Any], objective: Objective
) -> None:
    """TRL's trainer turns the loop in this process."""
    learner = Learner(
        loop.model,
        tokenizer=codec.tokenizer,
        args=make_args(**settings),
        objective=objective,
        feed=Feed(next_batch=loop.next_batch, after_step=lambda: loop.after_step(learner.step_metrics)),
        optimizer=loop.optimizer,
    )
    with loop.going():
        learner.train()


def learn_together(
    loop: "Reinforcement",
    codec: TextCodec,
    settings: dict[str, Any],
    objective: Objective,
    sharding: Sharding,
) -> None:
    """This process turns the loop; the learners' processes take the steps."""
    from rl.learner_process import Job  # Ray Train takes a while to import, which one learner has no use for
    from rl.learners import Learners

    job = Job(
        model=loop.model,
        tokenizer=codec.tokenizer,
        settings=settings,
        objective=objective,
        moments=loop.optimizer.state_dict(),
        sharding=sharding,
    )
    with Learners(job, settings["directory"]) as learners, loop.going(learners.moments):
        for _ in range(settings["num_steps"]):
            stepped = learners.step(loop.next_batch(), seed=loop.seed)
            loop.model.load_state_dict(stepped.weights)
            if loop.after_step(stepped.metrics):
                return


class Allowance:
    """How much compute RL may have: `rl.until_share` of pre-training's, earlier runs' RL counted in."""

    def __init__(self, run: Run, model: WorldsmithForCausalLM) -> None:
        self._run = run
        self._limit = run.config.rl.until_share
        self._active = active_parameters(model)
        self._with_reference = run.config.rl.loss.kl_weight > 0
        self._spent = run.before + own_compute(run, model)
        if self._limit is not None and self._spent.rl_share is None:
            raise ValueError(
                "rl.until_share needs a cold start to be a share of; this run has none, leave it out"
            )

    @property
    def used_up(self) -> bool:
        share = self._spent.rl_share
        return self._limit is not None and share is not None and share >= self._limit

    def spend(self, batch: Batch) -> dict[str, Any]:
        """A step's tokens; what its metrics say of them."""
        played = sum(len(t.token_ids) for t in batch.played)
        trained = sum(len(t.token_ids) for t in batch.taught)
        self._spent += step_compute(
            self._active, played=played, trained=trained, with_reference=self._with_reference
        )
        return {"trained_tokens": trained, "compute_share": self._spent.rl_share}

    def tell(self, steps: int) -> None:
        """What ended RL, where a share may."""
        if self._limit is not None:
            why = "its share was reached" if self.used_up else "all its steps were done"
            self._run.log.note(
                f"RL ended after {steps} steps, as {why}: {self._spent.rl_share:.3f} of the cold start's"
                f" compute, {self._limit:g} wanted."
            )


class Reinforcement:
    """What happens around the learner's steps: rollouts before, records and checkpoints after.

    SIGTERM during an update waits for its end. Otherwise it is taken at once, and what the steps so far came
    to is saved.
    """

    def __init__(
        self,
        run: Run,
        workers: AnyWorkers,
        model: WorldsmithForCausalLM,
        optimizer: torch.optim.Optimizer,
        found: Checkpoint | None,
        allowance: Allowance,
    ) -> None:
        self._run, self._workers = run, workers
        self.model, self.optimizer = model, optimizer
        self._allowance = allowance
        self._rollouts = start_rollouts(run, workers, found)
        self._done = self._saved_at = found.step if found else 0
        self._kept = self._rollouts.saved()
        """Of the rollouts, as it was after the last step."""
        self._clock = StepClock()
        self._batch = Batch(taught=[], played=[])
        self._update = ExitStack()
        self._moments: Callable[[], dict[str, Any]] | None = None

    @property
    def done(self) -> int:
        """Steps of the run so far."""
        return self._done

    @property
    def seed(self) -> int:
        """Of what the next step draws: a step does not depend on the steps before it."""
        return stable_seed(self._run.config.seed, "learner", self._done) % 2**31

    @contextmanager
    def going(self, moments: Callable[[], dict[str, Any]] | None = None) -> Iterator[None]:
        """The rollouts go on inside; if SIGTERM ends them, what was learnt is saved first.

        moments: the optimizer's state, where another process has it.
        """
        self._moments = moments
        self._rollouts.begin(publish(self.model, version=self._done))
        try:
            yield
        except Terminated:
            if not self._run.stop.expired:  # else the update was cut in two
                self._save()
            raise
        finally:
            self._rollouts.close()

    def next_batch(self) -> list[Trajectory]:
        torch.manual_seed(self.seed)  # TRL orders a batch's rows by it
        self._clock.begin_generation()
        self._batch = self._rollouts.next_batch()
        self._clock.end_generation()
        self._update.enter_context(self._run.stop.deferred())
        return self._batch.taught

    def after_step(self, terms: dict[str, float]) -> bool:
        """Records the step; True: RL has had the compute that it may have."""
        run, config = self._run, self._run.config.rl
        self._done += 1
        self._rollouts.step_done(publish(self.model, version=self._done))
        self._kept = self._rollouts.saved()
        terms |= self._allowance.spend(self._batch)
        terms |= beside_the_learner(run, self._batch, self._clock, self._done - 1)
        record_step(run, self._done - 1, self._batch.played, terms, self._clock, ledger=self._kept.ledger)
        if self._saved_at == self._done - 1:
            keep_for_attribution(run.out, self._batch.taught, self._done - 1)
        last = self._done == config.steps or self._allowance.used_up
        if last or self._done % config.checkpoint_every == 0:
            self._save()
        self._update.close()  # raises Terminated if SIGTERM came meanwhile
        every = run.config.eval.every
        if every and self._done % every == 0 and not last:
            with self._rollouts.quiet():
                evaluate(run, self._workers, self.model, when=f"step-{self._done}", step=self._done)
        self._clock.begin_step()
        return self._allowance.used_up

    def _save(self) -> None:
        """Learner and rollouts as they were after the last step."""
        if self._done == self._saved_at:
            return
        kept = self._kept
        if self._moments is not None:
            self.optimizer.load_state_dict(self._moments())
        save_checkpoint(
            self._run.out / "checkpoints",
            step=self._done,
            model=self.model,
            optimizers=[self.optimizer],
            state={
                "ledger": kept.ledger.as_fields(),
                "next_group": kept.next_group,
                "open": list(kept.open),
            },
            files={BUFFER: pack([member for members in kept.ready for member in members])},
        )
        self._saved_at = self._done


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


def saved_in(found: Checkpoint, group_size: int) -> Saved:
    """What a checkpoint kept of rollouts. Raises ValueError where ledger and groups do not balance."""
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
