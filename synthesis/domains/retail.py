"""Retail orders under a policy: cancel and return what the rules allow, refuse the rest, read before you act.

Levels: 1 cancel an order by its id; 2 return one by its id (days since delivery, refund as paid); 3 find the
order of an item that the customer names, and cancel it, among two to four orders, or return it, among two or
three; 4 find and return it among four. 1 to 3 may be shown to a cold start.
"""

import random
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

from envs.task import AnswerSpec, Call, Clause, FrameRule, GuessSpace, Plan
from envs.tools import Param, Requirement, Tool, Write
from envs.world import Table
from synthesis.domains.names import FIRST_NAMES, ITEMS, LAST_NAMES, ORDER_IDS
from synthesis.facts import Facts, twin_drafts
from synthesis.grammar import Care, Client, Draft, quote
from synthesis.solver import Allow, Problem

VERSION = 2
STATUSES = ("pending", "delivered", "shipped")
PAYMENTS = ("card", "cash", "points")
DAY_LIMITS = (20, 30, 40, 50)
Action = Literal["cancel", "return"]
OrderRow = tuple[str, str, str, str, str, int, str]
"""An order: its id, the customer's, item, status, payment, days since delivery, refund."""
_ACTIONS: tuple[Action, ...] = ("cancel", "return")
_ACTION_OF_LEVEL: dict[int, Action] = {1: "cancel", 2: "return", 4: "return"}
_ORDER = Param(name="order_id", description="The order's two letters.")
_EXISTS = Requirement(
    sql="SELECT 1 FROM orders WHERE order_id = :order_id", error="error: there is no order {order_id}"
)

TOOLS = (
    Tool(
        name="find_user_id",
        description="The id of the customer with this name.",
        parameters=(Param(name="name", description="First and last name."),),
        query="SELECT user_id FROM users WHERE name = :name",
        row_format="{user_id}",
        reads=("users",),
    ),
    Tool(
        name="get_user_orders",
        description="The ids of a customer's orders.",
        parameters=(Param(name="user_id", description="The customer's id."),),
        query="SELECT order_id FROM orders WHERE user_id = :user_id ORDER BY order_id",
        row_format="{order_id}",
        reads=("orders",),
    ),
    Tool(
        name="get_order_details",
        description="Item, status, payment and, if delivered, the days since delivery.",
        parameters=(_ORDER,),
        requires=(_EXISTS,),
        query="SELECT item, status, paid, days FROM orders WHERE order_id = :order_id",
        row_format="{item}; {status}; paid by {paid}; {days} days",
        reads=("orders",),
    ),
    Tool(
        name="cancel_order",
        description="Cancels an order.",
        parameters=(_ORDER,),
        requires=(_EXISTS,),
        statements=("UPDATE orders SET status = 'cancelled' WHERE order_id = :order_id",),
        done="cancelled",
        reads=("orders",),
        writes=(Write(table="orders", operation="update", columns=("status",)),),
    ),
    Tool(
        name="return_order",
        description="Takes an order back and refunds it.",
        parameters=(_ORDER, Param(name="refund_to", description="How to refund.", enum=PAYMENTS)),
        requires=(_EXISTS,),
        statements=("UPDATE orders SET status = 'returned', refund = :refund_to WHERE order_id = :order_id",),
        done="returned",
        reads=("orders",),
        writes=(Write(table="orders", operation="update", columns=("refund", "status")),),
    ),
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Request:
    """What the customer asks for, as the prompt says it."""

    action: Action
    name: str
    order_id: str
    """Empty when the customer names the item instead."""
    item: str
    day_limit: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Shop:
    """The world: customers as (id, name), and orders."""

    users: list[tuple[str, str]]
    orders: list[OrderRow]


def policy_text(day_limit: int) -> str:
    return (
        "You serve the customers of a shop with the tools.\n"
        "Read the details of an order before you decide about it.\n"
        "Cancel an order only while it is pending.\n"
        f"Return an order only if it is delivered, at most {day_limit} days ago, and refund it the "
        "way it was paid.\n"
        "If a request is against these rules, change nothing and answer refused. Else do it and answer done."
    )


def is_allowed(action: str, *, status: str, days: int, day_limit: int) -> bool:
    if action == "cancel":
        return status == "pending"
    return status == "delivered" and days <= day_limit


@dataclass(frozen=True, slots=True)
class RetailDomain:
    name: str = "retail"
    version: int = VERSION
    levels: tuple[int, ...] = (1, 2, 3, 4)
    shown_levels: tuple[int, ...] = (1, 2, 3)
    twin_levels: tuple[int, ...] = (1, 2, 3, 4)
    tools: tuple[Tool, ...] = TOOLS

    def draft(self, level: int, seed: int) -> Draft | None:
        return self._make(level, seed, *self._drawn(level, seed))

    def twins(self, level: int, seed: int) -> Iterator[Draft]:
        """The wanted order is shipped or not yet, was paid otherwise, or came on another day."""
        request, order_id, rng, shop = self._drawn(level, seed)

        def other(row: OrderRow, values: Iterable[Any], *, is_delivered: bool) -> Iterable[Any]:
            return values if row[0] == order_id and (row[3] == "delivered") == is_delivered else ()

        facts: Facts = {
            "orders.3": lambda row: other(row, ("pending", "shipped"), is_delivered=False),
            "orders.4": lambda row: other(row, PAYMENTS, is_delivered=True),
            "orders.5": lambda row: other(row, range(10, 60), is_delivered=True),
        }
        yield from twin_drafts(partial(self._make, level, seed, request, order_id), rng, shop, facts)

    def _drawn(self, level: int, seed: int) -> tuple[Request, str, random.Random, Shop]:
        """Request and wanted order of a seed's shop, with the draws that are left for the prompt."""
        if level not in self.levels:
            raise ValueError(f"domain retail has the levels {self.levels}, not {level}")
        rng = random.Random(seed)
        action = _ACTION_OF_LEVEL.get(level) or rng.choice(_ACTIONS)
        longest = 3 if level == 3 and action == "return" else 4
        shop = _world(rng, orders_per_user=4 if level == 4 else rng.randint(2, longest))
        day_limit = rng.choice(DAY_LIMITS)
        order_id, user_id, item, *_ = _pick_order(rng, shop.orders, action, day_limit)
        by_item = level >= 3
        request = Request(
            action=action,
            name=next(row[1] for row in shop.users if row[0] == user_id),
            order_id="" if by_item else order_id,
            item=item if by_item else "",
            day_limit=day_limit,
        )
        return request, order_id, rng, shop

    def _make(
        self, level: int, seed: int, request: Request, order_id: str, rng: random.Random, shop: Shop
    ) -> Draft:
        action, day_limit = request.action, request.day_limit
        status, paid, days = next(row[3:6] for row in shop.orders if row[0] == order_id)
        allowed = is_allowed(action, status=status, days=days, day_limit=day_limit)
        plans = _guesses(shop.orders)
        right = _plan_name(action if allowed else "refuse", order_id, paid)
        columns = ("order_id", "user_id", "item", "status", "paid", "days", "refund")
        kinds = ("TEXT", "TEXT", "TEXT", "TEXT", "TEXT", "INTEGER", "TEXT")
        return Draft(
            domain=self.name,
            level=level,
            seed=seed,
            tables=(
                Table(name="users", columns=(("user_id", "TEXT"), ("name", "TEXT")), rows=shop.users),
                Table(name="orders", columns=tuple(zip(columns, kinds, strict=True)), rows=shop.orders),
            ),
            system=policy_text(day_limit),
            prompt=_prompt(rng, request),
            tools=self.tools,
            clauses=_clauses(action, order_id, paid, allowed),
            frame=_frame(action, order_id) if allowed else (),
            answer=AnswerSpec(kind="choice", choices=("done", "refused")),
            guess=GuessSpace(plans=tuple(plans.values())),
            problem=Problem(
                options={"plan": tuple(plans)},
                constraints=(Allow(name="the rules", variable="plan", options=frozenset({right})),),
            ),
            goal=request,
            max_turns=16,
        )

    def plan(self, draft: Draft, client: Client, care: Care) -> Plan:
        request: Request = draft.goal
        order_id, details = _find_order(client, request, care)
        if details is None:  # acted without reading
            _act(client, request.action, order_id, care.rng.choice(PAYMENTS))
            return Plan(calls=tuple(client.calls), answer="done")
        allowed = is_allowed(
            request.action, status=details["status"], days=details["days"], day_limit=request.day_limit
        )
        if care.slips():
            allowed = not allowed
        if not allowed:
            return Plan(calls=tuple(client.calls), answer="refused")
        refund = care.rng.choice(PAYMENTS) if request.action == "return" and care.slips() else details["paid"]
        _act(client, request.action, order_id, refund)
        return Plan(calls=tuple(client.calls), answer="done")


def _world(rng: random.Random, *, orders_per_user: int) -> Shop:
    num_users = 2
    names = [
        f"{a} {b}"
        for a, b in zip(rng.sample(FIRST_NAMES, num_users), rng.sample(LAST_NAMES, num_users), strict=True)
    ]
    user_ids = [f"U{n}" for n in rng.sample(range(10, 100), num_users)]
    order_ids = rng.sample(ORDER_IDS, orders_per_user * num_users)
    orders = []
    for index, user_id in enumerate(user_ids):
        own = order_ids[orders_per_user * index : orders_per_user * (index + 1)]
        items = rng.sample(ITEMS, orders_per_user)
        for order_id, item in zip(own, items, strict=True):
            status = rng.choices(STATUSES, weights=(4, 5, 1))[0]
            days = rng.randrange(10, 60) if status == "delivered" else 0
            orders.append((order_id, user_id, item, status, rng.choice(PAYMENTS), days, "none"))
    return Shop(users=sorted(zip(user_ids, names, strict=True)), orders=sorted(orders))


def _pick_order(rng: random.Random, orders: list[OrderRow], action: str, day_limit: int) -> OrderRow:
    """Two wanted orders in three are within the rules, where the world has such."""
    allowed = rng.random() < 2 / 3
    fitting = [
        o for o in orders if is_allowed(action, status=o[3], days=o[5], day_limit=day_limit) == allowed
    ]
    return rng.choice(fitting or orders)


def _prompt(rng: random.Random, request: Request) -> str:
    verb = {"cancel": ("cancel", "call off"), "return": ("return", "send back")}[request.action]
    what = f"order {request.order_id}" if request.order_id else f"the {request.item}"
    opening = rng.choice(("I am {}.", "This is {}.")).format(request.name)
    wish = rng.choice(("Please {} {}.", "I want to {} {}.")).format(rng.choice(verb), what)
    return f"{opening} {wish}"


def _plan_name(action: str, order_id: str, paid: str) -> str:
    return f"return {order_id} {paid}" if action == "return" else f"{action} {order_id}"


def _guesses(orders: list[OrderRow]) -> dict[str, Plan]:
    """Every decision about every order, each after reading it: what an agent that ignores what it reads may
    do.
    """
    plans: dict[str, Plan] = {}
    for order_id, *_ in orders:
        read = Call(tool="get_order_details", arguments={"order_id": order_id})
        plans[f"refuse {order_id}"] = Plan(calls=(read,), answer="refused")
        cancel = Call(tool="cancel_order", arguments={"order_id": order_id})
        plans[f"cancel {order_id}"] = Plan(calls=(read, cancel), answer="done")
        for paid in PAYMENTS:
            back = Call(tool="return_order", arguments={"order_id": order_id, "refund_to": paid})
            plans[f"return {order_id} {paid}"] = Plan(calls=(read, back), answer="done")
    return plans


def _clauses(action: str, order_id: str, paid: str, allowed: bool) -> tuple[Clause, ...]:
    order = quote(order_id)
    seen = (
        "SELECT 1 FROM journal WHERE tool = 'get_order_details' AND NOT error "
        f"AND json_extract(arguments, '$.order_id') = {order}"
    )
    clauses = [
        Clause(
            name="the details were read before the decision",
            part="policy",
            phrase="Read the details of an order before you decide about it.",
            sql=f"SELECT 1 WHERE NOT EXISTS ({seen} AND step < coalesce((SELECT min(step) FROM journal "
            "WHERE tool IN ('cancel_order', 'return_order')), 1000000))",
        ),
        Clause(
            name="nothing was changed twice",
            part="policy",
            sql="SELECT 1 FROM journal WHERE tool IN ('cancel_order', 'return_order') AND NOT error "
            "GROUP BY json_extract(arguments, '$.order_id') HAVING count(*) > 1",
        ),
    ]
    word = "done" if allowed else "refused"
    clauses.append(
        Clause(
            name=f"the answer is {word}", part="answer", sql=f"SELECT 1 FROM answer WHERE choice <> '{word}'"
        )
    )
    if allowed:
        state = (
            "status = 'cancelled'"
            if action == "cancel"
            else f"status = 'returned' AND refund = {quote(paid)}"
        )
        goal = f"SELECT 1 WHERE NOT EXISTS (SELECT 1 FROM orders WHERE order_id = {order} AND {state})"
        clauses.append(
            Clause(
                name=f"the order is {action}led" if action == "cancel" else "the order is returned",
                part="goal",
                sql=goal,
            )
        )
    return tuple(clauses)


def _frame(action: str, order_id: str) -> tuple[FrameRule, ...]:
    columns = ("status",) if action == "cancel" else ("status", "refund")
    return (FrameRule(table="orders", key=order_id, columns=columns),)


def _find_order(client: Client, request: Request, care: Care) -> tuple[str, dict[str, Any] | None]:
    """The wanted order and what was read of it; a slip takes an order without reading it."""
    if request.order_id:
        return request.order_id, None if care.slips() else _details(client, request.order_id)
    user_id = client.values("find_user_id", name=request.name)[0]
    order_ids = client.values("get_user_orders", user_id=user_id)
    if care.slips():
        return care.rng.choice(order_ids), None
    for order_id in order_ids:
        details = _details(client, order_id)
        if details["item"] == request.item:
            return order_id, details
    raise ValueError(f"no order of {request.name} holds the {request.item}")


def _details(client: Client, order_id: str) -> dict[str, Any]:
    return client.call("get_order_details", order_id=order_id).rows[0]


def _act(client: Client, action: str, order_id: str, refund: object) -> None:
    if action == "cancel":
        client.call("cancel_order", order_id=order_id)
    else:
        client.call("return_order", order_id=order_id, refund_to=refund)


DOMAIN = RetailDomain()
