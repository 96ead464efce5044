"""The IT desk: access requests under a policy, and logins that nobody allowed.

Levels: 1 decide a request by its id, for a system that is open to all; 2 the same for a restricted system,
which has more rules; 3 the requester gives a name alone and has several open requests, so the desk has to
ask which; 4 an incident: find the login that no grant covers, lock its account, take back all that it
holds, or find that all is in order. 1 and 2 may be shown to a cold start.
"""

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from envs.task import AnswerSpec, Call, Clause, FrameRule, GuessSpace, Plan
from envs.tools import Tool
from synthesis.clauses import all_rows, once_each, read_before, right_word
from synthesis.domains.access_tools import REASONS, TOOLSETS
from synthesis.domains.access_world import Desk, Request, broken_rule, draw_desk, policy_text
from synthesis.grammar import Care, Client, Draft, quote
from synthesis.scripted_user import ask_call, asked_before, named_in_reply
from synthesis.solver import Allow, Problem
from synthesis.surface import FROM_THE_START, offers, read_pages

VERSION = 1
MAX_DRAWS = 200
"""Worlds drawn from one seed before it is given up."""
DECIDING = ("grant_request", "deny_request")
RESPONDING = ("lock_account", "revoke_request")
WORDS = ("granted", "denied", "locked", "clean")


@dataclass(frozen=True, slots=True)
class AccessDomain:
    name: str = "access"
    version: int = VERSION
    levels: tuple[int, ...] = (1, 2, 3, 4)
    shown_levels: tuple[int, ...] = (1, 2)
    tools: tuple[Tool, ...] = TOOLSETS[0]
    toolsets: tuple[tuple[Tool, ...], ...] = field(default=TOOLSETS, repr=False)

    def draft(self, level: int, seed: int) -> Draft | None:
        if level not in self.levels:
            raise ValueError(f"domain access has the levels {self.levels}, not {level}")
        rng = random.Random(seed)
        tools = rng.choice(self.toolsets)
        wanted = rng.choice((None, None, *(REASONS[:2] if level == 1 else REASONS)))
        has_intruder = rng.random() < 2 / 3
        for _ in range(MAX_DRAWS):
            desk = draw_desk(rng)
            if level == 4:
                case = _incident(rng, desk, tools, has_intruder)
            else:
                case = _request_case(rng, desk, level, wanted)
            if case is not None:
                return _make_draft(level, seed, tools, desk, case)
        return None

    def plan(self, draft: Draft, client: Client, care: Care) -> Plan:
        request: Request = draft.goal
        if request.system:
            answer = _respond(client, draft.tools, request.system, care)
        else:
            answer = _decide(client, draft.tools, request, care)
        return Plan(calls=tuple(client.calls), answer=answer)


@dataclass(frozen=True, kw_only=True, slots=True)
class Case:
    """A goal with all that its task needs. right: the names of the plans that solve it."""

    goal: Request
    prompt: str
    plans: Mapping[str, Plan]
    right: str
    clauses: tuple[Clause, ...]
    frame: tuple[FrameRule, ...]
    said: Mapping[str, str]


def _make_draft(level: int, seed: int, tools: tuple[Tool, ...], desk: Desk, case: Case) -> Draft:
    return Draft(
        domain="access",
        level=level,
        seed=seed,
        tables=desk.tables(case.said),
        system=policy_text(case.goal.min_training),
        prompt=case.prompt,
        tools=tools,
        clauses=case.clauses,
        frame=case.frame,
        answer=AnswerSpec(kind="choice", choices=WORDS),
        guess=GuessSpace(plans=tuple(case.plans.values())),
        problem=Problem(
            options={"plan": tuple(case.plans)},
            constraints=(Allow(name="the policy", variable="plan", options=frozenset({case.right})),),
        ),
        goal=case.goal,
        max_turns=40,
    )


def _request_case(rng: random.Random, desk: Desk, level: int, wanted: str | None) -> Case | None:
    """A request that breaks the rule `wanted` first, or none."""
    min_training = rng.randrange(2021, 2025)
    fitting = []
    for row in desk.open_requests():
        employee, protection = desk.employee(row["employee_id"]), desk.protection(row["system"])
        if level < 3 and protection != ("open" if level == 1 else "restricted"):
            continue
        if level == 3 and len(desk.open_requests(row["employee_id"])) < 2:
            continue
        if broken_rule(employee, row["approved_by"], protection, min_training) == wanted:
            fitting.append(row)
    if not fitting:
        return None
    row = rng.choice(fitting)
    by_id = level < 3
    name = desk.employee(row["employee_id"])["name"]
    goal = Request(
        min_training=min_training, request_id=row["request_id"] if by_id else "", name="" if by_id else name
    )
    plans = {}
    asking = () if by_id else (ask_call("system"),)
    for each in desk.open_requests():
        calls = (*asking, Call(tool="get_request", arguments={"request_id": each["request_id"]}))
        for reason in (None, *REASONS):
            acting = _decision(each["request_id"], reason)
            plans[f"{each['request_id']} {reason}"] = Plan(
                calls=(*calls, acting), answer="denied" if reason else "granted"
            )
    said = rng.choice(("The one for {}.", "I mean {}, please.", "It is about {}.")).format(row["system"])
    return Case(
        goal=goal,
        prompt=_request_prompt(rng, goal),
        plans=plans,
        right=f"{row['request_id']} {wanted}",
        clauses=_request_clauses(row["request_id"], min_training, by_id),
        frame=(
            FrameRule(
                table="requests", key=row["request_id"], columns=("reason", "state") if wanted else ("state",)
            ),
        ),
        said={"system": said},
    )


def _decision(request_id: str, reason: str | None) -> Call:
    if reason is None:
        return Call(tool="grant_request", arguments={"request_id": request_id})
    return Call(tool="deny_request", arguments={"request_id": request_id, "reason": reason})


def _request_prompt(rng: random.Random, goal: Request) -> str:
    if goal.request_id:
        texts = (
            "Please decide request {}.",
            "Request {} has been waiting. What about it?",
            "Please see to {}.",
        )
        return rng.choice(texts).format(goal.request_id)
    texts = (
        "This is {}. I asked for access last week, please decide my request.",
        "Hello, {} here. I still cannot log in; can you see to my request?",
    )
    return rng.choice(texts).format(goal.name)


def _request_clauses(request_id: str, min_training: int, by_id: bool) -> tuple[Clause, ...]:
    why = (
        "SELECT CASE WHEN e.status <> 'active' THEN 'inactive' WHEN r.approved_by <> e.manager_id THEN "
        "'approval' WHEN s.protection = 'restricted' AND e.contract = 'contractor' THEN 'contract' WHEN "
        f"s.protection = 'restricted' AND e.training < {min_training} THEN 'training' ELSE 'none' END FROM "
        "initial.requests r JOIN initial.employees e ON e.employee_id = r.employee_id JOIN initial.systems "
        f"s ON s.system = r.system WHERE r.request_id = {quote(request_id)}"
    )
    word = f"iif(({why}) = 'none', 'granted', 'denied')"
    clauses = [
        all_rows(
            "the request is decided by the rules",
            "requests",
            f"request_id = {quote(request_id)}",
            f"state = {word} AND reason = ({why})",
        ),
        right_word(f"SELECT {word}"),
        once_each(DECIDING, "request_id"),
        read_before("get_request", {"request_id": request_id}, DECIDING, name="the request was read first"),
    ]
    return tuple(clauses) if by_id else (*clauses, asked_before("system", DECIDING))


def _incident(rng: random.Random, desk: Desk, tools: Sequence[Tool], has_intruder: bool) -> Case | None:
    """One system's log, with one intruder who holds grants elsewhere, or with none."""
    systems = [row["system"] for row in desk.systems]
    read_in = {row["system"] for row in desk.logins}
    fitting = [
        s
        for s in systems
        if s in read_in and [bool(desk.granted(e)) for e in desk.intruders(s)] == [True] * has_intruder
    ]
    if not fitting:
        return None
    goal = Request(min_training=rng.randrange(2021, 2025), system=rng.choice(fitting))
    culprit = desk.intruders(goal.system)[0] if has_intruder else ""
    taken = desk.granted(culprit)
    log = _log_call(tools, goal.system)
    plans = {"clean": Plan(calls=(log,), answer="clean")}
    for row in desk.employees:
        employee_id = row["employee_id"]
        lock = Call(tool="lock_account", arguments={"employee_id": employee_id})
        revoke = [Call(tool="revoke_request", arguments={"request_id": r}) for r in desk.granted(employee_id)]
        for count in {0, 1, len(revoke)} - ({1} if len(revoke) == 0 else set()):
            plans[f"{employee_id} {count}"] = Plan(calls=(log, lock, *revoke[:count]), answer="locked")
    texts = (
        "Please look through the log of {}: somebody may have got in who should not have.",
        "Is everybody who logged in to {} allowed there? Act if not.",
    )
    return Case(
        goal=goal,
        prompt=rng.choice(texts).format(goal.system),
        plans=plans,
        right=f"{culprit} {len(taken)}" if has_intruder else "clean",
        clauses=_incident_clauses(goal.system, log.tool),
        frame=tuple(
            FrameRule(table=table, key=key, columns=(column,))
            for table, keys, column in (("employees", [culprit], "status"), ("requests", taken, "state"))
            for key in keys
            if has_intruder
        ),
        said={"system": f"The one for {goal.system}."},
    )


def _log_call(tools: Sequence[Tool], system: str) -> Call:
    if offers(tools, "search_logins"):
        return Call(tool="search_logins", arguments={"system": system})
    return Call(tool="list_logins", arguments={"system": system, "after": FROM_THE_START})


def _incident_clauses(system: str, log_tool: str) -> tuple[Clause, ...]:
    intruders = (
        f"SELECT l.employee_id FROM initial.logins l WHERE l.system = {quote(system)} AND l.outcome = 'ok' "
        "AND NOT EXISTS (SELECT 1 FROM initial.requests r WHERE r.employee_id = l.employee_id "
        "AND r.system = l.system AND r.state = 'granted')"
    )
    held = f"SELECT request_id FROM initial.requests WHERE state = 'granted' AND employee_id IN ({intruders})"
    return (
        all_rows("the account is locked", "employees", f"employee_id IN ({intruders})", "status = 'locked'"),
        all_rows("its grants are revoked", "requests", f"request_id IN ({held})", "state = 'revoked'"),
        right_word(f"SELECT iif(EXISTS ({intruders}), 'locked', 'clean')"),
        read_before(log_tool, {"system": system}, RESPONDING, name="the log was read first"),
    )


def _decide(client: Client, tools: Sequence[Tool], request: Request, care: Care) -> str:
    """Reads the request and what its rules need. Slips: does not ask, nor check; takes another reason."""
    request_id = request.request_id or _meant(client, tools, request.name, care)
    row = client.call("get_request", request_id=request_id).rows[0]
    if care.slips():
        reason = care.rng.choice((None, *REASONS))
    else:
        employee = client.call("get_employee", employee_id=row["employee_id"]).rows[0]
        protection = client.values("get_system", system=row["system"])[0]
        reason = broken_rule(employee, row["approved_by"], protection, request.min_training)
        if care.slips():
            reason = care.rng.choice(REASONS) if reason is None else None
    call = _decision(request_id, reason)
    client.call(call.tool, **call.arguments)
    return "denied" if reason else "granted"


def _meant(client: Client, tools: Sequence[Tool], name: str, care: Care) -> str:
    employee_id = client.values("find_employee", name=name)[0]
    pending = {s: r for r, s, state in _requests_of(client, tools, employee_id) if state == "open"}
    if care.slips():
        return care.rng.choice(list(pending.values()))
    return pending[named_in_reply(client, "system", pending)]


def _requests_of(client: Client, tools: Sequence[Tool], employee_id: str) -> list[tuple[str, str, str]]:
    """(id, system, state) of each."""
    if offers(tools, "search_requests"):
        rows = client.call("search_requests", employee_id=employee_id).rows
    else:
        ids = read_pages(client, "list_requests", employee_id=employee_id)
        rows = [{"request_id": r, **client.call("get_request", request_id=r).rows[0]} for r in ids]
    return [(str(row["request_id"]), str(row["system"]), str(row["state"])) for row in rows]


def _respond(client: Client, tools: Sequence[Tool], system: str, care: Care) -> str:
    """Looks at everybody in the log. Slips: takes a failed login for one, overlooks one, leaves a grant."""
    if offers(tools, "search_logins"):
        log = [(r["employee_id"], r["outcome"]) for r in client.call("search_logins", system=system).rows]
    else:
        ids = read_pages(client, "list_logins", system=system)
        rows = [client.call("get_login", login_id=login_id).rows[0] for login_id in ids]
        log = [(row["employee_id"], row["outcome"]) for row in rows]
    counted = log if care.slips() else [(who, outcome) for who, outcome in log if outcome == "ok"]
    for employee_id in dict.fromkeys(who for who, _ in counted):
        granted = [(r, s) for r, s, state in _requests_of(client, tools, employee_id) if state == "granted"]
        if any(held == system for _, held in granted) or care.slips():
            continue
        client.call("lock_account", employee_id=employee_id)
        for request_id, _ in granted[1:] if care.slips() else granted:
            client.call("revoke_request", request_id=request_id)
        return "locked"
    return "clean"


DOMAIN = AccessDomain()
