"""The tools of the airline domain: bookings, flights and extras to read, and the writes of a rebooking."""

from envs.tools import Param, Tool, Write
from synthesis.surface import AFTER, SURFACES, Surface, exists, page_of

FEES = ("none", "half", "full")
_BOOKING = Param(name="booking", description="The booking's code.")
_FLIGHT = Param(name="flight", description="The flight's number.")
_ROUTE = (
    Param(name="origin", description="The city that it leaves."),
    Param(name="destination", description="The city that it goes to."),
)
_ON_ROUTE = "origin = :origin AND destination = :destination"
_FLIGHT_FIELDS = "origin, destination, departs, arrives, minutes, fare, seats, status"


def _flight_row(surface: Surface) -> str:
    price, seats = surface.word("fare", "price"), surface.word("free seats", "seats left")
    return (
        "{origin} to {destination}; {departs} to {arrives}, {minutes} minutes; "
        f"{price} {{fare}}; {{seats}} {seats}; {{status}}"
    )


def _finding(surface: Surface) -> tuple[Tool, ...]:
    """How bookings and flights are found: what the granularity changes."""
    if surface.search:
        return (
            Tool(
                name="search_bookings",
                description="The bookings of the passenger with this name, with their flights.",
                parameters=(Param(name="name", description="First and last name."),),
                query="SELECT b.booking, b.flight, f.origin, f.destination FROM bookings b "
                "JOIN passengers p ON p.passenger_id = b.passenger_id JOIN flights f ON f.flight = b.flight "
                "WHERE p.name = :name ORDER BY b.booking",
                row_format="{booking}: {flight} from {origin} to {destination}",
                reads=("bookings", "flights", "passengers"),
            ),
            Tool(
                name="search_flights",
                description="The flights from one city to another, with all that is known of them.",
                parameters=_ROUTE,
                query=f"SELECT flight, {_FLIGHT_FIELDS} FROM flights WHERE {_ON_ROUTE} ORDER BY flight",
                row_format="{flight}: " + _flight_row(surface),
                reads=("flights",),
            ),
        )
    return (
        Tool(
            name="find_passenger_id",
            description="The id of the passenger with this name.",
            parameters=(Param(name="name", description="First and last name."),),
            query="SELECT passenger_id FROM passengers WHERE name = :name",
            row_format="{passenger_id}",
            reads=("passengers",),
        ),
        Tool(
            name="list_bookings",
            description="The codes of a passenger's bookings.",
            parameters=(Param(name="passenger_id", description="The passenger's id."),),
            query="SELECT booking FROM bookings WHERE passenger_id = :passenger_id ORDER BY booking",
            row_format="{booking}",
            reads=("bookings",),
        ),
        Tool(
            name="list_flights",
            description="The numbers of the flights from one city to another.",
            parameters=(*_ROUTE, AFTER),
            query=page_of("flights", "flight", _ON_ROUTE),
            row_format="{flight}",
            reads=("flights",),
        ),
    )


def _toolset(surface: Surface) -> tuple[Tool, ...]:
    booking = exists(surface, "booking", "bookings", "booking")
    flight = exists(surface, "flight", "flights", "flight")
    return (
        *_finding(surface),
        Tool(
            name="get_booking",
            description="Passenger, flight and ticket of a booking.",
            parameters=(_BOOKING,),
            requires=(booking,),
            query="SELECT passenger_id, flight, ticket FROM bookings WHERE booking = :booking",
            row_format="passenger {passenger_id}; flight {flight}; "
            f"{surface.word('ticket', 'fare class')} {{ticket}}",
            reads=("bookings",),
        ),
        Tool(
            name="get_passenger",
            description="Name and tier of a passenger.",
            parameters=(Param(name="passenger_id", description="The passenger's id."),),
            requires=(exists(surface, "passenger", "passengers", "passenger_id"),),
            query="SELECT name, tier FROM passengers WHERE passenger_id = :passenger_id",
            row_format="{name}; {tier}",
            reads=("passengers",),
        ),
        Tool(
            name="get_flight",
            description="Route, times, price, free seats and status of a flight.",
            parameters=(_FLIGHT,),
            requires=(flight,),
            query=f"SELECT {_FLIGHT_FIELDS} FROM flights WHERE flight = :flight",
            row_format=_flight_row(surface),
            reads=("flights",),
        ),
        Tool(
            name="get_extras",
            description="The extras of a booking: its bags, meals and seats.",
            parameters=(_BOOKING,),
            requires=(booking,),
            query="SELECT extra, kind, state FROM extras WHERE booking = :booking ORDER BY extra",
            row_format="{extra}: {kind}, {state}",
            reads=("bookings", "extras"),
        ),
        Tool(
            name="change_flight",
            description="Puts a booking on another flight and charges the fee.",
            parameters=(_BOOKING, _FLIGHT, Param(name="fee", description="What to charge.", enum=FEES)),
            requires=(booking, flight),
            statements=("UPDATE bookings SET flight = :flight, fee = :fee WHERE booking = :booking",),
            done="changed",
            reads=("bookings", "flights"),
            writes=(Write(table="bookings", operation="update", columns=("fee", "flight")),),
        ),
        *(_extra_tool(surface, verb, state) for verb, state in (("move", "moved"), ("cancel", "cancelled"))),
    )


def _extra_tool(surface: Surface, verb: str, state: str) -> Tool:
    return Tool(
        name=f"{verb}_extra",
        description="Cancels an extra." if verb == "cancel" else "Moves an extra to its booking's flight.",
        parameters=(Param(name="extra", description="The extra's id."),),
        requires=(exists(surface, "extra", "extras", "extra"),),
        statements=(f"UPDATE extras SET state = '{state}' WHERE extra = :extra",),
        done=state,
        reads=("extras",),
        writes=(Write(table="extras", operation="update", columns=("state",)),),
    )


TOOLSETS = tuple(_toolset(surface) for surface in SURFACES)
