"""A college: courses with prerequisites, sections at given times, students with results; and its tools."""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from envs.tools import Param, Tool
from envs.world import Table
from synthesis.domains.names import FIRST_NAMES, LAST_NAMES
from synthesis.surface import AFTER, SURFACES, Surface, exists, page_of

FIELDS = {
    "science": ("Acoustics", "Botany", "Genetics", "Optics"),
    "arts": ("Drama", "Etching", "Harmony", "Poetry"),
    "society": ("Commerce", "Ethics", "Law", "Statistics"),
}
DAYS = ("Monday", "Tuesday", "Thursday")
HOURS = ("09:00", "11:00", "14:00", "16:00")
NUM_PER_FIELD, NUM_SECTIONS, NUM_STUDENTS = 3, 3, 2
PASS_GRADE = 50
Row = dict[str, Any]


@dataclass(frozen=True, kw_only=True, slots=True)
class College:
    """The tables' rows, by column."""

    students: Sequence[Row]
    courses: Sequence[Row]
    prerequisites: Sequence[Row]
    results: Sequence[Row]
    sections: Sequence[Row]
    appointments: Sequence[Row]

    def needs(self, course: str) -> list[str]:
        return [row["needs"] for row in self.prerequisites if row["course"] == course]

    def passed(self, student: str) -> set[str]:
        own = (row for row in self.results if row["student"] == student)
        return {row["course"] for row in own if row["grade"] >= PASS_GRADE}

    def busy(self, student: str) -> set[tuple[str, str]]:
        return {(row["day"], row["hour"]) for row in self.appointments if row["student"] == student}

    def tables(self) -> tuple[Table, ...]:
        names = ("students", "courses", "prerequisites", "results", "sections", "appointments")
        return tuple(
            Table(
                name=name,
                columns=tuple((c, "INTEGER" if isinstance(v, int) else "TEXT") for c, v in rows[0].items()),
                rows=sorted(tuple(row.values()) for row in rows),
            )
            for name in names
            for rows in (getattr(self, name),)
        )


def draw_college(rng: random.Random) -> College:
    """Prerequisites point from later courses to earlier ones only."""
    courses = [
        {"course": course, "field": name}
        for name in FIELDS
        for course in rng.sample(FIELDS[name], NUM_PER_FIELD)
    ]
    rng.shuffle(courses)
    names = [row["course"] for row in courses]
    pairs = [
        (course, needed)
        for index, course in enumerate(names)
        if index >= 2
        for needed in rng.sample(names[:index], rng.randrange(0, min(index, 4)))
    ]
    people = zip(rng.sample(FIRST_NAMES, NUM_STUDENTS), rng.sample(LAST_NAMES, NUM_STUDENTS), strict=True)
    students = [
        {"student": f"M{n}", "name": f"{first} {last}"}
        for n, (first, last) in zip(rng.sample(range(100, 1000), NUM_STUDENTS), people, strict=True)
    ]
    taken = [(row["student"], course) for row in students for course in names if rng.random() < 0.7]
    fees = rng.sample(range(40, 200), len(names) * NUM_SECTIONS)
    section_ids = iter(zip(rng.sample(range(100, 1000), len(fees)), fees, strict=True))
    sections = []
    for course in names:
        times = rng.sample([(day, hour) for day in DAYS for hour in HOURS], NUM_SECTIONS)
        for (day, hour), (number, fee) in zip(times, section_ids, strict=False):
            seats = rng.choice((0, 1, 2, 5, 9))
            cells = {"course": course, "day": day, "hour": hour, "seats": seats, "fee": fee}
            sections.append({"section": f"T{number}", **cells})
    appointments = [
        {"student": row["student"], "day": day, "hour": hour}
        for row in students
        for day, hour in rng.sample([(day, hour) for day in DAYS for hour in HOURS], 4)
    ]
    return College(
        students=students,
        courses=courses,
        prerequisites=_numbered(rng, "Q", "prerequisite_id", [{"course": a, "needs": b} for a, b in pairs]),
        results=_numbered(
            rng,
            "G",
            "result_id",
            [{"student": s, "course": c, "grade": rng.randrange(30, 100)} for s, c in taken],
        ),
        sections=sections,
        appointments=_numbered(rng, "A", "appointment_id", appointments),
    )


def _numbered(rng: random.Random, letter: str, key: str, rows: Sequence[Row]) -> list[Row]:
    numbers = rng.sample(range(100, 1000), len(rows))
    return [{key: f"{letter}{number}", **row} for number, row in zip(numbers, rows, strict=True)]


_STUDENT = Param(name="student", description="The student's id.")
_COURSE = Param(name="course", description="The course's name.")


def _fixed(surface: Surface) -> tuple[Tool, ...]:
    return (
        Tool(
            name="find_student",
            description="The id of the student with this name.",
            parameters=(Param(name="name", description="First and last name."),),
            query="SELECT student FROM students WHERE name = :name",
            row_format="{student}",
            reads=("students",),
        ),
        Tool(
            name="list_courses",
            description="The courses of a field.",
            parameters=(Param(name="field", description="The field.", enum=tuple(FIELDS)),),
            query="SELECT course FROM courses WHERE field = :field ORDER BY course",
            row_format="{course}",
            reads=("courses",),
        ),
        Tool(
            name="get_prerequisites",
            description="The courses that must be passed before a course.",
            parameters=(_COURSE,),
            requires=(exists(surface, "course", "courses", "course"),),
            query="SELECT needs FROM prerequisites WHERE course = :course ORDER BY needs",
            row_format="{needs}",
            reads=("courses", "prerequisites"),
        ),
        Tool(
            name="get_appointments",
            description="When a student has no time.",
            parameters=(_STUDENT,),
            requires=(exists(surface, "student", "students", "student"),),
            query="SELECT day, hour FROM appointments WHERE student = :student ORDER BY day, hour",
            row_format="{day} {hour}",
            reads=("appointments", "students"),
        ),
    )


def _varied(surface: Surface) -> tuple[Tool, ...]:
    seats = surface.word("free seats", "places left")
    section = f"{{day}} {{hour}}; {{seats}} {seats}; fee {{fee}}"
    if surface.search:
        return (
            Tool(
                name="get_transcript",
                description="A student's courses, each with its grade.",
                parameters=(_STUDENT,),
                query="SELECT course, grade FROM results WHERE student = :student ORDER BY course",
                row_format="{course} {grade}",
                reads=("results",),
            ),
            Tool(
                name="search_sections",
                description="A course's sections: id, time, free seats, fee.",
                parameters=(_COURSE,),
                query="SELECT section, day, hour, seats, fee FROM sections WHERE course = :course "
                "ORDER BY section",
                row_format=f"{{section}} {section}",
                reads=("sections",),
            ),
        )
    return (
        Tool(
            name="list_results",
            description="The ids of a student's results.",
            parameters=(_STUDENT, AFTER),
            query=page_of("results", "result_id", "student = :student"),
            row_format="{result_id}",
            reads=("results",),
        ),
        Tool(
            name="get_result",
            description="The course and the grade of a result.",
            parameters=(Param(name="result_id", description="The result's id."),),
            requires=(exists(surface, "result", "results", "result_id"),),
            query="SELECT course, grade FROM results WHERE result_id = :result_id",
            row_format="{course} {grade}",
            reads=("results",),
        ),
        Tool(
            name="list_sections",
            description="The ids of a course's sections.",
            parameters=(_COURSE, AFTER),
            query=page_of("sections", "section", "course = :course"),
            row_format="{section}",
            reads=("sections",),
        ),
        Tool(
            name="get_section",
            description="A section's time, free seats and fee.",
            parameters=(Param(name="section", description="The section's id."),),
            requires=(exists(surface, "section", "sections", "section"),),
            query="SELECT day, hour, seats, fee FROM sections WHERE section = :section",
            row_format=section,
            reads=("sections",),
        ),
    )


TOOLSETS = tuple((*_fixed(surface), *_varied(surface)) for surface in SURFACES)
