"""The world of the clinic domain, and what a patient may ask for."""

import random
from collections.abc import Sequence
from dataclasses import dataclass

from envs.tools import Tool
from envs.world import Table
from synthesis.domains.clinic_tools import FREE, LABORATORY, SPECIALTIES
from synthesis.domains.names import FIRST_NAMES, LAST_NAMES
from synthesis.grammar import Client
from synthesis.scripted_user import user_table
from synthesis.surface import offers, read_pages

DAYS = ("2025-11-03", "2025-11-04", "2025-11-05")
OPENS, CLOSES = "08:00", "18:00"
GAP = 60
"""Minutes that the laboratory needs before its results are seen."""
LOOK_UP, HOURS = 1, 2
"""From how many rules of a round on priorities are looked up, and hours count."""
_DOCTORS = (
    "Abara", "Brandt", "Castell", "Dvorak", "Engström", "Ferrer", "Gallo", "Hoang", "Imai", "Joubert",
    "Kovac", "Lindqvist",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True, slots=True)
class Slot:
    """starts: HH:MM. patient_id: FREE, or who has it."""

    slot: str
    doctor: str
    day: str
    starts: str
    patient_id: str = FREE

    @property
    def minute(self) -> int:
        return minute_of(self.starts)


@dataclass(frozen=True, kw_only=True, slots=True)
class Patient:
    """priority: 1 to 5, 5 the most urgent; earliest, latest: between which hours a visit may begin."""

    patient_id: str
    name: str
    priority: int
    earliest: str
    latest: str


@dataclass(frozen=True, kw_only=True, slots=True)
class ClinicWorld:
    """doctors: last name to (specialty, room). said: what the user replies, by topic."""

    doctors: dict[str, tuple[str, int]]
    slots: dict[str, Slot]
    patients: tuple[Patient, ...]
    said: dict[str, str]

    def free(self, specialty: str) -> list[Slot]:
        return [
            s for s in self.slots.values() if s.patient_id == FREE and self.doctors[s.doctor][0] == specialty
        ]

    def doctors_of(self, specialty: str) -> list[str]:
        return sorted(doctor for doctor, (field, _) in self.doctors.items() if field == specialty)

    def tables(self) -> tuple[Table, ...]:
        slots = [(s.slot, s.doctor, s.day, s.starts, s.patient_id) for s in self.slots.values()]
        return (
            Table(
                name="patients",
                columns=(
                    ("patient_id", "TEXT"), ("name", "TEXT"), ("priority", "INTEGER"), ("earliest", "TEXT"),
                    ("latest", "TEXT"),
                ),
                rows=sorted((p.patient_id, p.name, p.priority, p.earliest, p.latest) for p in self.patients),
            ),
            Table(
                name="doctors",
                columns=(("doctor", "TEXT"), ("specialty", "TEXT"), ("room", "INTEGER")),
                rows=sorted((doctor, *row) for doctor, row in self.doctors.items()),
            ),
            Table(
                name="slots",
                columns=tuple((n, "TEXT") for n in ("slot", "doctor", "day", "starts", "patient_id")),
                rows=sorted(slots),
            ),
            user_table(self.said),
        )  # fmt: skip


@dataclass(frozen=True, kw_only=True, slots=True)
class Visit:
    """What one patient asks for, as the prompt says it. doctor, day: empty where any will do; asks_day: the
    day is the user's to tell. after_test: a visit to the laboratory comes first, the same day.
    """

    name: str
    specialty: str
    doctor: str = ""
    day: str = ""
    earliest: str = OPENS
    latest: str = CLOSES
    asks_day: bool = False
    after_test: bool = False

    def fits(self, slot: Slot) -> bool:
        """Whether a free slot of the specialty suits the request."""
        return (
            self.doctor in ("", slot.doctor)
            and self.day in ("", slot.day)
            and self.earliest <= slot.starts <= self.latest
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class Round:
    """Several patients to be seen on one day by the doctors of one field.

    priorities: of each, as the prompt tells them; empty where they are looked up. by_hours: each has hours.
    """

    names: tuple[str, ...]
    specialty: str
    day: str
    priorities: tuple[int, ...] = ()
    by_hours: bool = True


def minute_of(clock: str) -> int:
    return int(clock[:2]) * 60 + int(clock[3:])


def draw_world(rng: random.Random, level: int, specialty: str, days: tuple[str, ...]) -> ClinicWorld:
    """Two or three doctors of the wanted field and one of another, with slots of which no two begin alike."""
    other = rng.choice([field for field in SPECIALTIES if field != specialty])
    fields = [specialty] * rng.randrange(2, 4) if level in (2, 3) else [specialty] * 2
    fields += [LABORATORY] * 2 if level == 4 else [other]
    doctors = {
        name: (field, rng.randrange(1, 40))
        for name, field in zip(rng.sample(_DOCTORS, len(fields)), fields, strict=True)
    }
    names = zip(rng.sample(FIRST_NAMES, 5), rng.sample(LAST_NAMES, 5), strict=True)
    ids = rng.sample(range(100, 1000), 5)
    priorities = rng.sample(range(1, 6), 5)
    patients = tuple(
        Patient(
            patient_id=f"P{n}", name=f"{first} {last}", priority=priority, earliest=hours[0], latest=hours[1]
        )
        for n, (first, last), priority, hours in zip(ids, names, priorities, _hours(rng, 5), strict=True)
    )
    moments = [
        (day, f"{hour:02d}:{minute:02d}")
        for day in days
        for hour in range(8, 18)
        for minute in (0, 15, 30, 45)
    ]
    per_doctor = 5 if level in (1, 5) else 4
    drawn = rng.sample(moments, per_doctor * len(doctors))
    numbers = rng.sample(range(100, 1000), len(drawn))
    slots = {}
    for index, ((day, starts), number) in enumerate(zip(drawn, numbers, strict=True)):
        taken = rng.random() < (0.4 if level < 4 else 0.2)
        slot = Slot(
            slot=f"S{number}",
            doctor=list(doctors)[index % len(doctors)],
            day=day,
            starts=starts,
            patient_id=rng.choice(patients[1:]).patient_id if taken else FREE,
        )
        slots[slot.slot] = slot
    return ClinicWorld(doctors=doctors, slots=slots, patients=patients, said={})


def _hours(rng: random.Random, count: int) -> list[tuple[str, str]]:
    choices = ((OPENS, CLOSES), ("10:00", CLOSES), ("13:00", CLOSES), (OPENS, "12:00"), (OPENS, "15:00"))
    return [rng.choice(choices) for _ in range(count)]


def draw_visit(rng: random.Random, world: ClinicWorld, level: int, specialty: str) -> Visit:
    name = world.patients[0].name
    if level == 1:
        doctor = rng.choice(world.doctors_of(specialty))
        return Visit(name=name, specialty=specialty, doctor=doctor, day=rng.choice(("", *DAYS)))
    hours = rng.choice(((OPENS, "11:00"), ("14:00", CLOSES), ("10:00", CLOSES), (OPENS, "15:00")))
    if level == 4:
        return Visit(name=name, specialty=specialty, latest=hours[1], earliest=hours[0], after_test=True)
    asked = level == 3
    day = rng.choice(DAYS) if asked else ""
    return Visit(name=name, specialty=specialty, day=day, earliest=hours[0], latest=hours[1], asks_day=asked)


def day_reply(rng: random.Random, day: str) -> str:
    return rng.choice(
        ("I can only come on {}.", "{} is the one day that I have.", "It has to be {}.")
    ).format(day)


def prompt_text(rng: random.Random, visit: Visit) -> str:
    opening = rng.choice(("Good morning, {} here.", "This is {}.", "My name is {}.")).format(visit.name)
    who = f"Dr {visit.doctor} ({visit.specialty})" if visit.doctor else f"a doctor of {visit.specialty}"
    wish = rng.choice(("I need to see {} as early as possible", "Please book me the earliest visit with {}"))
    parts = [f"{opening} {wish.format(who)}"]
    if visit.day and not visit.asks_day:
        parts[0] += f" on {visit.day}"
    elif visit.asks_day:
        parts[0] += ", on a day that suits me"
    parts[0] += "."
    if visit.earliest != OPENS:
        parts.append(
            rng.choice(("I cannot be there before {}.", "It must be at {} or later.")).format(visit.earliest)
        )
    if visit.latest != CLOSES:
        parts.append(
            rng.choice(("It must begin by {}.", "{} is the latest that I can start.")).format(visit.latest)
        )
    if visit.after_test:
        parts.append("I need a blood test in the laboratory first, on the same day.")
    return " ".join(parts)


def round_text(rng: random.Random, request: Round) -> str:
    names = list(request.names)
    if request.priorities:
        names = [f"{n} (priority {p})" for n, p in zip(names, request.priorities, strict=True)]
    who = ", ".join(names[:-1]) + f" and {names[-1]}"
    within = " that begins within the hours that they can come" * request.by_hours
    opening = rng.choice(("Please plan {} for {}.", "Make the list of {} for {}, please.")).format(
        request.specialty, request.day
    )
    return (
        f"{opening} {who} are to be seen, each in a free slot of their own{within}. For each count the "
        f"minutes from {OPENS} to the visit, times the patient's priority; the sum must be as small as can "
        "be. Book nothing yet: answer with a JSON list of one object for each patient, in this order, with "
        "the keys patient (the name) and slot (the id)."
    )


def read_slots(tools: Sequence[Tool], client: Client, specialty: str, doctor: str = "") -> list[Slot]:
    """The free slots of a field (or of its one doctor), by the tools that there are, in the order read."""
    if offers(tools, "search_slots"):
        return [Slot(**row) for row in client.call("search_slots", specialty=specialty).rows]
    doctors = [doctor] if doctor else client.values("list_doctors", specialty=specialty)
    found = []
    for name in doctors:
        for slot in read_pages(client, "list_slots", doctor=name):
            row = client.call("get_slot", slot=slot).rows[0]
            found.append(Slot(slot=slot, doctor=row["doctor"], day=row["day"], starts=row["starts"]))
    return found
