"""Writes a corpus of certified tasks, and demonstrations beside them. Run again, it resumes.

Example: worldsmith synth --family general --domain all --count 800 --seed 1 --out corpora/train

With --twins tasks come in pairs that differ in one fact of their worlds, so that another behaviour is right
(docs/corpus.md).

With --target-pass-rate 0.5 --from-run RUN the tasks are not spread evenly over domains and levels, but so
that the policy that RUN played is predicted to pass half of them: an item-response model over the dials.

Each task comes from its own seed and passes every gate (see docs/corpus.md) or is refused; what was refused,
and why, is counted in DIR/README.md, with what the gates measured. The same arguments give the same bytes for
any number of workers.
"""

import argparse
import json
import os
import sys
from collections import Counter
from contextlib import ExitStack
from dataclasses import replace
from functools import cache
from pathlib import Path

from synthesis.corpus import Manifest, Shard
from synthesis.general import DOMAINS, FAMILY
from synthesis.grammar import twin_levels
from synthesis.pipeline import synthesize
from synthesis.shard_plan import DEFAULT_LEVELS, SynthConfig, plan_shards
from worldsmith.aiming import aim_table, aimed
from worldsmith.arguments import CommandParser, did_you_mean
from worldsmith.progress import Progress

FEW_SHARDS = 8
"""So few shards are made sooner in this process than Ray starts."""


def main(argv: list[str]) -> int:
    parser = _parser()
    args = parser.parse_args(argv)
    if args.list_domains:
        print(json.dumps(_domains()) if args.json else _domain_table())
        return 0
    _check_given(parser, args)
    config = _config(args)
    if args.target_pass_rate is not None:
        config = _aimed(config, args)
    elif args.from_run is not None:
        raise ValueError("--from-run needs --target-pass-rate P, the share that its policy is to pass")
    specs = plan_shards(config)
    workers = args.workers
    if workers is None:
        workers = 0 if len(specs) <= FEW_SHARDS else len(os.sched_getaffinity(0))
    if args.dry_run:
        return _show_plan(config, args)
    total = sum(spec.rows for spec in specs)
    rejections: Counter[str] = Counter()
    with ExitStack() as stack:
        # Shown from the first shard on: a directory that is refused gets its one line alone.
        progress = cache(lambda: stack.enter_context(Progress("synth", total=total, unit="admitted")))

        def on_shard(shard: Shard) -> None:
            rejections.update(shard.rejections)
            progress().advance(shard.rows, note=rejection_note(rejections))

        def on_found(shard: Shard) -> None:
            rejections.update(shard.rejections)
            progress().resume_at(progress().done + shard.rows, note=rejection_note(rejections))

        if args.sandbox is not None:
            _say_boxes(args.sandbox)
        manifest = synthesize(
            config, args.out, workers=workers, on_shard=on_shard, on_found=on_found, sandbox=args.sandbox
        )
    return _report(manifest, args)


def _check_given(parser: CommandParser, args: argparse.Namespace) -> None:
    missing = [f"--{name}" for name in ("count", "seed", "out") if getattr(args, name) is None]
    if missing:
        parser.error(f"{', '.join(missing)} missing")
    for name in ("demonstrations", "twins") if args.sandbox is not None else ():
        if getattr(args, name):
            parser.error(f"--sandbox makes no {name}, which are made in this process; leave one of them out")


def rejection_note(rejections: Counter[str]) -> str:
    """`14 refused: G4 guessing 12, G13 necessity 2`, the three commonest reasons."""
    shown = ", ".join(f"{reason} {count:,}" for reason, count in rejections.most_common(3))
    return f"{rejections.total():,} refused" + f": {shown}" * bool(shown)


def _parser() -> CommandParser:
    parser = CommandParser("synth", __doc__)
    parser.add_argument(
        "--family", default=FAMILY, choices=(FAMILY,), help="the family of tasks (default: general)"
    )
    parser.add_argument(
        "--domain", default="all", help="a domain's name, several joined by commas, or all (default)"
    )
    parser.add_argument(
        "--count", type=_count, help="accepted tasks in all, spread evenly over domains and levels"
    )
    parser.add_argument(
        "--seed", type=int, help="another seed gives other worlds: held-out corpora are made so"
    )
    parser.add_argument(
        "--out", type=Path, metavar="DIR", help="the corpus' directory; a half-made one is resumed"
    )
    shown = ",".join(map(str, DEFAULT_LEVELS))
    parser.add_argument(
        "--levels", type=_integers, help=f"joined by commas (default: {shown}; all when they are aimed at)"
    )
    parser.add_argument(
        "--target-pass-rate", type=float, metavar="P",
        help="choose levels that the policy of --from-run passes with this rate",
    )  # fmt: skip
    parser.add_argument("--from-run", type=Path, metavar="RUN", help="a directory that eval or train wrote")
    parser.add_argument(
        "--workers", type=_count, help="Ray workers (default: one a core; 0: none, in this process)"
    )
    parser.add_argument(
        "--demonstrations", type=_count, default=0, metavar="N", help="conversations for a cold start"
    )
    parser.add_argument(
        "--demonstration-levels",
        type=_integers,
        default=(),
        help="their levels (default: those that may be shown)",
    )
    parser.add_argument(
        "--slip-rate", type=_numbers, default=(0.0,), metavar="R[,R...]",
        help="how likely a demonstrator slips at each chance; several take turns (default: 0)",
    )  # fmt: skip
    parser.add_argument(
        "--sandbox", choices=("auto", "docker", "namespaces"), metavar="TIER",
        help="make and try candidates in boxes (auto, docker, namespaces); the bytes are the same",
    )  # fmt: skip
    parser.add_argument(
        "--twins",
        action="store_true",
        help="tasks in pairs, each with its twin, where there are twins (--count counts both)",
    )
    parser.add_argument("--shard-rows", type=_count, default=25, help="tasks in a shard (default: 25)")
    parser.add_argument("--dry-run", action="store_true", help="print the plan and make nothing")
    parser.add_argument("--list-domains", action="store_true", help="list the domains and their levels")
    parser.add_argument(
        "--json", action="store_true", help="one JSON object on the last line of standard output"
    )
    return parser


def _config(args: argparse.Namespace) -> SynthConfig:
    names = args.domain.split(",")
    if args.domain == "all":
        names = [name for name, domain in DOMAINS.items() if twin_levels(domain) or not args.twins]
    for name in names:
        if name not in DOMAINS:
            hint = did_you_mean(name, list(DOMAINS))
            raise ValueError(
                f"--domain: no domain {name!r}{hint} (worldsmith synth --list-domains lists all)"
            )
    return SynthConfig(
        count=args.count,
        seed=args.seed,
        family=args.family,
        domains=tuple(names),
        levels=args.levels or _default_levels(args, names),
        demonstrations=args.demonstrations,
        demonstration_levels=args.demonstration_levels,
        slip_rates=args.slip_rate,
        shard_rows=args.shard_rows,
        twins=args.twins,
    )


def _default_levels(args: argparse.Namespace, names: list[str]) -> tuple[int, ...]:
    if args.target_pass_rate is None:
        return DEFAULT_LEVELS
    return tuple(sorted({level for name in names for level in DOMAINS[name].levels}))


def _aimed(config: SynthConfig, args: argparse.Namespace) -> SynthConfig:
    target, run = args.target_pass_rate, args.from_run
    if not 0 < target < 1:
        raise ValueError(f"--target-pass-rate must lie between 0 and 1, got {target:g}")
    if run is None:
        raise ValueError("--target-pass-rate needs --from-run RUN, whose policy is to pass that share")
    if not config.count:
        raise ValueError("--target-pass-rate aims tasks, and --count is 0")
    each = 2 if config.twins else 1
    counts, predictions = aimed(run, config.cells(), target=target, count=config.count // each)
    counts = {cell: number * each for cell, number in counts.items()}
    print(aim_table(counts, predictions, target), file=sys.stderr)
    cells = tuple((*cell, number) for cell, number in counts.items() if number)
    return replace(config, counts=cells)


def _say_boxes(tier: str) -> None:
    """Says which tier boxes have, before anything is made; SandboxUnavailableError where none works."""
    from envs.sandbox.choose import choose_sandbox

    choose_sandbox(tier)


def _show_plan(config: SynthConfig, args: argparse.Namespace) -> int:
    specs = plan_shards(config)
    rows: Counter[tuple[str, str, int]] = Counter()
    for spec in specs:
        rows[spec.kind, spec.domain, spec.level] += spec.rows
    if args.json:
        cells = [
            dict(zip(("kind", "domain", "level"), cell, strict=True)) | {"rows": n}
            for cell, n in rows.items()
        ]
        print(json.dumps({"shards": len(specs), "cells": cells, "out": str(args.out)}))
        return 0
    for (kind, domain, level), count in rows.items():
        print(f"{kind:<15} {domain:<10} level {level}  {count:>7,}")
    print(f"{len(specs)} shards would be written to {args.out}")
    return 0


def _report(manifest: Manifest, args: argparse.Namespace) -> int:
    wanted = args.count + args.demonstrations
    made = manifest.num_tasks + manifest.num_demonstrations
    rejections: Counter[str] = Counter()
    for shard in manifest.shards:
        rejections.update(
            {f"{shard.domain} level {shard.level}: {r}": n for r, n in shard.rejections.items()}
        )
    if args.json:
        counts = {"tasks": manifest.num_tasks, "demonstrations": manifest.num_demonstrations}
        print(
            json.dumps(
                {
                    **counts,
                    "rejections": rejections,
                    "out": str(args.out),
                    "config_hash": manifest.config_hash,
                }
            )
        )
    else:
        print(
            f"{manifest.num_tasks:,} tasks and {manifest.num_demonstrations:,} demonstrations in {args.out}"
        )
        for reason, count in rejections.most_common(10):
            print(f"  refused {count:,}: {reason}")
    failed = [check for check in manifest.checks if not check.passed]
    for check in failed:
        print(
            f"worldsmith synth: {check.where}: {check.name} does not hold for the corpus: {check.evidence}",
            file=sys.stderr,
        )
    if made < wanted:
        print(
            f"worldsmith synth: {wanted - made:,} fewer rows than asked for: too many were refused,"
            f" see the rejections in {args.out}/corpus.json",
            file=sys.stderr,
        )
    return 1 if failed or made < wanted else 0


def _domains() -> dict[str, dict[str, object]]:
    return {
        name: {
            "version": domain.version,
            "levels": list(domain.levels),
            "twin_levels": list(twin_levels(domain)),
            "shown_levels": list(domain.shown_levels),
        }
        for name, domain in DOMAINS.items()
    }


def _domain_table() -> str:
    return "\n".join(
        f"{name:<10} levels {', '.join(map(str, domain.levels))}; shown to a cold start: "
        f"{', '.join(map(str, domain.shown_levels))}; {len(domain.tools)} tools"
        for name, domain in DOMAINS.items()
    )


def _integers(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not whole numbers joined by commas") from None


def _numbers(text: str) -> tuple[float, ...]:
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not numbers joined by commas") from None


def _count(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 0 on")
    return int(text)
