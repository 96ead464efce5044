"""The world of the trip domain: cities with their hotels, restaurants and attractions, trains and
forecasts.
"""

import random
from collections.abc import Mapping
from dataclasses import dataclass

from envs.world import Table
from synthesis.domains.names import CITIES, PLACES

KIND_OF: Mapping[str, str] = {
    "hotel": "hotel",
    "afternoon_restaurant": "restaurant",
    "evening_restaurant": "restaurant",
    "afternoon_attraction": "attraction",
}
"""Which kind of place an answer's column holds."""
PRICE_WORD: Mapping[str, str] = {"hotel": "price", "restaurant": "price", "attraction": "ticket"}
_PRICES = {"hotel": (200, 1000), "restaurant": (100, 500), "attraction": (100, 400)}
DATES = ("2025-10-01", "2025-10-02", "2025-10-03")


@dataclass(frozen=True, kw_only=True, slots=True)
class Place:
    """price in CNY (an attraction's is its ticket); rating from 3.0 to 4.9; rank orders the listings."""

    name: str
    kind: str
    city: str
    rank: int
    price: int
    rating: float

    def value(self, word: str) -> float:
        return self.rating if word == "rating" else self.price


@dataclass(frozen=True, kw_only=True, slots=True)
class TripWorld:
    cities: tuple[str, ...]
    all_places: tuple[Place, ...]
    trains: tuple[tuple[str, str, str, int, int], ...]
    forecasts: tuple[tuple[str, str, str, str], ...]

    def places(self, kind: str, city: str | None = None) -> list[Place]:
        found = [p for p in self.all_places if p.kind == kind and city in (None, p.city)]
        return sorted(found, key=lambda place: (place.rank, place.name))

    def tables(self) -> tuple[Table, ...]:
        tables = [
            Table(
                name="cities",
                columns=(("city", "TEXT"), ("metro", "TEXT"), ("taxi", "INTEGER")),
                rows=[(city, "yes" if i % 2 else "no", 10 + i) for i, city in enumerate(self.cities)],
            ),
            Table(
                name="trains",
                columns=(
                    ("train", "TEXT"), ("from_city", "TEXT"), ("to_city", "TEXT"),
                    ("price", "INTEGER"), ("minutes", "INTEGER"),
                ),
                rows=self.trains,
            ),
            Table(
                name="forecasts",
                columns=(("forecast", "TEXT"), ("city", "TEXT"), ("date", "TEXT"), ("weather", "TEXT")),
                rows=self.forecasts,
            ),
        ]  # fmt: skip
        for kind, word in PRICE_WORD.items():
            columns = (
                (kind, "TEXT"),
                ("city", "TEXT"),
                ("rank", "INTEGER"),
                (word, "INTEGER"),
                ("rating", "REAL"),
            )
            rows = [(p.name, p.city, p.rank, p.price, p.rating) for p in self.places(kind)]
            tables.append(Table(name=f"{kind}s", columns=columns, rows=rows))
        return tuple(tables)


def build_world(
    rng: random.Random, *, num_cities: int, num_places: Mapping[str, int], home: str | None = None
) -> TripWorld:
    """`num_places` of each kind ("hotel", ...) in each of `num_cities` cities; `home` is a city without
    places, to start from. No name is borne twice in a city, nor by two places of one kind.
    """
    cities = rng.sample([city for city in CITIES if city != home], num_cities)
    stride = max(num_places.values())
    names = rng.sample(PLACES, (num_cities + len(_PRICES) - 1) * stride)
    places = []
    for kind_index, (kind, (low, high)) in enumerate(_PRICES.items()):
        for city_index, city in enumerate(cities):
            first = (city_index + kind_index) * stride
            prices = rng.sample(range(low, high, 10), num_places[kind])
            for rank in range(num_places[kind]):
                places.append(
                    Place(
                        name=names[first + rank],
                        kind=kind,
                        city=city,
                        rank=rank,
                        price=prices[rank],
                        rating=rng.randrange(30, 50) / 10,
                    )
                )
    everywhere: list[str] = sorted([*cities, home] if home else cities)
    pairs = [(a, b) for a in everywhere for b in everywhere if a != b]
    trains = tuple(
        (f"G{100 + i}", a, b, rng.randrange(50, 300, 10), rng.randrange(30, 240, 5))
        for i, (a, b) in enumerate(pairs)
    )
    forecasts = tuple(
        (f"{city} {date}", city, date, rng.choice(("sun", "rain", "cloud")))
        for city in everywhere
        for date in DATES
    )
    return TripWorld(cities=tuple(cities), all_places=tuple(places), trains=trains, forecasts=forecasts)
