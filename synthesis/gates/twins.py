"""G16: twins of the task. A metamorphic one bears other names and keeps its verdict; a counterfactual one has
one condition turned over, or one fact changed, and another answer.

Renamed: the names of the world's rows change places among themselves (or, where their order matters, each
gets a new ending), in world, prompt, goal, verifier and gold alike. The planner must come to the renamed gold
from the renamed world, and the renamed verifier must accept it. Turned over: with a clause negated, what
violated only that clause is right and the gold is wrong.
"""

import random
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace

from envs.task import Clause, GateRecord, Plan, Task, stable_seed
from envs.tool_server import ToolServer
from envs.verifier import Episode, Grader, parse_answer
from envs.world import columns_of, open_image
from synthesis.gates.necessity import fault_of, violated_alone
from synthesis.gates.renaming import Renaming, renamings
from synthesis.gates.trial import Probe, Trial, image_state
from synthesis.general import demonstrate, domain_named
from synthesis.grammar import full_care

GATE, TITLE, VERSION = "G16", "twins", 1
MAX_FACTS = 6
LONG_PLAN = 30
"""Calls; a plan from here on is worked out for one changed fact alone."""


def check(trial: Trial) -> GateRecord:
    renamed, fault = "no names to change", None
    for renaming in renamings(trial):
        fault = renamed_fault(trial, renaming)
        if fault is None:
            renamed = f"{len(renaming.names)} names {renaming.kind}"
            break
    turned, turned_fault = _turned_over(trial)
    faults = [each for each in (fault, turned_fault) if each is not None]
    return GateRecord(
        gate=GATE,
        passed=not faults,
        value=float(not faults),
        evidence=faults[0] if faults else f"{renamed}; {turned}; {_changed_fact(trial)}",
        version=VERSION,
    )


def renamed_fault(trial: Trial, renaming: Renaming) -> str | None:
    """How the renamed twin differs from the task by more than names; None when it does not."""
    twin, image = renaming.task(trial.task), renaming.image(trial.image)
    draft = renaming.draft(trial.draft)
    try:
        planned = demonstrate(domain_named(trial.task.domain), draft, image, full_care())
    except Exception as error:  # the planner met a world that it should know by other names
        return f"{renaming.kind}: the planner fails ({type(error).__name__})"
    spec = trial.task.answer
    if parse_answer(spec, planned.answer) != parse_answer(spec, twin.gold.answer):
        return f"{renaming.kind}: the planner answers {planned.answer[:60]!r}"
    golds, plans = _play(twin, image, twin.gold), _play(twin, image, planned)
    if image_state(plans.final) != image_state(golds.final):
        return f"{renaming.kind}: the planner leaves another state"
    with closing(Grader(twin, image)) as grader:
        for name, episode in (("gold", golds), ("plan", plans)):
            (verdict,) = grader.grade_play(episode, [episode.answer])
            if verdict.score != 1.0:
                return f"{renaming.kind}: the renamed {name} scores 0 ({verdict.reason})"
    return None


def _play(task: Task, image: bytes, plan: Plan) -> Episode:
    with closing(ToolServer(image, task.tools)) as server:
        for call in plan.calls:
            server.call(call)
        return Episode(
            initial=image, final=server.snapshot(), journal=tuple(server.journal), answer=plan.answer
        )


def _turned_over(trial: Trial) -> tuple[str, str | None]:
    """Negates one clause that some probe violates alone."""
    alone = violated_alone(trial)
    for part in ("answer", "goal", "policy"):
        for clause in trial.task.clauses:
            if clause.part == part and (probes := alone.get(fault_of(clause))):
                return _check_negated(trial, clause, probes[0])
    return "no condition to turn over", None


def _check_negated(trial: Trial, clause: Clause, probe: Probe) -> tuple[str, str | None]:
    negated = replace(clause, sql=f"SELECT 1 WHERE NOT EXISTS ({clause.sql})")
    clauses = tuple(negated if each is clause else each for each in trial.task.clauses)
    twin = replace(trial.task, clauses=clauses)
    with closing(Grader(twin, trial.image)) as grader:
        old = grader.grade_play(trial.gold, [trial.task.gold.answer])[0].score
        episode = trial.play(Plan(calls=probe.calls, answer=probe.answer))
        new = grader.grade_play(episode, [probe.answer])[0].score
    if (old, new) != (0.0, 1.0):
        return "", f"with {clause.name!r} turned over the gold scores {old:g}, the twin's gold {new:g}"
    return f"turned over {clause.name!r}: the gold scores 0, another plan 1", None


def _changed_fact(trial: Trial) -> str:
    """Whether a changed cell of what the gold read changes what a careful planner does."""
    domain = domain_named(trial.task.domain)
    attempts = 1 if len(trial.task.gold.calls) >= LONG_PLAN else MAX_FACTS
    for tried, (where, change) in enumerate(_facts(trial)[:attempts], start=1):
        try:
            planned = demonstrate(domain, trial.draft, change(trial.image), full_care())
        except Exception:  # the changed world may hold no such task, which says nothing
            continue
        acts = [call for call in planned.calls if trial.has_write([call])]
        if planned.answer != trial.task.gold.answer or acts != [
            call for call in trial.task.gold.calls if trial.has_write([call])
        ]:
            return f"another {where} gives another answer (fact {tried})"
    return "no single fact tried changes the answer"


def _facts(trial: Trial) -> list[tuple[str, Callable[[bytes], bytes]]]:
    """Other values, from its own column, for each cell of the rows that the gold's calls and answer name."""
    rows = parse_answer(trial.task.answer, trial.task.gold.answer) or []
    named = {str(value) for row in rows for value in row.values()}
    named |= {str(value) for call in trial.task.gold.calls for value in call.arguments.values()}
    rng = random.Random(stable_seed(GATE, trial.task.world.content_hash, trial.task.level))
    found: list[tuple[str, Callable[[bytes], bytes]]] = []
    tables: dict[str, list[str]] = {}
    for table, column in trial.cells:
        tables.setdefault(table, []).append(column)
    for table, (key, *columns) in tables.items():
        for index, row in enumerate(trial.cells[table, key]):
            for column in columns if str(row) in named else ():
                old = trial.cells[table, column][index]
                others = [value for value in trial.columns[table, column] if value != old]
                if others and str(old) not in named:
                    found.append((f"{table}.{column}", _edit(table, column, row, rng.choice(others))))
    # What conditions and policy speak of is tried first.
    spoken = " ".join(
        [*(clause.sql for clause in trial.task.clauses), *(m.content for m in trial.task.prompt)]
    )
    found = rng.sample(found, len(found))
    return sorted(found, key=lambda fact: fact[0].partition(".")[2] not in spoken)


def _edit(table: str, column: str, key: object, value: object) -> Callable[[bytes], bytes]:
    def change(image: bytes) -> bytes:
        with closing(open_image(image)) as db:
            first = columns_of(db, table)[0]
            db.execute(f'UPDATE "{table}" SET "{column}" = ? WHERE "{first}" = ?', (value, key))
            return db.serialize()

    return change
