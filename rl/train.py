"""A training run, from top to bottom: tokenizer, cold start, evaluation, GRPO, evaluation.

`rl.pipeline` puts several of them in a row.

    train(config, data, out)
        learn_tokenizer      pieces from the demonstrations, or with `start` what that policy has
        cold_start           demonstrations, clean ones first, then mixed
        evaluate "before"
        reinforce            each step: publish weights, play groups, one learner step
        evaluate "after"

Run again on the same directory, it goes on where it was: each stage keeps checkpoints, steps are drawn from
(seed, step) alone, and nothing is trained or evaluated twice.
"""

import difflib
import os
import random
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from envs.files import write_whole
from envs.task import stable_seed
from policies.model.checkpoint import load_model, save_model
from policies.model.config import read_config, tiny_config
from policies.model.decoder import WorldsmithForCausalLM
from policies.tokenizer import TextCodec, build_tokenizer, learn_pieces, load_tokenizer
from rl.budget import Compute, active_parameters
from rl.checkpoints import latest_checkpoint, load_checkpoint_model, load_optimizers, save_checkpoint
from rl.cold_start import (
    Phase,
    StepMetrics,
    batches,
    learning_rate_at,
    make_optimizers,
    phases,
    train_on,
)
from rl.config import TrainConfig
from rl.groups import check_tasks
from rl.measure import baselines, evaluate, lessons_note, record_compute
from rl.observer import Observer, Silent
from rl.ray_session import ray_session
from rl.reinforce import reinforce
from rl.replica_workers import AnyWorkers, check_engine, replica_config, start_players
from rl.run import Data, Run, open_log
from rl.run_files import RunLog, mend_metrics, trim_metrics
from rl.stopping import Stopping, graceful
from rl.transcript import Demonstration, Transcript, conversation_text, encode_conversation

TOKENIZER_SAMPLE = 2000
FROM_TOKENIZER = ("vocab_size", "bos_token_id", "eos_token_id", "pad_token_id")
TOKENIZER_FILES = ("tokenizer_config.json", "tokenizer.json")

GRACE_S = 25.0
"""After SIGTERM a step may still take so long, to be saved; orchestrators kill after 30 s."""


def train(
    config: TrainConfig,
    data: Data,
    out: Path,
    observer: Observer | None = None,
    log: RunLog | None = None,
    *,
    before: Compute | None = None,
) -> dict[str, Any]:
    """Runs, or goes on with, the run in `out`; returns the closing evaluation's figures.

    before: what the runs that this one follows have spent. The caller holds the directory
    (`rl.run_files.locked`) from before it opens a log there. Raises Terminated after SIGTERM, with what was
    learnt saved.
    """
    check_run(config, data)
    log = log or open_log(config, out)
    mend_metrics(out)
    with graceful(GRACE_S) as stop:
        run = Run(
            config=config,
            data=data,
            out=out,
            log=log,
            observer=observer or Silent(),
            stop=stop,
            before=before or Compute(),
        )
        return _train(run)


def check_run(config: TrainConfig, data: Data) -> None:
    """Raises ValueError for what would end the run later, when there is something in its directory."""
    check_engine(config.rollout.engine)
    check_tasks(config.rl, data.tasks)
    if config.start is None:
        check_sizes(config.model.sizes)
    else:
        load_tokenizer(Path(config.start))
        read_config(Path(config.start))


def check_sizes(sizes: Mapping[str, int | float | str]) -> None:
    """Raises ValueError for sizes that no model has, or that cannot go together."""
    example = tiny_config(8)
    for name in sizes:
        if name not in example.to_dict() or name in FROM_TOKENIZER:
            choices = [known for known in example.to_dict() if known not in FROM_TOKENIZER]
            nearest = difflib.get_close_matches(name, choices, n=1, cutoff=0.6)
            hint = f"; did you mean {nearest[0]}?" if nearest else ""
            raise ValueError(f"model.sizes: {name} is no size that can be set{hint}")
    try:
        tiny_config(1000, **sizes)
    except ValueError as error:
        raise ValueError(f"model.sizes: {error}") from None


def _train(run: Run) -> dict[str, Any]:
    config, data = run.config, run.data
    run.log.record["counts"] |= {
        "train_tasks": len(data.tasks),
        "heldout_tasks": len(data.heldout),
        "demonstrations": len(data.clean) + len(data.mixed),
    }
    if config.cold_start.num_steps:
        run.log.note(lessons_note(data))
    codec = learn_tokenizer(run)
    model = cold_start(run, codec)
    baselines(run)
    with ray_session(config.ray_slots):
        workers = start_workers(run)
        summary = evaluate(run, workers, model, when="before", step=0)
        if config.rl.steps:
            steps = reinforce(run, workers, model, codec)
            summary = evaluate(run, workers, model, when="after", step=steps)
        workers.close()
    record_compute(run, model)
    save_model(model, run.out / "policy")
    run.log.finish()
    run.observer.wrote()
    return summary


def learn_tokenizer(run: Run) -> TextCodec:
    """The tokenizer, learnt once from a sample of the demonstrations and kept with the policy."""
    directory = run.out / "policy"
    if run.config.start is not None:
        copy_tokenizer(Path(run.config.start), directory)
    elif not (directory / "tokenizer.json").exists():
        with run.log.stage("tokenizer"):
            rng = random.Random(stable_seed(run.config.seed, "tokenizer"))
            every = [*run.data.clean, *run.data.mixed]
            sample = rng.sample(every, min(len(every), TOKENIZER_SAMPLE))
            pieces = learn_pieces(
                [conversation_text(d) for d in sample], max_pieces=run.config.model.max_pieces
            )
            temporary = run.out / ".policy.tmp"
            build_tokenizer(pieces).save_pretrained(temporary)
            copy_tokenizer(temporary, directory)
    return TextCodec(load_tokenizer(directory))


def copy_tokenizer(source: Path, directory: Path) -> None:
    """Raises ValueError where `source` has none."""
    load_tokenizer(source)
    directory.mkdir(parents=True, exist_ok=True)
    for name in TOKENIZER_FILES:
        write_whole(directory / name, (source / name).read_bytes())


def cold_start(run: Run, codec: TextCodec) -> WorldsmithForCausalLM:
    """The model after its demonstrations; goes on from the newest checkpoint."""
    config, directory = run.config.cold_start, run.out / "checkpoints" / "cold-start"
    found = latest_checkpoint(directory)
    torch.manual_seed(stable_seed(run.config.seed, "model") % 2**31)
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    model = load_checkpoint_model(found) if found else first_model(run, codec)
    start, tokens = (found.step, int(found.state["tokens"])) if found else (0, 0)
    run.log.record["counts"] |= {
        "parameters": sum(p.numel() for p in model.parameters()),
        "active_parameters": active_parameters(model),
        "vocabulary": codec.vocab_size,
    }
    if start == config.num_steps:
        return model
    optimizers = make_optimizers(
        model,
        learning_rate=config.learning_rate,
        muon_learning_rate=config.muon_learning_rate,
        indexer_learning_rate=config.indexer_learning_rate,
    )
    if found:
        load_optimizers(found, optimizers)
    trim_metrics(run.out, kind="cold_start", from_step=start)
    with run.log.stage("cold start"):
        run.observer.begin("cold start", total=config.num_steps, done=start, unit="steps")
        started, started_tokens = time.monotonic(), tokens
        plan = phases(
            clean=config.clean_steps,
            warm_up=config.warm_up_steps,
            sparse=config.sparse_steps,
            indexer_every=config.indexer_every,
        )
        for number, phase in enumerate(plan):
            left = range(max(start, phase.steps.start), phase.steps.stop)
            if not left:
                continue
            model.config.token_selector = phase.selector
            source = batches(
                lessons_of(run, phase, codec),
                tokens_per_batch=config.tokens_per_batch,
                pad_id=codec.pad_id,
                rng=random.Random(stable_seed(run.config.seed, "cold start", number)),
                skip=left.start - phase.steps.start,
            )
            trained = train_on(
                model,
                optimizers,
                source,
                steps=left,
                scale=lambda step: learning_rate_at(step, config.num_steps, 1.0),
                indexer_every=phase.indexer_every,
            )
            for metrics in unbroken(trained, run.stop):
                tokens += metrics.num_tokens
                seconds = time.monotonic() - started
                rate = (tokens - started_tokens) / seconds
                run.log.metric("cold_start", cold_start_fields(metrics, phase, tokens, rate, seconds))
                run.observer.advance(1, f"loss {metrics.loss:.3f}")
                done = metrics.step + 1
                if done % config.checkpoint_every == 0 or done == config.num_steps or run.stop.asked:
                    state = {"tokens": tokens}
                    save_checkpoint(directory, step=done, model=model, optimizers=optimizers, state=state)
                if done % 10 == 0:
                    run.observer.wrote()
        run.observer.end()
    return model


def unbroken(steps: Iterator[StepMetrics], stop: Stopping) -> Iterator[StepMetrics]:
    """The steps, each of them with what follows it not to be cut in two by SIGTERM."""
    while True:
        with stop.deferred():
            metrics = next(steps, None)
            if metrics is None:
                return
            yield metrics


def cold_start_fields(
    metrics: StepMetrics, phase: Phase, tokens: int, tokens_per_s: float, seconds: float
) -> dict[str, Any]:
    return {
        "step": metrics.step,
        "phase": f"{phase.demonstrations}, {phase.selector} attention",
        "loss": metrics.loss,
        "indexer_loss": None if metrics.indexer_loss != metrics.indexer_loss else metrics.indexer_loss,
        "tokens": tokens,
        "tokens_per_s": tokens_per_s,
        "seconds": seconds,
    }


def first_model(run: Run, codec: TextCodec) -> WorldsmithForCausalLM:
    """Before any step of this run: the policy of `start`, or a new one."""
    if run.config.start is not None:
        return load_model(run.config.start)
    tokenizer = codec.tokenizer
    special = {
        "pad_token_id": tokenizer.pad_token_id,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
    }
    return WorldsmithForCausalLM(tiny_config(codec.vocab_size, **special, **run.config.model.sizes))


def lessons_of(run: Run, phase: Phase, codec: TextCodec) -> Sequence[Transcript]:
    if phase.demonstrations == "mixed" and run.data.lessons:
        return run.data.lessons
    return encode_all({"clean": run.data.clean, "mixed": run.data.mixed}[phase.demonstrations], codec)


def encode_all(demonstrations: Sequence[Demonstration], codec: TextCodec) -> list[Transcript]:
    return [encode_conversation(d.messages, d.tools, codec) for d in demonstrations]


def start_workers(run: Run) -> AnyWorkers:
    """Rollout actors over the training tasks, then the held-out ones: one list, so that an index names a
    task.
    """
    rollout = run.config.rollout
    save_model(_policy_shell(run), run.out / "policy")
    replica = replica_config(rollout, run.out / "policy")
    tasks = [*run.data.tasks, *run.data.heldout]
    return start_players(rollout.engine, replica, tasks, rollout.workers)


def _policy_shell(run: Run) -> WorldsmithForCausalLM:
    found = latest_checkpoint(run.out / "checkpoints") or latest_checkpoint(
        run.out / "checkpoints" / "cold-start"
    )
    if found is None:
        assert run.config.start is not None, "a cold start leaves a checkpoint"
        return load_model(run.config.start)
    return load_checkpoint_model(found)
