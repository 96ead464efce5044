"""The stabilisers, each switched off in turn, on rollouts that are stale, cut by top-p, played in bfloat16.

mismatch: eight updates of GRPO from the cold start of RUN; the weights of 0, 2, 4 and 8 updates ago play the
same tasks in float32 and in bfloat16; the newest weights score what was played, in float32, and estimate the
gradient of their KL to the first ones.
curves: GRPO from that cold start whose rollouts are some updates old, held-out pass rates on the way.
Both go on where they were; figures and tables are in OUT.

worldsmith demo --out runs/demo
python -m benchmarks.stabilisers --run runs/demo --out runs/stabilisers --plot docs/images/stabilisers.png
"""

import argparse
import json
import math
import shutil
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from benchmarks.mismatch import (
    EVERYTHING,
    NOTHING,
    VARIANTS,
    Variant,
    ablate,
    freeze_indexer,
    kl_gradients,
    laid_out,
    policy_gradient,
)
from benchmarks.settings import check_settings
from benchmarks.stabiliser_tables import plot, tables
from benchmarks.stale_training import Start, curve, read_start, replica, train_stale
from envs.files import write_whole
from envs.task import stable_seed
from policies.engine import Sampling
from policies.model.checkpoint import load_model, save_model
from policies.model.decoder import WorldsmithForCausalLM
from policies.weights import publish, verified_state
from rl.advantage import group_advantages, rewards_of
from rl.evaluate import requests_for
from rl.losses import LossConfig
from rl.observer import Silent
from rl.rollout_worker import InProcess
from rl.trajectory import PlayableTask, Trajectory
from worldsmith.corpora import playable_tasks
from worldsmith.progress import Progress

DTYPES = ("float32", "bfloat16")
GROUP_SIZE = 8


@dataclass(frozen=True, kw_only=True, slots=True)
class Settings:
    """Each is an option of the command. A set of rollouts is `samples` of each of `tasks`."""

    domain: str = "trip"
    levels: tuple[int, ...] = (1, 2, 3)
    top_p: float = 0.9
    """Of every rollout."""
    delta: float = 0.1
    """Of off-policy masking, nats."""
    staleness: tuple[int, ...] = (0, 2, 4, 8)
    """Updates that the weights of the mismatch's rollouts are old."""
    tasks: int = 32
    samples: int = 16
    """A multiple of 8."""
    rounds: int = 12
    """So many sets of rollouts give the right gradient."""
    lag: int = 4
    """Updates that the weights of the curves' rollouts are old."""
    steps: int = 12
    played: int = 16
    """Groups of 8 a step."""
    trained: int = 8
    """Groups of them that are trained on, those that teach first."""
    evaluate_every: int = 4
    heldout: int = 150
    """Tasks that the curves are evaluated on, once each."""
    seeds: int = 3

    def changes(self, *, dtype: str, variant: Variant, steps: int, seed: int) -> dict[str, Any]:
        """Of a run's configuration, for a short training by this variant."""
        keep = variant.keep
        return {
            "seed": seed,
            "rl": {
                "steps": steps,
                "groups_per_step": self.played,
                "groups_trained": self.trained,
                "rows_per_micro_batch": GROUP_SIZE * math.gcd(self.trained, 8),
                "group_size": GROUP_SIZE,
                "levels": list(self.levels),
                "checkpoint_every": steps,
                "loss": {"kl_weight": 0.0, "off_policy_delta": self.delta if variant.masked else None},
            },
            "rollout": {
                "engine": "in_process",
                "workers": 0,
                "boxes": 0,
                "max_staleness": 0,
                "dtype": dtype,
                "top_p": self.top_p,
                "keep_routing": keep.routing,
                "keep_selection": keep.selection,
                "keep_sampling_mask": keep.sampling_mask,
            },
            "eval": {"samples": 1, "every": self.evaluate_every},
        }


@dataclass(frozen=True, kw_only=True, slots=True)
class Bench:
    settings: Settings
    run: Path
    out: Path
    tasks: list[PlayableTask]
    heldout: list[PlayableTask]

    def start(self, *, dtype: str, variant: Variant = EVERYTHING, steps: int, seed: int = 0) -> Start:
        changes = self.settings.changes(dtype=dtype, variant=variant, steps=steps, seed=seed)
        return read_start(self.run, self.tasks, self.heldout, **changes)


def measure_mismatch(bench: Bench) -> dict[str, Any]:
    """Writes OUT/mismatch.json, a set of rollouts at a time."""
    settings, path = bench.settings, bench.out / "mismatch.json"
    found: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {"cells": []}
    newest = max(settings.staleness)
    train_versions(bench, newest)
    start = bench.start(dtype="float32", steps=newest)
    model = freeze_indexer(load_model(version_at(bench.out, newest)))
    plan = [(dtype, stale) for dtype in DTYPES for stale in settings.staleness]
    total = settings.rounds + len(plan) + len(settings.staleness)
    with Progress("rollouts", total=total, unit="sets") as progress:
        right, found["reference"] = reference_gradient(bench, start, model, progress)
        known = {(c["dtype"], c["stale"]) for c in found["cells"]}
        by_staleness: dict[str, Any] = found.setdefault("kl", {})
        missing = [str(stale) for stale in settings.staleness if str(stale) not in by_staleness]
        progress.resume_at(total - len(set(plan) - known) - len(missing))
        for dtype, stale in plan:
            if (dtype, stale) not in known:
                played = play(bench, dtype, newest - stale, seed=stable_seed("mismatch"))
                cells = ablate(
                    model,
                    played,
                    right,
                    loss_of(start),
                    group_size=GROUP_SIZE,
                    temperature=temperature_of(start),
                )
                about = {"dtype": dtype, "stale": stale, "pass_rate": pass_rate(played)}
                found["cells"] += [about | one for one in cells]
                write_whole(path, json.dumps(found, indent=1).encode())
                progress.advance(note=f"{dtype}, {stale} updates old")
        reference = load_model(version_at(bench.out, 0))
        for stale in missing:
            played = play(bench, "float32", newest - int(stale), seed=stable_seed("mismatch"))
            by_staleness[stale] = kl_gradients(model, reference, played, temperature=temperature_of(start))
            write_whole(path, json.dumps(found, indent=1).encode())
            progress.advance(note=f"KL, {stale} updates old")
    return found


def train_versions(bench: Bench, newest: int) -> None:
    """Weights of so many updates of synchronous GRPO in float32, at OUT/weights."""
    if version_at(bench.out, newest).exists():
        return
    start, scratch = bench.start(dtype="float32", steps=newest), bench.out / "versions"
    shutil.rmtree(scratch, ignore_errors=True)
    with Progress("updates", total=newest, unit="steps") as progress:
        model, worker = train_stale(start, scratch, lag=0, observer=Counting(progress), evaluated=False)
    shell = start.load()
    for version, published in worker.known.items():
        shell.load_state_dict(verified_state(published))
        save_model(shell, version_at(bench.out, version))
    save_model(model, version_at(bench.out, newest))  # last: it says that all are there
    shutil.rmtree(scratch)


def version_at(out: Path, version: int) -> Path:
    return out / "weights" / f"version-{version}"


def play(bench: Bench, dtype: str, version: int, *, seed: int) -> list[Trajectory]:
    """The bench's first tasks, each some times, by one version of the weights."""
    settings = bench.settings
    start = bench.start(dtype=dtype, steps=1)
    rollout = start.config.rollout
    tasks = bench.tasks[: settings.tasks]
    worker = InProcess(replica(start), tasks)
    worker.load(publish(load_model(version_at(bench.out, version)), version=version))
    requests = requests_for([one.task.task_id for one in tasks], samples=settings.samples, seed=seed)
    sampling = Sampling(
        temperature=rollout.temperature, top_p=settings.top_p, max_new_tokens=rollout.max_new_tokens
    )
    return worker.play(requests, sampling)


def reference_gradient(
    bench: Bench, start: Start, model: WorldsmithForCausalLM, progress: Progress
) -> tuple[torch.Tensor, dict[str, Any]]:
    """Over `rounds` sets of rollouts by the model's own weights in float32; kept in OUT."""
    path, rounds = bench.out / "reference.safetensors", bench.settings.rounds
    if not path.exists():
        halves: list[torch.Tensor] = [torch.zeros(0), torch.zeros(0)]
        rates: list[float] = []
        for number in range(rounds):
            newest = max(bench.settings.staleness)
            played = play(bench, "float32", newest, seed=stable_seed("reference", number))
            advantages = group_advantages(rewards_of(played), GROUP_SIZE)
            found = policy_gradient(
                model,
                laid_out(played),
                advantages,
                EVERYTHING,
                loss_of(start),
                temperature=temperature_of(start),
            )
            half = halves[number % 2]
            halves[number % 2] = found.gradient if not len(half) else half + found.gradient
            rates.append(pass_rate(played))
            progress.advance(note="the right gradient")
        save_file({"first": halves[0], "second": halves[1], "pass_rates": torch.tensor(rates)}, path)
    else:
        progress.resume_at(rounds)
    kept = load_file(path)
    first, second = kept["first"], kept["second"]
    told = {
        "episodes": rounds * bench.settings.tasks * bench.settings.samples,
        "pass_rate": kept["pass_rates"].mean().item(),
        "halves_cosine": torch.nn.functional.cosine_similarity(first, second, dim=0).item(),
        "norm": ((first + second) / rounds).norm().item(),
    }
    return (first + second) / rounds, told


def loss_of(start: Start) -> LossConfig:
    return LossConfig(**start.config.rl.loss.model_dump())


def temperature_of(start: Start) -> float:
    return start.config.rollout.temperature


def pass_rate(played: list[Trajectory]) -> float:
    return rewards_of(played).nanmean().item()


def measure_curves(bench: Bench) -> dict[str, Any]:
    """Writes OUT/curves/VARIANT-seed-N.json, a training at a time, all on and all off before the rest."""
    folder, settings = bench.out / "curves", bench.settings
    folder.mkdir(parents=True, exist_ok=True)
    variants = sorted(VARIANTS, key=lambda variant: variant not in (EVERYTHING, NOTHING))
    plan = [(seed, variant) for variant in variants for seed in range(settings.seeds)]
    missing = [(s, v) for s, v in plan if not curve_file(bench.out, v, s).exists()]
    total = len(plan) * settings.steps
    with Progress("updates", total=total, unit="steps") as progress:
        progress.resume_at(total - len(missing) * settings.steps)
        for seed, variant in missing:
            start = bench.start(dtype="bfloat16", variant=variant, steps=settings.steps, seed=seed)
            scratch = folder / "now"
            shutil.rmtree(scratch, ignore_errors=True)
            note = f"{variant.name}, seed {seed}"
            train_stale(start, scratch, lag=settings.lag, observer=Counting(progress, note))
            found = {"variant": variant.name, "seed": seed, **curve(scratch)}
            write_whole(curve_file(bench.out, variant, seed), json.dumps(found).encode())
            shutil.rmtree(scratch)
    return {"curves": list(read_curves(bench.out))}


def curve_file(out: Path, variant: Variant, seed: int) -> Path:
    return out / "curves" / f"{variant.name.replace(' ', '-')}-seed-{seed}.json"


def read_curves(out: Path) -> Iterator[dict[str, Any]]:
    for path in sorted((out / "curves").glob("*-seed-*.json")):
        yield json.loads(path.read_text())


class Counting(Silent):
    """Counts a training's steps on a line of progress over all of them."""

    def __init__(self, progress: Progress, note: str = "") -> None:
        self._progress, self._note = progress, note

    def advance(self, count: int, note: str = "") -> None:
        self._progress.advance(count, note=f"{self._note} {note}".strip())


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--run", type=Path, required=True, metavar="RUN", help="as worldsmith demo leaves it")
    parser.add_argument("--out", type=Path, required=True, metavar="OUT", help="where figures go")
    parser.add_argument("--only", choices=("mismatch", "curves", "tables"), help="one part (default: all)")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="draw both (.png)")
    for name, value in asdict(Settings()).items():
        several = isinstance(value, tuple)
        kind = type(value[0] if several else value)
        shown = " ".join(map(str, value)) if several else value
        option = f"--{name.replace('_', '-')}"
        nargs = "+" if several else None
        parser.add_argument(option, type=kind, nargs=nargs, default=value, help=f"default: {shown}")
    args = parser.parse_args(argv)
    settings = Settings(**{name: settled(getattr(args, name)) for name in asdict(Settings())})
    args.out.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    parts = {"mismatch": measure_mismatch, "curves": measure_curves}
    bench = None
    for name, measure in parts.items():
        if args.only in (None, name):
            check_settings(args.out / f"{name}-settings.json", asdict(settings), asdict(Settings()))
            bench = bench or make_bench(settings, args.run, args.out)
            measure(bench)
    mismatch_path = args.out / "mismatch.json"
    mismatch = json.loads(mismatch_path.read_text()) if mismatch_path.exists() else {"cells": []}
    curves = list(read_curves(args.out))
    text = tables(mismatch, curves)
    write_whole(args.out / "tables.md", text.encode())
    print(text)
    if args.plot:
        plot(mismatch, curves, args.plot)
    return 0


def settled(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def make_bench(settings: Settings, run: Path, out: Path) -> Bench:
    """Raises SystemExit where the run has too few such tasks."""
    parts: list[list[PlayableTask]] = []
    for name in ("corpus", "heldout"):
        every = playable_tasks(run / name)
        mine = [t for t in every if t.task.domain == settings.domain and t.task.level in settings.levels]
        parts.append(mine)
    tasks, heldout = parts[0], parts[1][: settings.heldout]
    if len(tasks) < settings.tasks or not heldout:
        raise SystemExit(
            f"{run}: {len(tasks)} tasks and {len(heldout)} held-out ones of {settings.domain}, levels"
            f" {settings.levels}; {settings.tasks} and 1 are needed: choose others by --domain, --levels"
        )
    return Bench(settings=settings, run=run, out=out, tasks=tasks, heldout=heldout)


if __name__ == "__main__":
    sys.exit(main())
