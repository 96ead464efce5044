"""Measure difficulty without a model: how often agents of graded ability solve tasks, as each dial is turned.

Dials: items, offers and rules of the warehouse's purchases, patients and rules of the clinic's rounds,
sessions and rules of an event in rooms, one turned at a time while the others stay, on worlds of the same
seeds; and, with --levels, each domain's levels. An agent (`synthesis.graded`) plays each task once; intervals
are Wilson's at 95 %. Of each agent and dial: the drop from the first setting to the last with Newcombe's
interval, the largest rise, and whether chance explains it (`synthesis.monotone`, corrected by Holm for all
agents and dials of the run). The last line of --json is one JSON object.

Run as a module: `python -m benchmarks.difficulty`.
"""

import argparse
import json
import os
import platform
import sys
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from functools import partial
from multiprocessing import get_context
from typing import Any

from envs.task import stable_seed
from envs.tool_server import ToolServer
from envs.tools import Tool
from envs.verifier import Episode, grade_answers
from envs.world import build_image
from synthesis.domains import (
    clinic_round,
    clinic_tools,
    rooms_event,
    rooms_world,
    warehouse_bundle,
    warehouse_tools,
)
from synthesis.general import DOMAINS, domain_named, make_task
from synthesis.graded import ABILITIES, graded_plan
from synthesis.grammar import Draft
from synthesis.monotone import Trend, holm, trend
from synthesis.tally import wilson

MAX_SEEDS = 40
"""Tried for each task that is wanted."""
LEVEL = 5
ALL = "all"
Makes = Callable[[int], Draft | None]
Counts = dict[str, tuple[int, int]]
"""By agent: passed, played."""
Rows = dict[str, list[tuple[int, int]]]
"""By agent: passed and played at each setting."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Turned:
    """A domain's dials. draft_at: a seed's draft at any setting. values: what each dial is turned to."""

    draft_at: Callable[[Any, str, int, int, tuple[Tool, ...]], Draft | None]
    base: Any
    toolsets: Sequence[tuple[Tool, ...]]
    values: Mapping[str, Sequence[int]]


TURNED = {
    "warehouse": Turned(
        draft_at=warehouse_bundle.draft_at,
        base=warehouse_bundle.Dials(),
        toolsets=warehouse_tools.TOOLSETS,
        values={"items": (2, 3, 4, 5), "offers": (2, 3, 4, 5, 6), "rules": (0, 1, 2, 3)},
    ),
    "clinic": Turned(
        draft_at=clinic_round.round_at,
        base=clinic_round.RoundDials(),
        toolsets=clinic_tools.TOOLSETS,
        values={"patients": (2, 3, 4), "rules": (0, 1, 2)},
    ),
    "rooms": Turned(
        draft_at=rooms_event.event_at,
        base=rooms_event.EventDials(),
        toolsets=rooms_world.TOOLSETS,
        values={"sessions": (1, 2, 3), "rules": (0, 1, 2)},
    ),
}


def turned(domain: str, dial: str, value: int, index: int) -> Draft | None:
    """The index-th seed's draft with one dial turned."""
    seed, how = stable_seed("difficulty", index), TURNED[domain]
    dials = replace(how.base, **{dial: value})
    return how.draft_at(dials, domain, LEVEL, seed, how.toolsets[index % len(how.toolsets)])


def levelled(domain: str, level: int, index: int) -> Draft | None:
    return domain_named(domain).draft(level, stable_seed("difficulty", domain, level, index))


def passes(draft: Draft, ability: str, index: int) -> bool:
    """One episode: the agent's calls in a fresh world, judged by the task's verifier."""
    domain = domain_named(draft.domain)
    image = build_image(draft.tables)
    seed = stable_seed("difficulty", ability, index)
    plan = graded_plan(domain, draft, image, ABILITIES[ability], seed=seed)
    task = make_task(domain, draft, world_hash="", gold=plan)
    with closing(ToolServer(image, draft.tools)) as server:
        for call in plan.calls:
            server.call(call)
        journal, final = tuple(server.journal), server.snapshot()
    episode = Episode(initial=image, final=final, journal=journal, answer=plan.answer)
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


def rows_of(found: Sequence[Counts]) -> Rows:
    """By agent, and for all of them together."""
    rows = {ability: [counts[ability] for counts in found] for ability in ABILITIES}
    every = [tuple(map(sum, zip(*counts.values(), strict=True))) for counts in found]
    return rows | {ALL: [(hits, played) for hits, played in every]}


def show(name: str, settings: Sequence[int], rows: Rows, trends: Mapping[str, tuple[Trend, float]]) -> None:
    """Prints one dial's table. trends: by agent, with the corrected p-value."""
    print(f"\n{name}: {', '.join(map(str, settings))}")
    for agent, steps in rows.items():
        cells = []
        for hits, played in steps:
            low, high = wilson(hits, played)
            cells.append(f"{hits / played:.3f} ({low:.3f} to {high:.3f})")
        found, p_value = trends[agent]
        low, high = found.interval
        verdict = f"{found.verdict(p_value)}: drop {found.drop:.3f} ({low:.3f} to {high:.3f}), largest rise"
        verdict += f" {found.rise:.3f} (at most {found.most:.3f}), p {found.p_value:.3f}"
        print(f"  {agent:<16} {'  '.join(cells)}  {verdict}", flush=True)


def report(dials: Mapping[str, Sequence[int]], rows: Mapping[str, Rows]) -> dict[str, Any]:
    """Prints every table; what --json gives. A dial with a setting that gave no task is left out."""
    whole = {name: each for name, each in rows.items() if all(played for _, played in each[ALL])}
    trends = {(name, agent): trend(steps) for name, each in whole.items() for agent, steps in each.items()}
    corrected = dict(zip(trends, holm([found.p_value for found in trends.values()]), strict=True))
    result: dict[str, Any] = {}
    for name, each in whole.items():
        found = {agent: (trends[name, agent], corrected[name, agent]) for agent in each}
        show(name, dials[name], each, found)
        result[name] = {
            agent: {"steps": steps, **asdict(one), "verdict": one.verdict(p_value)}
            for (agent, steps), (one, p_value) in zip(each.items(), found.values(), strict=True)
        }
    verdicts = [row["verdict"] for each in result.values() for agent, row in each.items() if agent != ALL]
    counts = {word: verdicts.count(word) for word in ("falls", "flat", "rises")}
    said = ", ".join(f"{count} {word}" for word, count in counts.items())
    print(f"\nof {len(verdicts)} agents with a dial: {said}")
    return {"dials": result, "verdicts": counts}


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tasks", type=int, default=400, help="tasks for each setting (default: 400)")
    parser.add_argument("--domain", choices=[*TURNED, ALL], default=ALL, help="whose dials (default: all)")
    parser.add_argument("--levels", action="store_true", help="each domain's levels, too")
    parser.add_argument("--workers", type=int, default=1, help="processes (default: 1)")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args(argv)
    if args.tasks < 1 or args.workers < 1:
        parser.error("--tasks and --workers must be at least 1")
    cells: dict[str, dict[int, Makes]] = {}
    for domain, how in TURNED.items():
        for dial, values in how.values.items() if args.domain in (domain, ALL) else ():
            cells[f"{domain}, {dial}"] = {value: partial(turned, domain, dial, value) for value in values}
    for name, domain in DOMAINS.items() if args.levels else ():
        cells[f"{name}, level"] = {level: partial(levelled, name, level) for level in domain.levels}
    with ProcessPoolExecutor(args.workers, mp_context=get_context("spawn")) as pool:
        running = {
            name: [pool.submit(measure, (make, args.tasks)) for make in makes.values()]
            for name, makes in cells.items()
        }
        rows = {name: rows_of([each.result() for each in futures]) for name, futures in running.items()}
    result = report({name: list(makes) for name, makes in cells.items()}, rows)
    if args.json:
        machine = platform.processor() or platform.machine()
        print(json.dumps({"machine": machine, "cores": os.cpu_count(), "tasks": args.tasks, **result}))
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
