"""Names that the grammars draw from: one word each, so that a policy copies a name as one piece."""

CITIES = (
    "Hangzhou", "Suzhou", "Nanjing", "Ningbo", "Xiamen", "Qingdao", "Chengdu", "Kunming", "Guilin",
    "Lanzhou",
)  # fmt: skip
HOTELS = (
    "Aldora", "Benting", "Corvo", "Delphine", "Elmsworth", "Fairholt", "Grantley", "Hollis", "Ivora",
    "Jasmira", "Kestrel", "Larkhill",
)  # fmt: skip
RESTAURANTS = (
    "Amberly", "Basilico", "Cinnabar", "Dumplings", "Emberfire", "Figtree", "Gingko", "Harvest", "Ironwok",
    "Jadebowl", "Kumquat", "Lemongrass",
)  # fmt: skip
ATTRACTIONS = (
    "Aquarium", "Belfry", "Causeway", "Dragonhill", "Embankment", "Falls", "Gardens", "Heronry", "Islets",
    "Jetty", "Kilns", "Lagoon",
)  # fmt: skip
FIRST_NAMES = (
    "Ada", "Bruno", "Clara", "Dario", "Elena", "Felix", "Greta", "Hugo", "Ines", "Jonas",
)  # fmt: skip
LAST_NAMES = (
    "Adler", "Bloom", "Chen", "Duarte", "Eklund", "Fischer", "Garcia", "Haas", "Ito", "Jensen",
)  # fmt: skip
ITEMS = (
    "armchair", "backpack", "camera", "drill", "easel", "fan", "guitar", "hammock", "iron", "jacket",
    "kettle", "lamp",
)  # fmt: skip
ORDER_IDS = (
    "KA", "LB", "MC", "ND", "OE", "PF", "QG", "RH", "SI", "TJ", "UK", "VL",
    "WM", "XN", "YO", "ZP", "AQ", "BR", "CS", "DT", "EU", "FV", "GW", "HX",
)  # fmt: skip
