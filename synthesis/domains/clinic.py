"""Clinic scheduling: book the earliest visit that fits, ask what is left open, and plan a whole round.

Levels: 1 the earliest free slot of a named doctor; 2 of any doctor of a field, within the patient's hours;
3 the same on a day that only the patient can tell, who must be asked; 4 a laboratory test first, the same
day, an hour before; 5 a round of four patients, by priority, in slots of their own; 6 to 10 the same raised
step by step in one world, from two patients whose priorities are told. 1 to 3 may be shown to a cold start.

Goal kinds: scheduling, constraint satisfaction, ambiguous until the user is asked, refusal is correct.
"""

import random
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial

from envs.task import AnswerSpec, Call, Clause, FrameRule, GuessSpace, Plan
from envs.tools import Tool
from synthesis.clauses import read_before, right_word
from synthesis.domains.clinic_round import LADDER, draft_round, plan_round
from synthesis.domains.clinic_tools import FREE, LABORATORY, SPECIALTIES, TOOLSETS
from synthesis.domains.clinic_world import (
    DAYS,
    GAP,
    ClinicWorld,
    Slot,
    Visit,
    day_reply,
    draw_visit,
    draw_world,
    prompt_text,
    read_slots,
)
from synthesis.facts import twin_drafts
from synthesis.grammar import Care, Client, Draft, quote
from synthesis.scripted_user import ask_call, asked_before, named_in_reply
from synthesis.solver import Allow, Problem
from synthesis.surface import FROM_THE_START, offers

VERSION = 1
MAX_DRAWS = 60
"""Worlds drawn from one seed before it is given up."""
NOBODY = "full"
SYSTEM = (
    "You book visits to a clinic with the tools.\n"
    "Look at the free slots of every doctor who may be seen before you book a visit or say that there is "
    "none.\n"
    "Book the earliest slot that fits what the patient says, by day and then by hour.\n"
    "If the patient speaks of a day that suits without naming it, ask which day.\n"
    f"A test in the laboratory begins at least {GAP} minutes before the visit that needs it, on the same "
    "day. "
    "Take the earliest visit for which there is one, and before it the latest test; the patient's hours hold "
    "for both.\n"
    f"When you have booked, answer booked. If nothing fits, book nothing and answer {NOBODY}."
)


@dataclass(frozen=True, slots=True)
class ClinicDomain:
    name: str = "clinic"
    version: int = VERSION
    levels: tuple[int, ...] = (1, 2, 3, 4, 5, *LADDER.rungs)
    shown_levels: tuple[int, ...] = (1, 2, 3)
    tools: tuple[Tool, ...] = TOOLSETS[0]
    toolsets: tuple[tuple[Tool, ...], ...] = tuple(dict.fromkeys((*TOOLSETS, *LADDER.toolsets(TOOLSETS))))
    twin_levels: tuple[int, ...] = (1, 2, 3, 4)

    def raised_from(self, level: int) -> int | None:
        return LADDER.raised_from(level)

    def draft(self, level: int, seed: int) -> Draft | None:
        if level not in self.levels:
            raise ValueError(f"domain clinic has the levels {self.levels}, not {level}")
        rng = random.Random(seed)
        if level >= 5:
            return draft_round(self.name, level, seed, rng, rng.choice(TOOLSETS))
        drawn = _drawn(rng, level)
        return None if drawn is None else self.make(level, seed, rng, *drawn)

    def twins(self, level: int, seed: int) -> Iterator[Draft]:
        """A slot that was taken is free, or one that was free is taken."""
        rng = random.Random(seed)
        if (drawn := _drawn(rng, level)) is not None:
            world, visit = drawn
            states = (FREE, world.patients[1].patient_id)
            make = partial(self.make, level, seed, visit=visit)
            yield from twin_drafts(make, rng, world, {"slots.patient_id": lambda _: states})

    def make(self, level: int, seed: int, rng: random.Random, world: ClinicWorld, visit: Visit) -> Draft:
        tools = rng.choice(TOOLSETS)
        patient_id = world.patients[0].patient_id
        bookings = _bookings(world, visit)
        reads = _reads(world, visit, tools)
        best = best_booking(world.slots.values(), visit, world.doctors) or ()
        return Draft(
            domain=self.name,
            level=level,
            seed=seed,
            tables=world.tables(),
            system=SYSTEM,
            prompt=prompt_text(rng, visit),
            tools=tools,
            clauses=_clauses(visit, patient_id, reads),
            frame=tuple(FrameRule(table="slots", key=slot.slot, columns=("patient_id",)) for slot in best),
            answer=AnswerSpec(kind="choice", choices=("booked", NOBODY)),
            guess=GuessSpace(plans=tuple(_plan(slots, patient_id, reads) for slots in bookings.values())),
            problem=_problem(world, visit, bookings),
            goal=replace(visit, day="") if visit.asks_day else visit,
            max_turns=40,
        )

    def plan(self, draft: Draft, client: Client, care: Care) -> Plan:
        return plan_round(draft, client, care) if draft.level >= 5 else _plan_visit(draft, client, care)


def _drawn(rng: random.Random, level: int) -> tuple[ClinicWorld, Visit] | None:
    """World and request of a level below the round."""
    wants_none = rng.random() < 1 / 4
    for _ in range(MAX_DRAWS):
        specialty = rng.choice(SPECIALTIES)
        world = draw_world(rng, level, specialty, DAYS)
        visit = draw_visit(rng, world, level, specialty)
        if visit.asks_day:
            world = replace(world, said={"day": day_reply(rng, visit.day)})
        if wants_none == (best_booking(world.slots.values(), visit, world.doctors) is None):
            return world, visit
    return None


def best_booking(
    slots: Iterable[Slot], visit: Visit, doctors: Mapping[str, tuple[str, int]]
) -> tuple[Slot, ...] | None:
    """The slots to book, the test before the visit; None when nothing fits."""
    fitting = [slot for slot in slots if slot.patient_id == FREE and visit.fits(slot)]
    visits = [slot for slot in fitting if doctors[slot.doctor][0] == visit.specialty]
    if not visit.after_test:
        return min(((slot,) for slot in visits), key=_rank, default=None)
    tests = [slot for slot in fitting if doctors[slot.doctor][0] == LABORATORY]
    return min(
        ((test, slot) for test in tests for slot in visits if _is_in_time(test, slot)),
        key=_rank,
        default=None,
    )


def _is_in_time(test: Slot, visit: Slot) -> bool:
    return test.day == visit.day and visit.minute - test.minute >= GAP


def _rank(slots: tuple[Slot, ...]) -> tuple[str, str, int]:
    """Earlier visits first, then later tests."""
    return slots[-1].day, slots[-1].starts, -slots[0].minute


def _bookings(world: ClinicWorld, visit: Visit) -> dict[str, tuple[Slot, ...]]:
    """What an agent may book that ignores what it reads: nothing, or any free slot, or any test and visit."""
    if visit.after_test:
        pairs = [(t, s) for t in world.free(LABORATORY) for s in world.free(visit.specialty)]
        return {NOBODY: ()} | {f"{test.slot} {slot.slot}": (test, slot) for test, slot in pairs}
    return {NOBODY: ()} | {s.slot: (s,) for s in world.slots.values() if s.patient_id == FREE}


def _problem(world: ClinicWorld, visit: Visit, bookings: Mapping[str, tuple[Slot, ...]]) -> Problem:
    """The earliest booking that keeps each rule; to book nothing keeps them all and costs more than any."""
    rules = {
        "the field": lambda slots: world.doctors[slots[-1].doctor][0] == visit.specialty,
        "the patient's wishes": lambda slots: all(visit.fits(slot) for slot in slots),
        "the test in time": lambda slots: not visit.after_test or _is_in_time(*slots),
    }
    constraints = tuple(
        Allow(
            name=name,
            variable="plan",
            options=frozenset(key for key, slots in bookings.items() if not slots or rule(slots)),
        )
        for name, rule in rules.items()
    )
    day = 24 * 60
    costs = {NOBODY: (len(DAYS) + 1) * day * day}
    for key, slots in bookings.items():
        if slots:
            wait = DAYS.index(slots[-1].day) * day + slots[-1].minute
            costs[key] = wait * day - (slots[0].minute if visit.after_test else 0)
    return Problem(options={"plan": tuple(bookings)}, constraints=constraints, cost={"plan": costs})


def _reads(world: ClinicWorld, visit: Visit, tools: tuple[Tool, ...]) -> tuple[Call, ...]:
    """What must be looked at before a decision."""
    fields = (LABORATORY, visit.specialty) if visit.after_test else (visit.specialty,)
    if offers(tools, "search_slots"):
        calls = [Call(tool="search_slots", arguments={"specialty": field}) for field in fields]
    else:
        doctors = [visit.doctor] if visit.doctor else [d for field in fields for d in world.doctors_of(field)]
        calls = [
            Call(tool="list_slots", arguments={"doctor": doctor, "after": FROM_THE_START})
            for doctor in doctors
        ]
    return (*([ask_call("day")] if visit.asks_day else []), *calls)


def _plan(slots: tuple[Slot, ...], patient_id: str, reads: tuple[Call, ...]) -> Plan:
    books = [Call(tool="book_slot", arguments={"slot": s.slot, "patient_id": patient_id}) for s in slots]
    return Plan(calls=(*reads, *books), answer="booked" if slots else NOBODY)


def _clauses(visit: Visit, patient_id: str, reads: tuple[Call, ...]) -> tuple[Clause, ...]:
    """The request in SQL over the first tables."""
    wishes = [f"s.patient_id = '{FREE}'", f"s.starts BETWEEN '{visit.earliest}' AND '{visit.latest}'"]
    wishes += [
        f"s.{column} = {quote(value)}"
        for column, value in (("doctor", visit.doctor), ("day", visit.day))
        if value
    ]

    def fitting(field: str) -> str:
        return (
            "SELECT s.slot, s.day, s.starts, substr(s.starts, 1, 2) * 60 + substr(s.starts, 4) AS minute "
            "FROM initial.slots s JOIN initial.doctors d ON d.doctor = s.doctor "
            f"WHERE d.specialty = {quote(field)} AND {' AND '.join(wishes)}"
        )

    best = f"SELECT v.slot, '' AS test FROM ({fitting(visit.specialty)}) v ORDER BY v.day, v.starts LIMIT 1"
    if visit.after_test:
        best = (
            f"SELECT v.slot, t.slot AS test FROM ({fitting(visit.specialty)}) v JOIN ({fitting(LABORATORY)}) "
            "t "
            f"ON t.day = v.day AND v.minute - t.minute >= {GAP} ORDER BY v.day, v.starts, t.starts DESC "
            "LIMIT 1"
        )
    clauses = [
        right_word(f"SELECT CASE WHEN EXISTS ({best}) THEN 'booked' ELSE {quote(NOBODY)} END"),
        Clause(
            name="what fits best is booked for the patient",
            part="goal",
            sql=f"WITH best AS ({best}) SELECT 1 FROM best JOIN slots s ON s.slot IN (best.slot, best.test) "
            f"WHERE s.patient_id <> {quote(patient_id)}",
        ),
    ]
    for call in reads:
        if call.tool == "ask_user":
            clauses.append(asked_before("day", ("book_slot",)))
            continue
        key, value = next(iter(call.arguments.items()))
        clauses.append(
            read_before(call.tool, {key: value}, ("book_slot",), name=f"{value} was looked at first")
        )
    return tuple(clauses)


def _plan_visit(draft: Draft, client: Client, care: Care) -> Plan:
    """Reads what may fit, then books the best. Slips: asks nothing, forgets a wish, takes the first seen."""
    visit: Visit = draft.goal
    if visit.asks_day:
        day = care.rng.choice(DAYS) if care.slips() else named_in_reply(client, "day", DAYS)
        visit = replace(visit, day=day)
    patient_id = str(client.values("find_patient_id", name=visit.name)[0])
    fields = (LABORATORY, visit.specialty) if visit.after_test else (visit.specialty,)
    doctors: dict[str, tuple[str, int]] = {}
    slots: list[Slot] = []
    for field in fields:
        for slot in read_slots(draft.tools, client, field, visit.doctor):
            doctors[slot.doctor] = (field, 0)
            slots.append(slot)
    if care.slips():
        visit = replace(visit, earliest="00:00", latest="23:59", doctor="")
    best = best_booking(slots, visit, doctors)
    if best is not None and care.slips():
        best = tuple(next(s for s in slots if doctors[s.doctor][0] == field) for field in fields)
    for slot in best or ():
        client.call("book_slot", slot=slot.slot, patient_id=patient_id)
    return Plan(calls=tuple(client.calls), answer="booked" if best else NOBODY)


DOMAIN = ClinicDomain()
