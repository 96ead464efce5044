"""Measure difficulty without a model: how often agents of graded ability solve tasks, as each dial is turned.

Dials: items, offers and rules of the warehouse's purchases (`synthesis.domains.warehouse_bundle`), one turned
at a time while the others stay, on worlds of the same seeds; and, with --levels, each domain's levels. An
agent (`synthesis.graded`) plays each task once; intervals are Wilson's at 95 %. A dial *falls* for an agent
when no step up raises the pass rate; a step rises *clearly* when it does so by more than chance explains (a
z-test of two shares at 5 %). The last line of --json is one JSON object.

Run as a module: `python -m benchmarks.difficulty`.
"""

import argparse
import json
import math
import os
import platform
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from functools import partial
from itertools import pairwise
from multiprocessing import get_context

from envs.task import stable_seed
from envs.tool_server import ToolServer
from envs.verifier import Episode, grade_answers
from envs.world import build_image
from synthesis.domains.warehouse_bundle import Dials, draft_at
from synthesis.domains.warehouse_tools import TOOLSETS
from synthesis.general import DOMAINS, domain_named, make_task
from synthesis.graded import ABILITIES, graded_plan
from synthesis.grammar import Draft
from synthesis.tally import wilson

DIALS: dict[str, Sequence[int]] = {"items": (2, 3, 4, 5), "offers": (2, 3, 4, 5, 6), "rules": (0, 1, 2, 3)}
BASE = Dials()
MAX_SEEDS = 40
"""Tried for each task that is wanted."""
Z_ONE_SIDED = 1.645
Makes = Callable[[int], Draft | None]
Counts = dict[str, tuple[int, int]]
"""By agent: passed, played."""


def purchase(dial: str, value: int, index: int) -> Draft | None:
    seed = stable_seed("difficulty", index)
    dials = replace(BASE, **{dial: value})
    return draft_at(dials, "warehouse", 5, seed, TOOLSETS[index % len(TOOLSETS)])


def levelled(domain: str, level: int, index: int) -> Draft | None:
    return domain_named(domain).draft(level, stable_seed("difficulty", domain, level, index))


def passes(draft: Draft, ability: str, index: int) -> bool:
    """One episode: the agent's calls in a fresh world, judged by the task's verifier."""
    domain = domain_named(draft.domain)
    image = build_image(draft.tables)
    seed = stable_seed("difficulty", ability, index)
    plan = graded_plan(domain, draft, image, ABILITIES[ability], seed=seed)
    task = make_task(domain, draft, world_hash="", gold=plan)
    server = ToolServer(image, draft.tools)
    try:
        for call in plan.calls:
            server.call(call)
        episode = Episode(
            initial=image, final=server.snapshot(), journal=tuple(server.journal), answer=plan.answer
        )
    finally:
        server.close()
    return grade_answers(task, episode, [plan.answer])[0].score == 1.0


def measure(cell: tuple[Makes, int]) -> Counts:
    """The first drafts of a setting's seeds, each played once by every agent."""
    make, num_tasks = cell
    passed = dict.fromkeys(ABILITIES, 0)
    played = 0
    for index in range(num_tasks * MAX_SEEDS):
        if played == num_tasks:
            break
        draft = make(index)
        if draft is None:
            continue
        played += 1
        for ability in ABILITIES:
            passed[ability] += passes(draft, ability, index)
    return {ability: (count, played) for ability, count in passed.items()}


def rises(steps: Sequence[tuple[int, int]]) -> tuple[int, int]:
    """How many steps of a dial raise the pass rate, and how many clearly."""
    any_rise = clear = 0
    for (hits_a, n_a), (hits_b, n_b) in pairwise(steps):
        difference = hits_b / n_b - hits_a / n_a
        pooled = (hits_a + hits_b) / (n_a + n_b)
        error = math.sqrt(pooled * (1 - pooled) * (1 / n_a + 1 / n_b))
        any_rise += difference > 0
        clear += error > 0 and difference / error > Z_ONE_SIDED
    return any_rise, clear


def table(name: str, settings: Sequence[int], found: Sequence[Counts]) -> list[dict[str, object]]:
    """Prints one dial's table; returns its rows."""
    rows: list[dict[str, object]] = []
    print(f"\n{name}: {', '.join(map(str, settings))}")
    for ability in (*ABILITIES, "all"):
        steps = [
            counts[ability]
            if ability != "all"
            else (sum(hits for hits, _ in counts.values()), sum(n for _, n in counts.values()))
            for counts in found
        ]
        if not all(played for _, played in steps):
            continue
        cells = []
        for hits, played in steps:
            low, high = wilson(hits, played)
            cells.append(f"{hits / played:.2f} ({low:.2f} to {high:.2f})")
        any_rise, clear = rises(steps)
        verdict = "falls" if not any_rise else f"rises at {any_rise} step(s), clearly at {clear}"
        print(f"  {ability:<16} {'  '.join(cells)}  {verdict}", flush=True)
        rows.append({"agent": ability, "passed": steps, "rises": any_rise, "clear_rises": clear})
    return rows


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tasks", type=int, default=150, help="tasks for each setting (default: 150)")
    parser.add_argument("--levels", action="store_true", help="each domain's levels, too")
    parser.add_argument("--workers", type=int, default=1, help="processes (default: 1)")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args(argv)
    if args.tasks < 1 or args.workers < 1:
        parser.error("--tasks and --workers must be at least 1")
    dials: dict[str, list[tuple[int, Makes]]] = {
        dial: [(value, partial(purchase, dial, value)) for value in values] for dial, values in DIALS.items()
    }
    if args.levels:
        for name, domain in DOMAINS.items():
            dials[f"{name}, level"] = [(level, partial(levelled, name, level)) for level in domain.levels]
    result: dict[str, object] = {"machine": platform.processor() or platform.machine(), "tasks": args.tasks}
    with ProcessPoolExecutor(args.workers, mp_context=get_context("spawn")) as pool:
        running = {
            name: [pool.submit(measure, (make, args.tasks)) for _, make in settings]
            for name, settings in dials.items()
        }
        result["dials"] = {
            name: table(name, [value for value, _ in dials[name]], [each.result() for each in futures])
            for name, futures in running.items()
        }
    if args.json:
        print(json.dumps(result | {"cores": os.cpu_count()}))
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
