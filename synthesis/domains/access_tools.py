"""The IT desk's tools, on each surface: employees, systems, access requests, the log of logins."""

from envs.tools import Param, Tool, Write
from synthesis.scripted_user import ask_user
from synthesis.surface import AFTER, SURFACES, Surface, exists, page_of

SYSTEMS = ("Atlas", "Beacon", "Orchard", "Payroll", "Quarry", "Vault")
REASONS = ("inactive", "approval", "contract", "training")
TOPICS = ("system", "date")

_REQUEST = Param(name="request_id", description="The request's id.")
_EMPLOYEE = Param(name="employee_id", description="The employee's id.")
_SYSTEM = Param(name="system", description="The system's name.", enum=SYSTEMS)


def _people(surface: Surface) -> tuple[Tool, ...]:
    manager = surface.word("manager", "reports to")
    return (
        Tool(
            name="find_employee",
            description="The id of the employee with this name.",
            parameters=(Param(name="name", description="First and last name."),),
            query="SELECT employee_id FROM employees WHERE name = :name",
            row_format="{employee_id}",
            reads=("employees",),
        ),
        Tool(
            name="get_employee",
            description="Name, status, contract, manager and year of the last security training.",
            parameters=(_EMPLOYEE,),
            requires=(exists(surface, "employee", "employees", "employee_id"),),
            query="SELECT name, status, contract, manager_id, training FROM employees "
            "WHERE employee_id = :employee_id",
            row_format=f"{{name}}; {{status}}; {{contract}}; {manager} {{manager_id}}; trained {{training}}",
            reads=("employees",),
        ),
        Tool(
            name="get_system",
            description="How a system is protected: open or restricted.",
            parameters=(_SYSTEM,),
            query="SELECT protection FROM systems WHERE system = :system",
            row_format="{protection}",
            reads=("systems",),
        ),
    )


def _records(surface: Surface) -> tuple[Tool, ...]:
    """Requests and logins: whole by search, or ids by page; a request can always be read by its id."""
    get_request = Tool(
        name="get_request",
        description="Who wants which system, who approved it, and its state.",
        parameters=(_REQUEST,),
        requires=(exists(surface, "request", "requests", "request_id"),),
        query="SELECT employee_id, system, approved_by, state FROM requests WHERE request_id = :request_id",
        row_format="{employee_id} wants {system}; approved by {approved_by}; {state}",
        reads=("requests",),
    )
    if surface.search:
        return (
            get_request,
            Tool(
                name="search_requests",
                description="An employee's requests, each with its system and state.",
                parameters=(_EMPLOYEE,),
                query="SELECT request_id, system, state FROM requests WHERE employee_id = :employee_id "
                "ORDER BY request_id",
                row_format="{request_id} {system} {state}",
                reads=("requests",),
            ),
            Tool(
                name="search_logins",
                description="The log of a system: who logged in, and how it went.",
                parameters=(_SYSTEM,),
                query="SELECT login_id, employee_id, outcome FROM logins WHERE system = :system "
                "ORDER BY login_id",
                row_format="{login_id} {employee_id} {outcome}",
                reads=("logins",),
            ),
        )
    return (
        get_request,
        Tool(
            name="list_requests",
            description="The ids of an employee's requests.",
            parameters=(_EMPLOYEE, AFTER),
            query=page_of("requests", "request_id", "employee_id = :employee_id"),
            row_format="{request_id}",
            reads=("requests",),
        ),
        Tool(
            name="list_logins",
            description="The ids of a system's logins.",
            parameters=(_SYSTEM, AFTER),
            query=page_of("logins", "login_id", "system = :system"),
            row_format="{login_id}",
            reads=("logins",),
        ),
        Tool(
            name="get_login",
            description="Who logged in, and how it went.",
            parameters=(Param(name="login_id", description="The login's id."),),
            requires=(exists(surface, "login", "logins", "login_id"),),
            query="SELECT employee_id, outcome FROM logins WHERE login_id = :login_id",
            row_format="{employee_id} {outcome}",
            reads=("logins",),
        ),
    )


def _decision(surface: Surface, name: str, description: str, state: str) -> Tool:
    """A tool that moves a request into `state`; a denial has its reason."""
    with_reason = state == "denied"
    why = (Param(name="reason", description="The rule that is broken.", enum=REASONS),)
    return Tool(
        name=name,
        description=description,
        parameters=(_REQUEST, *(why if with_reason else ())),
        requires=(exists(surface, "request", "requests", "request_id"),),
        statements=(
            f"UPDATE requests SET state = '{state}'{', reason = :reason' if with_reason else ''}"
            " WHERE request_id = :request_id",
        ),
        done=state,
        reads=("requests",),
        writes=(
            Write(
                table="requests",
                operation="update",
                columns=("reason", "state") if with_reason else ("state",),
            ),
        ),
    )


def _make_tools(surface: Surface) -> tuple[Tool, ...]:
    return (
        *_people(surface),
        *_records(surface),
        _decision(surface, "grant_request", "Grants a request.", "granted"),
        _decision(surface, "deny_request", "Denies a request, with the rule that it breaks.", "denied"),
        _decision(surface, "revoke_request", "Takes back what a request was granted.", "revoked"),
        Tool(
            name="lock_account",
            description="Locks an employee's account.",
            parameters=(_EMPLOYEE,),
            requires=(exists(surface, "employee", "employees", "employee_id"),),
            statements=("UPDATE employees SET status = 'locked' WHERE employee_id = :employee_id",),
            done="locked",
            reads=("employees",),
            writes=(Write(table="employees", operation="update", columns=("status",)),),
        ),
        ask_user(TOPICS),
    )


TOOLSETS = tuple(_make_tools(surface) for surface in SURFACES)
