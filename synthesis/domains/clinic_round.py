"""Level 5 of the clinic, and the levels that are raised from one another: patients on one day, each in a slot
of their own, the urgent ones first.

Two dials say how hard that is: how many patients, and how many rules, of looking their priorities up instead
of being told them, and of the hours that they can come. Nothing is booked: the answer is the list. The
planner solves the problem from what it read, the oracle from the world; both must agree, and the optimum must
be the only one, or the draft is refused.
"""

import json
import random
from collections.abc import Sequence
from dataclasses import dataclass, replace

from envs.task import AnswerSpec, Clause, GuessSpace, Plan
from envs.task import Slot as Cell
from envs.tools import Tool
from synthesis.domains.clinic_tools import FREE, SPECIALTIES
from synthesis.domains.clinic_world import (
    CLOSES,
    DAYS,
    HOURS,
    LOOK_UP,
    OPENS,
    Patient,
    Round,
    Slot,
    draw_world,
    minute_of,
    read_slots,
    round_text,
)
from synthesis.grammar import Care, Client, Draft, quote
from synthesis.raising import Ladder, check_range
from synthesis.solver import AllDifferent, Allow, Problem, solve

NUM_PATIENTS = 4
MIN_SLOTS = 6
MAX_DRAWS = 40
"""Worlds drawn from one seed before it is given up."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RoundDials:
    """How hard: patients to be seen, rules beside the smallest sum."""

    patients: int = NUM_PATIENTS
    rules: int = HOURS

    def __post_init__(self) -> None:
        check_range(self, patients=(2, NUM_PATIENTS), rules=(0, HOURS))


LADDER = Ladder(
    rungs={
        6: RoundDials(patients=2, rules=0),
        7: RoundDials(patients=2, rules=LOOK_UP),
        8: RoundDials(patients=3, rules=LOOK_UP),
        9: RoundDials(patients=3, rules=HOURS),
        10: RoundDials(patients=4, rules=HOURS),
    },
    needs=lambda dials: {"patient_id", "priority"} if dials.rules >= LOOK_UP else set(),
)
"""Levels that are each the one before, in the same world, made harder: by a rule or by a patient."""


def system_text(rules: int) -> str:
    says = {0: "", LOOK_UP: "Each patient's record says their priority.\n"}.get(
        rules, "Each patient's record says their priority and between which hours a visit may begin.\n"
    )
    return (
        "You plan the rounds of a clinic with the tools.\n"
        f"{says}"
        "A slot serves one patient, and only free slots of the field that is asked for may be used."
    )


def draft_round(
    domain: str, level: int, seed: int, rng: random.Random, tools: tuple[Tool, ...]
) -> Draft | None:
    """Level 5, or one of those that are raised: these have one world a seed, so that they share it."""
    if level in LADDER.rungs:
        return round_at(LADDER.rungs[level], domain, level, seed, tools)
    for _ in range(MAX_DRAWS):
        if (draft := _drawn(RoundDials(), domain, level, seed, rng, tools)) is not None:
            return draft
    return None


def round_at(dials: RoundDials, domain: str, level: int, seed: int, tools: tuple[Tool, ...]) -> Draft | None:
    """The seed's draft at these settings, or None: its world is the same at any of them."""
    return _drawn(dials, domain, level, seed, random.Random(seed), LADDER.tools(tools, dials))


def _drawn(
    dials: RoundDials, domain: str, level: int, seed: int, rng: random.Random, tools: tuple[Tool, ...]
) -> Draft | None:
    specialty = rng.choice(SPECIALTIES)
    world = draw_world(rng, 5, specialty, (rng.choice(DAYS),))
    patients = rng.sample(world.patients, NUM_PATIENTS)[: dials.patients]
    slots = sorted(world.free(specialty), key=lambda slot: slot.slot)
    if len(slots) < MIN_SLOTS:
        return None
    problem = round_problem(patients, slots, by_hours=dials.rules >= HOURS)
    solutions = solve(problem, limit=2)
    if not (solutions.proved and solutions.complete and len(solutions.optima) == 1):
        return None
    request = Round(
        names=tuple(p.name for p in patients),
        specialty=specialty,
        day=slots[0].day,
        priorities=tuple(p.priority for p in patients) if dials.rules < LOOK_UP else (),
        by_hours=dials.rules >= HOURS,
    )
    names = tuple(slot.slot for slot in slots)
    return Draft(
        domain=domain,
        level=level,
        seed=seed,
        tables=world.tables(),
        system=system_text(dials.rules),
        prompt=round_text(rng, request),
        tools=tools,
        clauses=_clauses(request, solutions.objective),
        frame=(),
        answer=AnswerSpec(kind="rows", columns=("patient", "slot"), num_rows=len(patients)),
        guess=GuessSpace(
            slots=tuple(Cell(row=row, column="slot", options=names) for row in range(len(patients))),
            fixed=tuple((row, "patient", name) for row, name in enumerate(request.names)),
        ),
        problem=problem,
        goal=request,
        max_turns=50,
    )


def round_problem(patients: Sequence[Patient], slots: Sequence[Slot], *, by_hours: bool = True) -> Problem:
    """`patients` and `slots` are the world's, or what a planner has read of them.

    The most urgent come first: who settles one after the other begins with them.
    """
    seats = {f"{row}.slot": patient for row, patient in enumerate(patients)}
    seats = dict(sorted(seats.items(), key=lambda seat: -seat[1].priority))
    opens = minute_of(OPENS)
    fits = [
        Allow(
            name="within the hours",
            variable=name,
            options=frozenset(s.slot for s in slots if patient.earliest <= s.starts <= patient.latest),
        )
        for name, patient in seats.items()
    ]
    return Problem(
        options={name: tuple(slot.slot for slot in slots) for name in seats},
        constraints=(
            *(fits if by_hours else ()),
            AllDifferent(name="a slot of their own", variables=tuple(seats)),
        ),
        cost={
            name: {slot.slot: patient.priority * (slot.minute - opens) for slot in slots}
            for name, patient in seats.items()
        },
    )


def plan_round(draft: Draft, client: Client, care: Care) -> Plan:
    """Reads patients and slots and solves. Slips: misses what a patient's record says, or seats one after the
    other.
    """
    request: Round = draft.goal
    patients = _told(request) if request.priorities else _looked_up(request, client, care)
    slots = [s for s in read_slots(draft.tools, client, request.specialty) if s.day == request.day]
    problem = round_problem(patients, slots, by_hours=request.by_hours)
    if care.slips():
        problem = replace(problem, cost={})
    chosen = care.choose(problem)
    rows = [
        {"patient": name, "slot": chosen.get(f"{row}.slot", slots[row].slot)}
        for row, name in enumerate(request.names)
    ]
    return Plan(calls=tuple(client.calls), answer=json.dumps(rows))


def _told(request: Round) -> list[Patient]:
    return [
        Patient(patient_id="", name=name, priority=priority, earliest=OPENS, latest=CLOSES)
        for name, priority in zip(request.names, request.priorities, strict=True)
    ]


def _looked_up(request: Round, client: Client, care: Care) -> list[Patient]:
    patients = []
    for name in request.names:
        patient_id = str(client.values("find_patient_id", name=name)[0])
        record = client.call("get_patient", patient_id=patient_id).rows[0]
        patient = Patient(patient_id=patient_id, **record)
        if care.slips():
            patient = replace(patient, priority=1, earliest="00:00", latest="23:59")
        patients.append(patient)
    return patients


def _clauses(request: Round, optimum: int) -> tuple[Clause, ...]:
    cases = " ".join(f"WHEN {row} THEN {quote(name)}" for row, name in enumerate(request.names))
    joined = (
        "answer a LEFT JOIN initial.patients p ON p.name = a.patient LEFT JOIN initial.slots s ON s.slot = "
        "a.slot "
        "LEFT JOIN initial.doctors d ON d.doctor = s.doctor"
    )
    wait = f"p.priority * (substr(s.starts, 1, 2) * 60 + substr(s.starts, 4) - {minute_of(OPENS)})"
    by_hours = Clause(
        name="each within the patient's hours",
        part="answer",
        sql=f"SELECT 1 FROM {joined} WHERE s.starts NOT BETWEEN p.earliest AND p.latest",
    )
    return (
        Clause(
            name="the patients in the order of the request",
            part="answer",
            sql=f'SELECT 1 FROM answer WHERE patient <> CASE "row" {cases} END',
        ),
        Clause(
            name="a free slot of the field on the day",
            part="answer",
            sql=f"SELECT 1 FROM {joined} WHERE d.specialty IS NOT {quote(request.specialty)} "
            f"OR s.day IS NOT {quote(request.day)} OR s.patient_id IS NOT {quote(FREE)}",
        ),
        *((by_hours,) if request.by_hours else ()),
        Clause(
            name="no slot twice",
            part="answer",
            sql="SELECT 1 FROM answer GROUP BY slot HAVING count(*) > 1",
        ),
        Clause(
            name="the lowest sum of priority times waiting",
            part="answer",
            sql=f"SELECT 1 WHERE coalesce((SELECT sum({wait}) FROM {joined}), 1e9) > {optimum}",
        ),
    )
