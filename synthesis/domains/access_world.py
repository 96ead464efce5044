"""The IT desk's worlds: employees, systems, requests, logins; its policy and the first rule that a request
breaks.
"""

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from envs.world import Table
from synthesis.domains.access_tools import SYSTEMS
from synthesis.domains.names import FIRST_NAMES, LAST_NAMES
from synthesis.scripted_user import user_table

NUM_MANAGERS, NUM_MEMBERS, NUM_REQUESTS, NUM_LOGINS = 2, 4, 8, 14
Row = dict[str, Any]


@dataclass(frozen=True, kw_only=True, slots=True)
class Request:
    """What the desk is told. request_id: empty where only `name` is given. system: the incident's."""

    min_training: int
    request_id: str = ""
    name: str = ""
    system: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class Desk:
    """The tables' rows, by column."""

    employees: Sequence[Row]
    systems: Sequence[Row]
    requests: Sequence[Row]
    logins: Sequence[Row]

    def employee(self, employee_id: str) -> Row:
        return next(row for row in self.employees if row["employee_id"] == employee_id)

    def protection(self, system: str) -> str:
        return next(row["protection"] for row in self.systems if row["system"] == system)

    def open_requests(self, employee_id: str | None = None) -> list[Row]:
        return [r for r in self.requests if r["state"] == "open" and employee_id in (None, r["employee_id"])]

    def granted(self, employee_id: str) -> list[str]:
        own = [row for row in self.requests if row["employee_id"] == employee_id]
        return [row["request_id"] for row in own if row["state"] == "granted"]

    def intruders(self, system: str) -> list[str]:
        """Who logged in to `system` without a grant."""
        holders = {
            r["employee_id"] for r in self.requests if (r["system"], r["state"]) == (system, "granted")
        }
        inside = {
            row["employee_id"] for row in self.logins if (row["system"], row["outcome"]) == (system, "ok")
        }
        return sorted(inside - holders)

    def tables(self, said: Mapping[str, str]) -> tuple[Table, ...]:
        named = {name: getattr(self, name) for name in ("employees", "systems", "requests", "logins")}
        columns = {name: [(c, _kind(v)) for c, v in rows[0].items()] for name, rows in named.items()}
        return (
            *(
                Table(name=name, columns=tuple(columns[name]), rows=[tuple(row.values()) for row in rows])
                for name, rows in named.items()
            ),
            user_table(said),
        )


def _kind(value: object) -> str:
    return "INTEGER" if isinstance(value, int) else "TEXT"


def broken_rule(
    employee: Mapping[str, Any], approved_by: str, protection: str, min_training: int
) -> str | None:
    """The first rule that a request breaks, in the policy's order; None when it may be granted."""
    if employee["status"] != "active":
        return "inactive"
    if approved_by != employee["manager_id"]:
        return "approval"
    if protection == "restricted" and employee["contract"] == "contractor":
        return "contract"
    if protection == "restricted" and employee["training"] < min_training:
        return "training"
    return None


def policy_text(min_training: int) -> str:
    return (
        "You run the IT desk with the tools.\n"
        "Access: read a request before you decide it; if several open ones may be meant, ask the user which "
        "system it is about. Go through these rules in order. inactive: the requester is active. approval: "
        "the requester's own manager approved it. contract: no contractor gets a restricted system. "
        f"training: for a restricted system the last training was in {min_training} or later. Deny a request "
        "with the first rule that it breaks and answer denied; if it breaks none, grant it and answer "
        "granted.\n"
        "Incidents: a login that went ok by somebody who holds no granted request for that system is an "
        "incident; one that failed is not. Lock that account, revoke every granted request that it holds "
        "and leave the rest, and answer locked. If there is no incident, change nothing and answer clean."
    )


def draw_desk(rng: random.Random) -> Desk:
    num_people = NUM_MANAGERS + NUM_MEMBERS
    ids = [f"E{n}" for n in rng.sample(range(10, 100), num_people)]
    names = zip(rng.sample(FIRST_NAMES, num_people), rng.sample(LAST_NAMES, num_people), strict=True)
    managers, members = ids[:NUM_MANAGERS], ids[NUM_MANAGERS:]
    employees = [
        {
            "employee_id": employee_id,
            "name": f"{first} {last}",
            "status": "active" if employee_id in managers else rng.choices(("active", "on leave"), (3, 1))[0],
            "contract": "staff"
            if employee_id in managers
            else rng.choices(("staff", "contractor"), (3, 1))[0],
            "manager_id": next(m for m in managers if m != employee_id)
            if employee_id in managers
            else rng.choice(managers),
            "training": rng.randrange(2019, 2026),
        }
        for employee_id, (first, last) in zip(ids, names, strict=True)
    ]
    systems = [
        {"system": name, "protection": protection}
        for name, protection in zip(
            rng.sample(SYSTEMS, 4), ("open", "open", "restricted", "restricted"), strict=True
        )
    ]
    manager_of = {row["employee_id"]: row["manager_id"] for row in employees}
    pairs = [(employee_id, row["system"]) for employee_id in members for row in systems]
    request_ids = iter(rng.sample(range(100, 1000), len(pairs)))
    requests = [
        {
            "request_id": f"R{next(request_ids)}",
            "employee_id": employee_id,
            "system": system,
            "approved_by": manager_of[employee_id] if rng.random() < 0.7 else rng.choice(managers),
            "state": rng.choices(("open", "granted", "denied"), (4, 4, 1))[0],
            "reason": "none",
        }
        for employee_id, system in rng.sample(pairs, NUM_REQUESTS)
    ]
    return Desk(employees=employees, systems=systems, requests=requests, logins=_logins(rng, requests, ids))


def _logins(rng: random.Random, requests: Sequence[Row], ids: Sequence[str]) -> list[Row]:
    """Those who hold a grant get in and the others fail, up to one, who gets in."""
    holders = {(r["employee_id"], r["system"]) for r in requests if r["state"] == "granted"}
    systems = sorted({r["system"] for r in requests})
    known = [(e, s) for e in ids for s in systems]
    pairs = rng.sample(known, min(NUM_LOGINS, len(known)))  # all requests may be for two systems
    intruder = rng.choice([pair for pair in pairs if pair not in holders])
    numbers = rng.sample(range(1000, 10000), len(pairs))
    return [
        {
            "login_id": f"L{number}",
            "employee_id": pair[0],
            "system": pair[1],
            "outcome": "ok" if pair in holders or pair == intruder else "failed",
        }
        for number, pair in zip(numbers, pairs, strict=True)
    ]
