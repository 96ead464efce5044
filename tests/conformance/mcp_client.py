"""Run by a peer's Python: plays calls through the official SDK's client and prints what came back as JSON.

Arguments: the server's Python, the task, the world, the journal to write; calls as JSON on standard input.
"""

import asyncio
import json
import os
import sys

from mcp import ClientSession, StdioServerParameters
from mcp.client.stdio import stdio_client


async def play(
    python: str, task: str, world: str, journal: str, calls: list[list[object]]
) -> dict[str, object]:
    server = StdioServerParameters(
        command=python,
        args=["-m", "envs.mcp_server", "--task", task, "--world", world, "--journal", journal],
        env={"PYTHONPATH": os.environ["WORLDSMITH_CHECKOUT"]},
    )
    async with stdio_client(server) as (reader, writer), ClientSession(reader, writer) as session:
        begun = await session.initialize()
        listed = await session.list_tools()
        await session.send_ping()
        results = [await session.call_tool(name, arguments) for name, arguments in calls]
        return {
            "initialize": begun.model_dump(mode="json", by_alias=True),
            "tools": [
                tool.model_dump(mode="json", by_alias=True, exclude_none=True) for tool in listed.tools
            ],
            "results": [one.model_dump(mode="json", by_alias=True, exclude_none=True) for one in results],
        }


if __name__ == "__main__":
    print(json.dumps(asyncio.run(play(*sys.argv[1:], json.load(sys.stdin)))))  # noqa: T201
