"""The tools of the warehouse domain: orders, deliveries, bills and offers to read, bills to settle."""

from envs.tools import Param, Requirement, Tool, Write
from synthesis.surface import AFTER, SURFACES, Surface, exists, page_of

REASONS = ("unordered", "quantity", "price")
_INVOICE = Param(name="invoice", description="The invoice's number.")
_ORDER = Param(name="po", description="The purchase order's number.")
_BILL = Param(name="bill", description="The id of the line of an invoice.")
_SKU = Param(name="sku", description="The item's code.")

_RECORDS = (
    ("bill", "bills", _INVOICE, "sku, billed, unit_price", "{sku}; {billed} pieces at {unit_price}"),
    ("line", "lines", _ORDER, "sku, ordered, price", "{sku}; {ordered} pieces at {price}"),
    ("receipt", "receipts", _ORDER, "code, received", "{code}; {received} pieces"),
    ("offer", "offers", _SKU, "supplier, price, days", "{supplier}; {price} apiece, in {days} days"),
)
"""Thing, table, what it is looked up by, and what is shown of it."""
_ABOUT = {
    "bill": "the lines of an invoice",
    "line": "the lines of a purchase order",
    "receipt": "the delivery notes for a purchase order",
    "offer": "the suppliers' offers of an item",
}


def _reading(surface: Surface) -> tuple[Tool, ...]:
    """How records are found: what the granularity changes."""
    tools: list[Tool] = []
    for thing, table, key, columns, row in _RECORDS:
        if surface.search:
            tools.append(
                Tool(
                    name=f"search_{table}",
                    description=f"Gives {_ABOUT[thing]}, each with all that is known of it.",
                    parameters=(key,),
                    query=f"SELECT {thing}, {columns} FROM {table} WHERE {key.name} = :{key.name} "
                    f"ORDER BY {thing}",
                    row_format=f"{{{thing}}}: {row}",
                    reads=(table,),
                )
            )
            continue
        tools.append(
            Tool(
                name=f"list_{table}",
                description=f"The ids of {_ABOUT[thing]}.",
                parameters=(key, AFTER),
                query=page_of(table, thing, f"{key.name} = :{key.name}"),
                row_format=f"{{{thing}}}",
                reads=(table,),
            )
        )
        tools.append(
            Tool(
                name=f"get_{thing}",
                description=f"What is known of one of {_ABOUT[thing]}.",
                parameters=(Param(name=thing, description="Its id."),),
                requires=(exists(surface, thing, table, thing),),
                query=f"SELECT {columns} FROM {table} WHERE {thing} = :{thing}",
                row_format=row,
                reads=(table,),
            )
        )
    return tuple(tools)


def _settling(surface: Surface) -> tuple[Tool, ...]:
    bill = exists(surface, "line", "bills", "bill")
    within = Requirement(
        sql="SELECT 1 FROM bills, desk WHERE bill = :bill AND billed * unit_price <= max_amount",
        error=surface.refusal("the amount of {bill} is above what this desk may approve"),
    )
    writes = (Write(table="bills", operation="update", columns=("decision",)),)
    return (
        Tool(
            name="escalate_bill",
            description="Leaves a line of an invoice to a manager.",
            parameters=(_BILL,),
            requires=(bill,),
            statements=("UPDATE bills SET decision = 'escalated' WHERE bill = :bill",),
            done="escalated",
            reads=("bills",),
            writes=writes,
        ),
        Tool(
            name="approve_bill",
            description="Approves a line of an invoice for payment.",
            parameters=(_BILL,),
            requires=(bill, within),
            statements=("UPDATE bills SET decision = 'approved' WHERE bill = :bill",),
            done="approved",
            reads=("bills", "desk"),
            writes=writes,
        ),
        Tool(
            name="dispute_bill",
            description="Disputes a line of an invoice.",
            parameters=(_BILL, Param(name="reason", description="What is wrong with it.", enum=REASONS)),
            requires=(bill,),
            statements=("UPDATE bills SET decision = :reason WHERE bill = :bill",),
            done="disputed",
            reads=("bills",),
            writes=writes,
        ),
    )


def _toolset(surface: Surface) -> tuple[Tool, ...]:
    order, fee = surface.word("order", "purchase order"), surface.word("handling fee", "handling")
    return (
        Tool(
            name="get_invoice",
            description="Supplier and purchase order of an invoice.",
            parameters=(_INVOICE,),
            requires=(exists(surface, "invoice", "invoices", "invoice"),),
            query="SELECT supplier, po FROM invoices WHERE invoice = :invoice",
            row_format=f"{{supplier}}; {order} {{po}}",
            reads=("invoices",),
        ),
        Tool(
            name="get_supplier",
            description="Town and handling fee of a supplier.",
            parameters=(Param(name="supplier", description="The supplier's name."),),
            requires=(exists(surface, "supplier", "suppliers", "supplier"),),
            query="SELECT town, handling FROM suppliers WHERE supplier = :supplier",
            row_format=f"{{town}}; {fee} {{handling}}",
            reads=("suppliers",),
        ),
        *_reading(surface),
        *_settling(surface),
    )


TOOLSETS = tuple(_toolset(surface) for surface in SURFACES)
