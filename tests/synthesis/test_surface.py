"""How worlds show themselves: pages turned to the end, tools drawn by drafts and named by demonstrations."""

import pytest

from envs.task import stable_seed
from envs.tool_server import ToolServer
from envs.tools import Tool
from envs.world import Table, build_image
from synthesis.corpus import toolset_id
from synthesis.demonstrations import demonstrate_once
from synthesis.general import DOMAINS
from synthesis.grammar import Client, toolsets_of
from synthesis.surface import AFTER, PAGE_ROWS, SURFACES, Surface, exists, offers, page_of, read_pages

VARIED = [name for name, domain in DOMAINS.items() if len(toolsets_of(domain)) > 1]
LIST = Tool(
    name="list_things",
    description="Their ids.",
    parameters=(AFTER,),
    query=page_of("things", "thing", "1"),
    row_format="{thing}",
    reads=("things",),
)


@pytest.mark.parametrize(
    ("num_things", "num_calls"), [(0, 1), (PAGE_ROWS - 1, 1), (PAGE_ROWS, 2), (2 * PAGE_ROWS + 1, 3)]
)
def test_pages_are_turned_until_one_is_not_full(num_things: int, num_calls: int) -> None:
    names = [f"{letter}1" for letter in "ABCDEFGHIJKL"[:num_things]]
    columns = (("thing", "TEXT"), ("kind", "TEXT"))
    image = build_image([Table(name="things", columns=columns, rows=[(name, "x") for name in names])])
    server = ToolServer(image, (LIST,))
    client = Client(server)
    assert read_pages(client, "list_things") == names
    assert len(client.calls) == num_calls
    server.close()


def test_an_error_names_what_is_missing_in_each_style() -> None:
    plain, coded = (Surface(search=False, coded=coded) for coded in (False, True))
    for surface, text in ((plain, "error: there is no thing Q7"), (coded, "E404 thing Q7: not found")):
        assert exists(surface, "thing", "things", "thing").error.format(thing="Q7") == text
    assert (plain.word("fare", "price"), coded.word("fare", "price")) == ("fare", "price")


def test_a_surface_searches_or_lists_never_both() -> None:
    assert len(SURFACES) == len(set(SURFACES)) == 4
    for name in ("airline", "clinic", "library", "warehouse"):
        toolsets = toolsets_of(DOMAINS[name])
        searching = [any(tool.name.startswith("search_") for tool in tools) for tools in toolsets]
        listing = [any(AFTER in tool.parameters for tool in tools) for tools in toolsets]
        # A domain may have each surface again with more tools, for its raised levels.
        surfaces = SURFACES * (len(toolsets) // len(SURFACES))
        assert searching == [surface.search for surface in surfaces]
        assert listing == [not surface.search for surface in surfaces]


@pytest.mark.parametrize("name", VARIED)
def test_drafts_draw_every_list_of_tools(name: str) -> None:
    domain = DOMAINS[name]
    toolsets = list(toolsets_of(domain))
    drafts = [
        domain.draft(level, stable_seed("surface", name, index))
        for level in domain.levels
        for index in range(40)
    ]
    drawn = {toolsets.index(draft.tools) for draft in drafts if draft is not None}
    assert drawn == set(range(len(toolsets)))


@pytest.mark.parametrize("name", VARIED)
def test_a_demonstration_names_the_tools_that_it_used(name: str) -> None:
    domain = DOMAINS[name]
    known = {toolset_id(name, tools): tools for tools in toolsets_of(domain)}
    assert len(known) == len(toolsets_of(domain))
    for index in range(8):
        shown = demonstrate_once(domain, domain.levels[0], stable_seed("surface", name, index), slip_rate=0.0)
        if shown is not None:
            called = [call.tool for message in shown.messages for call in message.tool_calls]
            assert called
            assert all(offers(known[shown.tools], tool) for tool in called)
