"""Names that the grammars draw from: one word each, so that a policy copies a name as one piece."""

CITIES = (
    "Hangzhou", "Suzhou", "Nanjing", "Ningbo", "Xiamen", "Qingdao", "Chengdu", "Kunming", "Guilin",
    "Lanzhou",
)  # fmt: skip
PLACES = (
    "Aldora", "Amberly", "Belfry", "Benting", "Cinnabar", "Corvo", "Delphine", "Dragonhill", "Elmsworth",
    "Emberfire", "Fairholt", "Figtree", "Gingko", "Grantley", "Heronry", "Hollis", "Ironwok", "Ivora",
    "Jadebowl", "Jasmira", "Kestrel", "Kilns", "Lagoon", "Larkhill",
)  # fmt: skip
"""Hotels, restaurants and attractions share one pool: a name says nothing about what bears it."""
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
    "KA", "LB", "MC", "ND", "OE", "PF", "QG", "RH", "SI", "TJ", "UK", "VL", "WM", "XN", "YO", "ZP",
)  # fmt: skip
