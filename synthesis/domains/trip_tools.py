"""The fifteen tools of the paper's trip example (arXiv 2512.02556, figure of the general agent), as SQL."""

from envs.tools import Param, Requirement, Tool

HOTEL_KEYWORDS = ("city", "price", "rating")
RESTAURANT_KEYWORDS = ("city", "price", "rating")
ATTRACTION_KEYWORDS = ("city", "ticket", "rating")
CITY_KEYWORDS = ("metro", "taxi")


def _list_by_city(kind: str) -> Tool:
    return Tool(
        name=f"get_all_{kind}s_by_city",
        description=f"The names of all {kind}s in a city.",
        parameters=(Param(name="city", description="The city's name."),),
        query=f"SELECT {kind} FROM {kind}s WHERE city = :city ORDER BY rank, {kind}",
        row_format=f"{{{kind}}}",
        reads=(f"{kind}s",),
    )


def _city_by(kind: str) -> Tool:
    return Tool(
        name=f"get_city_by_{kind}",
        description=f"The city that a {kind} is in.",
        parameters=(Param(name=kind, description=f"The {kind}'s name."),),
        query=f"SELECT city FROM {kind}s WHERE {kind} = :{kind}",
        row_format="{city}",
        reads=(f"{kind}s",),
    )


def _infos_by(kind: str, plural: str, keywords: tuple[str, ...]) -> Tool:
    shown = " ".join(
        f"WHEN '{word}' THEN "
        + (f"printf('%.1f', t.{word})" if word == "rating" else f"CAST(t.{word} AS TEXT)")
        for word in keywords
    )
    return Tool(
        name=f"get_infos_by_{kind}",
        description=f"Facts about a {kind}: {', '.join(keywords)}.",
        parameters=(
            Param(name="info_keywords", description="Which facts, joined by a comma and a space."),
            Param(name=kind, description=f"The {kind}'s name."),
        ),
        requires=(
            Requirement(
                sql=f"SELECT 1 FROM {plural} WHERE {kind} = :{kind}",
                error=f"error: there is no {kind} {{{kind}}}",
            ),
        ),
        query=(
            f"SELECT k.value AS keyword, CASE k.value {shown} END AS info FROM {plural} AS t, "
            "json_each('[\"' || replace(:info_keywords, ', ', '\",\"') || '\"]') AS k "
            f"WHERE t.{kind} = :{kind} AND info IS NOT NULL"
        ),
        row_format="{keyword} {info}",
        separator="; ",
        empty=f"unknown keyword; a {kind} has {', '.join(keywords)}",
        reads=(plural,),
    )


TOOLS = (
    Tool(
        name="get_all_cities",
        description="The names of all cities.",
        query="SELECT city FROM cities ORDER BY city",
        row_format="{city}",
        reads=("cities",),
    ),
    _list_by_city("attraction"),
    _list_by_city("hotel"),
    _list_by_city("restaurant"),
    _city_by("attraction"),
    _city_by("hotel"),
    _city_by("restaurant"),
    Tool(
        name="get_city_transport",
        description="The ways to get about in a city.",
        parameters=(Param(name="city", description="The city's name."),),
        query="SELECT metro, taxi FROM cities WHERE city = :city",
        row_format="metro {metro}; taxi {taxi}",
        reads=("cities",),
    ),
    _infos_by("attraction", "attractions", ATTRACTION_KEYWORDS),
    _infos_by("city", "cities", CITY_KEYWORDS),
    _infos_by("hotel", "hotels", HOTEL_KEYWORDS),
    _infos_by("restaurant", "restaurants", RESTAURANT_KEYWORDS),
    Tool(
        name="get_inter_city_transport",
        description="The trains from one city to another, with price and minutes.",
        parameters=(
            Param(name="from_city", description="Where from."),
            Param(name="to_city", description="Where to."),
        ),
        query="SELECT train, price, minutes FROM trains WHERE from_city = :from_city AND to_city = :to_city",
        row_format="{train}: {price} CNY, {minutes} minutes",
        reads=("trains",),
    ),
    Tool(
        name="get_weather_by_city_date",
        description="The forecast for a city and a date.",
        parameters=(
            Param(name="city", description="The city's name."),
            Param(name="date", description="As YYYY-MM-DD."),
        ),
        query="SELECT weather FROM forecasts WHERE city = :city AND date = :date",
        row_format="{weather}",
        reads=("forecasts",),
    ),
    Tool(
        name="submit_result",
        description="Submits the final answer and ends the task.",
        parameters=(Param(name="answer_text", description="The plan as a JSON list."),),
        ends_episode=True,
    ),
)
