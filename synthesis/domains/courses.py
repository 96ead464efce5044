"""Course registration: what is missing for a course, which section fits, which sections together cost least.

Levels: 1 the prerequisite that a student has not passed, over prerequisites and results; 2 the one section
of a course with a free seat at a time when the student is free; 3 two courses without a clash, at the
lowest fee; 4 two courses and one of a field that the student may take already, at the lowest fee. 1 and 2
may be shown to a cold start.
"""

import json
import random
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

from envs.task import AnswerSpec, Clause, GuessSpace, Plan, Slot
from envs.tools import Tool
from synthesis.domains.courses_world import FIELDS, PASS_GRADE, TOOLSETS, College, Row, draw_college
from synthesis.grammar import Care, Client, Draft, quote
from synthesis.solver import Allow, Constraint, Problem, solve
from synthesis.surface import offers, read_pages

VERSION = 1
MAX_DRAWS = 60
"""Worlds drawn from one seed before it is given up."""
SYSTEM = (
    "You advise students with the tools.\n"
    f"A course is passed with a grade of {PASS_GRADE} or more. A course may be taken when all of its "
    "prerequisites are passed. A section counts only if it has a free seat and is at a time when the "
    "student has no appointment; no two sections may be at one time.\n"
)
_FORMS = {
    1: "Answer with a JSON list of one object with the key course.",
    2: "Answer with a JSON list of one object with the key section.",
    3: "Answer with a JSON list of one object a course, in the order of the request, with the key section.",
    4: "Answer with a JSON list of three objects with the keys course and section: the two courses in the "
    "order of the request, then the third.",
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Advice:
    """What a student asks: `courses` by name, and at level 4 one more of `field`."""

    name: str
    courses: tuple[str, ...]
    field: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class Offer:
    """Facts that the problem is made of: the world's, or what a planner has read of them.

    sections: the rows of each course that may be chosen. electives: those that fill the third place.
    """

    sections: Mapping[str, Sequence[Row]]
    busy: Collection[tuple[str, str]]
    electives: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class CoursesDomain:
    name: str = "courses"
    version: int = VERSION
    levels: tuple[int, ...] = (1, 2, 3, 4)
    shown_levels: tuple[int, ...] = (1, 2)
    tools: tuple[Tool, ...] = TOOLSETS[0]
    toolsets: tuple[tuple[Tool, ...], ...] = field(default=TOOLSETS, repr=False)

    def draft(self, level: int, seed: int) -> Draft | None:
        if level not in self.levels:
            raise ValueError(f"domain courses has the levels {self.levels}, not {level}")
        rng = random.Random(seed)
        tools = rng.choice(self.toolsets)
        for _ in range(MAX_DRAWS):
            college = draw_college(rng)
            student = rng.choice(college.students)
            draft = _missing if level == 1 else _sections
            made = draft(rng, college, student, level)
            if made is None:
                continue
            advice, problem = made
            return Draft(
                domain=self.name,
                level=level,
                seed=seed,
                tables=college.tables(),
                system=SYSTEM + _FORMS[level],
                prompt=_prompt(rng, advice, level),
                tools=tools,
                clauses=_missing_clauses(advice, student["student"])
                if level == 1
                else _section_clauses(advice, student["student"]),
                frame=(),
                answer=_answer_spec(level),
                guess=_guess_space(college, advice, level),
                problem=problem,
                goal=advice,
                max_turns=70,
            )
        return None

    def plan(self, draft: Draft, client: Client, care: Care) -> Plan:
        advice: Advice = draft.goal
        play = _find_missing if draft.level == 1 else _choose_sections
        rows = play(client, draft.tools, advice, care)
        return Plan(calls=tuple(client.calls), answer=json.dumps(rows))


def _answer_spec(level: int) -> AnswerSpec:
    columns = {1: ("course",), 2: ("section",), 3: ("section",), 4: ("course", "section")}[level]
    return AnswerSpec(kind="rows", columns=columns, num_rows=max(1, level - 1))


def _guess_space(college: College, advice: Advice, level: int) -> GuessSpace:
    courses = tuple(row["course"] for row in college.courses)
    if level == 1:
        return GuessSpace(slots=(Slot(row=0, column="course", options=courses),))
    sections = tuple(row["section"] for row in college.sections)
    slots = [Slot(row=row, column="section", options=sections) for row in range(level - 1)]
    if level < 4:
        return GuessSpace(slots=tuple(slots))
    of_field = tuple(row["course"] for row in college.courses if row["field"] == advice.field)
    given = tuple((row, "course", course) for row, course in enumerate(advice.courses))
    return GuessSpace(slots=(*slots, Slot(row=2, column="course", options=of_field)), fixed=given)


def _missing(rng: random.Random, college: College, student: Row, level: int) -> tuple[Advice, Problem] | None:
    """A course with several prerequisites, all but one passed."""
    passed = college.passed(student["student"])
    lacking = {
        row["course"]: [need for need in college.needs(row["course"]) if need not in passed]
        for row in college.courses
    }
    fitting = [c for c, missing in lacking.items() if len(missing) == 1 and len(college.needs(c)) > 1]
    if not fitting:
        return None
    course = rng.choice(fitting)
    problem = Problem(
        options={"course": tuple(row["course"] for row in college.courses)},
        constraints=(Allow(name="missing", variable="course", options=frozenset(lacking[course])),),
    )
    return Advice(name=student["name"], courses=(course,)), problem


def _sections(
    rng: random.Random, college: College, student: Row, level: int
) -> tuple[Advice, Problem] | None:
    """Courses that the student may take, with exactly one best choice of sections."""
    passed = college.passed(student["student"])
    may_take = [
        row["course"]
        for row in college.courses
        if row["course"] not in passed and set(college.needs(row["course"])) <= passed
    ]
    num_named = min(level - 1, 2)
    if len(may_take) < num_named:
        return None
    named = tuple(rng.sample(may_take, num_named))
    advice = Advice(
        name=student["name"], courses=named, field=rng.choice(tuple(FIELDS)) if level == 4 else ""
    )
    in_field = {row["course"] for row in college.courses if row["field"] == advice.field}
    electives = tuple(course for course in may_take if course in in_field and course not in named)
    if level == 4 and not 0 < len(electives) < len(in_field - set(named)):
        return None  # one that may be taken, and one that may not
    sections = {
        course: [row for row in college.sections if row["course"] == course]
        for course in (*named, *electives)
    }
    offer = Offer(sections=sections, busy=college.busy(student["student"]), electives=electives)
    problem = sections_problem(advice, offer)
    found = solve(problem, limit=2)
    if not (found.proved and found.complete and len(found.optima) == 1):
        return None
    return advice, problem


def sections_problem(advice: Advice, offer: Offer) -> Problem:
    """One section a course, free and without a clash; of several at the lowest fee; maybe a third course."""
    options: dict[str, tuple[str, ...]] = {}
    cost: dict[str, dict[str, int]] = {}
    constraints: list[Constraint] = []
    time_of: dict[str, tuple[str, str]] = {}
    places: list[tuple[str, tuple[str, ...]]] = [
        (f"{row}.section", (course,)) for row, course in enumerate(advice.courses)
    ]
    if advice.field:
        options["2.course"] = offer.electives
        places.append(("2.section", offer.electives))
    for variable, courses in places:
        rows = [row for course in courses for row in offer.sections[course]]
        options[variable] = tuple(row["section"] for row in rows)
        if len(advice.courses) > 1:
            cost[variable] = {row["section"]: row["fee"] for row in rows}
        time_of |= {row["section"]: (row["day"], row["hour"]) for row in rows}
        usable = [r["section"] for r in rows if r["seats"] > 0 and (r["day"], r["hour"]) not in offer.busy]
        constraints.append(Allow(name="usable", variable=variable, options=frozenset(usable)))
    for course in offer.electives:
        own = frozenset(row["section"] for row in offer.sections[course])
        constraints.append(
            Allow(name="of it", variable="2.section", options=own, when={"2.course": frozenset({course})})
        )
    for index, (later, _) in enumerate(places):
        for earlier, _ in places[:index]:
            constraints += _no_clash(earlier, later, options, time_of)
    return Problem(options=options, constraints=tuple(constraints), cost=cost)


def _no_clash(
    earlier: str, later: str, options: Mapping[str, Sequence[str]], time_of: Mapping[str, tuple[str, str]]
) -> list[Allow]:
    found = []
    for time in sorted({time_of[section] for section in options[earlier]}):
        then = frozenset(section for section in options[earlier] if time_of[section] == time)
        others = frozenset(section for section in options[later] if time_of[section] != time)
        found.append(Allow(name="no clash", variable=later, options=others, when={earlier: then}))
    return found


def _prompt(rng: random.Random, advice: Advice, level: int) -> str:
    opening = rng.choice(("I am {}.", "This is {}.", "Hello, {} here.")).format(advice.name)
    if level == 1:
        texts = (
            "I want to take {}. Which of its prerequisites have I not passed yet?",
            "They did not let me into {}. Which prerequisite am I missing?",
        )
        return f"{opening} {rng.choice(texts).format(advice.courses[0])}"
    if level == 2:
        texts = ("Which section of {} can I go to?", "I am to take {}. Which section fits my week?")
        return f"{opening} {rng.choice(texts).format(advice.courses[0])}"
    named = " and ".join(advice.courses)
    more = f" and one more course, out of {advice.field}, that I may take and have not passed" * (level == 4)
    texts = (
        "I want to take {}{}. Which sections cost me least in all?",
        "Next term it is {}{} for me. Please find the sections with the lowest fees together.",
    )
    return f"{opening} {rng.choice(texts).format(named, more)}"


def _passed_sql(student: str) -> str:
    return f"SELECT course FROM initial.results WHERE student = {quote(student)} AND grade >= {PASS_GRADE}"


def _missing_clauses(advice: Advice, student: str) -> tuple[Clause, ...]:
    missing = (
        f"SELECT needs FROM initial.prerequisites WHERE course = {quote(advice.courses[0])} "
        f"AND needs NOT IN ({_passed_sql(student)})"
    )
    return (
        Clause(
            name="the course that is missing",
            part="answer",
            sql=f"SELECT 1 FROM answer WHERE course NOT IN ({missing})",
        ),
    )


def _section_clauses(advice: Advice, student: str) -> tuple[Clause, ...]:
    usable = (
        "SELECT s.section, s.course, s.day || s.hour AS time, s.fee FROM initial.sections s "
        "WHERE s.seats > 0 AND NOT EXISTS "
        "(SELECT 1 FROM initial.appointments a WHERE a.day = s.day AND a.hour = s.hour "
        f"AND a.student = {quote(student)})"
    )
    elective = (
        f"SELECT c.course FROM initial.courses c WHERE c.field = {quote(advice.field)} AND c.course NOT IN "
        f"({', '.join(map(quote, advice.courses))}) AND c.course NOT IN ({_passed_sql(student)}) "
        "AND NOT EXISTS "
        "(SELECT 1 FROM initial.prerequisites q WHERE q.course = c.course AND q.needs NOT IN "
        f"({_passed_sql(student)}))"
    )
    allowed = [f"course = {quote(course)}" for course in advice.courses]
    allowed += [f"course IN ({elective})"] if advice.field else []
    fits = " UNION ALL ".join(
        f"SELECT {row} AS place, section, course, time, fee FROM ({usable}) WHERE {where}"
        for row, where in enumerate(allowed)
    )
    fits = f"WITH fits AS MATERIALIZED ({fits})"
    rows = range(len(allowed))
    joins = " ".join(
        f"JOIN fits f{row} ON f{row}.place = {row} AND f{row}.time NOT IN "
        f"({', '.join(f'f{before}.time' for before in range(row))})"
        for row in rows[1:]
    )
    best = f"SELECT min({' + '.join(f'f{r}.fee' for r in rows)}) FROM fits f0 {joins} WHERE f0.place = 0"
    same = " AND f.course = a.course" if advice.field else ""
    mine = f'JOIN fits f ON f.place = a."row" AND f.section = a.section{same}'
    can_be_taken = Clause(
        name="every section can be taken",
        part="answer",
        sql=f"{fits} SELECT 1 FROM answer a LEFT {mine} WHERE f.section IS NULL",
    )
    if len(advice.courses) == 1:
        return (can_be_taken,)
    return (
        can_be_taken,
        Clause(
            name="no two sections are at one time",
            part="answer",
            sql="SELECT 1 FROM answer a JOIN initial.sections s ON s.section = a.section "
            "GROUP BY s.day, s.hour HAVING count(*) > 1",
        ),
        Clause(
            name="the lowest fees",
            part="answer",
            sql=f"{fits} SELECT 1 WHERE (SELECT total(s.fee) FROM answer a JOIN initial.sections s "
            f"ON s.section = a.section) > ({best})",
        ),
    )


def _read_passed(client: Client, tools: Sequence[Tool], student: str, care: Care) -> set[str]:
    """The slip takes every course with a grade for a passed one."""
    if offers(tools, "get_transcript"):
        rows = list(client.call("get_transcript", student=student).rows)
    else:
        ids = read_pages(client, "list_results", student=student)
        rows = [client.call("get_result", result_id=result_id).rows[0] for result_id in ids]
    least = 0 if care.slips() else PASS_GRADE
    return {row["course"] for row in rows if row["grade"] >= least}


def _find_missing(client: Client, tools: Sequence[Tool], advice: Advice, care: Care) -> list[dict[str, str]]:
    needs = client.values("get_prerequisites", course=advice.courses[0])
    if care.slips():
        return [{"course": care.rng.choice(needs)}]
    student = client.values("find_student", name=advice.name)[0]
    passed = _read_passed(client, tools, student, care)
    missing = [need for need in needs if need not in passed]
    return [{"course": missing[0] if missing else needs[0]}]


def _choose_sections(
    client: Client, tools: Sequence[Tool], advice: Advice, care: Care
) -> list[dict[str, str]]:
    """Slips: does not read the appointments, takes failed courses for passed, takes sections unseen."""
    student = client.values("find_student", name=advice.name)[0]
    busy: set[tuple[str, str]] = set()
    if not care.slips():
        busy = {(r["day"], r["hour"]) for r in client.call("get_appointments", student=student).rows}
    electives: list[str] = []
    if advice.field:
        passed = _read_passed(client, tools, student, care)
        for course in client.values("list_courses", field=advice.field):
            is_new = course not in passed and course not in advice.courses
            if is_new and set(client.values("get_prerequisites", course=course)) <= passed:
                electives.append(course)
    sections = {course: _read_sections(client, tools, course) for course in (*advice.courses, *electives)}
    offer = Offer(sections=sections, busy=busy, electives=tuple(electives))
    can_fill = electives or not advice.field
    best = care.choose(sections_problem(advice, offer)) if can_fill else {}
    if not best or care.slips():  # gives up, or takes the first of everything
        chosen = [(course, sections[course][0]["section"]) for course in (*advice.courses, *electives[:1])]
    else:
        courses = [*advice.courses, *([best["2.course"]] if advice.field else [])]
        chosen = [(course, best[f"{row}.section"]) for row, course in enumerate(courses)]
    if advice.field:
        return [{"course": course, "section": section} for course, section in chosen]
    return [{"section": section} for _, section in chosen]


def _read_sections(client: Client, tools: Sequence[Tool], course: str) -> list[Row]:
    if offers(tools, "search_sections"):
        return list(client.call("search_sections", course=course).rows)
    ids = read_pages(client, "list_sections", course=course)
    return [{"section": each, **client.call("get_section", section=each).rows[0]} for each in ids]


DOMAIN = CoursesDomain()
