"""Level 5 of the clinic: four patients on one day, each in a slot of their own, the urgent ones first.

Nothing is booked: the answer is the list. The planner solves the problem from what it read, the oracle from
the world; both must agree, and the optimum must be the only one, or the draft is refused.
"""

import json
import random
from collections.abc import Sequence
from dataclasses import replace

from envs.task import AnswerSpec, Clause, GuessSpace, Plan
from envs.task import Slot as Cell
from envs.tools import Tool
from synthesis.domains.clinic_tools import FREE, SPECIALTIES
from synthesis.domains.clinic_world import (
    DAYS,
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
from synthesis.solver import AllDifferent, Allow, Problem, solve

NUM_PATIENTS = 4
MIN_SLOTS = 6
MAX_DRAWS = 40
"""Worlds drawn from one seed before it is given up."""
SYSTEM = (
    "You plan the rounds of a clinic with the tools.\n"
    "Each patient's record says their priority and between which hours a visit may begin.\n"
    "A slot serves one patient, and only free slots of the field that is asked for may be used."
)


def draft_round(
    domain: str, level: int, seed: int, rng: random.Random, tools: tuple[Tool, ...]
) -> Draft | None:
    for _ in range(MAX_DRAWS):
        specialty = rng.choice(SPECIALTIES)
        world = draw_world(rng, level, specialty, (rng.choice(DAYS),))
        patients = rng.sample(world.patients, NUM_PATIENTS)
        slots = sorted(world.free(specialty), key=lambda slot: slot.slot)
        if len(slots) < MIN_SLOTS:
            continue
        problem = round_problem(patients, slots)
        solutions = solve(problem, limit=2)
        if not (solutions.proved and solutions.complete and len(solutions.optima) == 1):
            continue
        request = Round(names=tuple(p.name for p in patients), specialty=specialty, day=slots[0].day)
        names = tuple(slot.slot for slot in slots)
        return Draft(
            domain=domain,
            level=level,
            seed=seed,
            tables=world.tables(),
            system=SYSTEM,
            prompt=round_text(rng, request),
            tools=tools,
            clauses=_clauses(request, solutions.objective),
            frame=(),
            answer=AnswerSpec(kind="rows", columns=("patient", "slot"), num_rows=NUM_PATIENTS),
            guess=GuessSpace(
                slots=tuple(Cell(row=row, column="slot", options=names) for row in range(NUM_PATIENTS)),
                fixed=tuple((row, "patient", name) for row, name in enumerate(request.names)),
            ),
            problem=problem,
            goal=request,
            max_turns=50,
        )
    return None


def round_problem(patients: Sequence[Patient], slots: Sequence[Slot]) -> Problem:
    """`patients` and `slots` are the world's, or what a planner has read of them."""
    names = tuple(f"{row}.slot" for row in range(len(patients)))
    opens = minute_of(OPENS)
    fits = [
        Allow(
            name="within the hours",
            variable=name,
            options=frozenset(s.slot for s in slots if patient.earliest <= s.starts <= patient.latest),
        )
        for name, patient in zip(names, patients, strict=True)
    ]
    return Problem(
        options={name: tuple(slot.slot for slot in slots) for name in names},
        constraints=(*fits, AllDifferent(name="a slot of their own", variables=names)),
        cost={
            name: {slot.slot: patient.priority * (slot.minute - opens) for slot in slots}
            for name, patient in zip(names, patients, strict=True)
        },
    )


def plan_round(draft: Draft, client: Client, care: Care) -> Plan:
    """Reads patients and slots and solves. Slips: misses a patient's hours, or seats one after the other."""
    request: Round = draft.goal
    patients = []
    for name in request.names:
        patient_id = str(client.values("find_patient_id", name=name)[0])
        record = client.call("get_patient", patient_id=patient_id).rows[0]
        patient = Patient(patient_id=patient_id, **record)
        if care.slips():
            patient = replace(patient, earliest="00:00", latest="23:59")
        patients.append(patient)
    slots = [s for s in read_slots(draft.tools, client, request.specialty) if s.day == request.day]
    problem = round_problem(patients, slots)
    if care.slips():
        problem = replace(problem, cost={})
    chosen = care.choose(problem)
    rows = [
        {"patient": name, "slot": chosen.get(f"{row}.slot", slots[row].slot)}
        for row, name in enumerate(request.names)
    ]
    return Plan(calls=tuple(client.calls), answer=json.dumps(rows))


def _clauses(request: Round, optimum: int) -> tuple[Clause, ...]:
    cases = " ".join(f"WHEN {row} THEN {quote(name)}" for row, name in enumerate(request.names))
    joined = (
        "answer a LEFT JOIN initial.patients p ON p.name = a.patient LEFT JOIN initial.slots s ON s.slot = "
        "a.slot "
        "LEFT JOIN initial.doctors d ON d.doctor = s.doctor"
    )
    wait = f"p.priority * (substr(s.starts, 1, 2) * 60 + substr(s.starts, 4) - {minute_of(OPENS)})"
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
        Clause(
            name="each within the patient's hours",
            part="answer",
            sql=f"SELECT 1 FROM {joined} WHERE s.starts NOT BETWEEN p.earliest AND p.latest",
        ),
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
