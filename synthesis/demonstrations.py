"""Conversations of a domain's planner, careful or not, with the verifier's reward: what a cold start learns
from.

Made fast, on fresh worlds of their own, and not certified: no gate sees them. Their worlds never meet a
corpus' tasks, since the kind is part of the seed.
"""

import json
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from envs.agents import submit_plan
from envs.task import Call, Message, canonical_json, stable_seed
from envs.tool_server import ToolServer
from envs.verifier import Episode, grade_answers
from envs.world import build_image
from synthesis.corpus import read_checked, read_manifest, toolset_id
from synthesis.general import make_task
from synthesis.grammar import Care, Client, Domain


@dataclass(frozen=True, kw_only=True, slots=True)
class Demonstration:
    """`messages`: the prompt, then the demonstrator's messages and the tools' replies to the end of the
    episode.

    slip_rate: how likely the demonstrator slipped at each chance; num_slips: how often it did.
    tools: the id of its tool list in `toolsets.json`.
    """

    id: str
    domain: str
    level: int
    seed: int
    slip_rate: float
    num_slips: int
    reward: float
    messages: tuple[Message, ...]
    tools: str


def demonstrate_once(
    domain: Domain, level: int, seed: int, *, slip_rate: float, toolset: str = ""
) -> Demonstration | None:
    """The demonstration of a seed, or None when its world holds no task of that level.

    toolset: the id of the draft's list of tools; empty: it is computed.
    """
    draft = domain.draft(level, seed)
    if draft is None:
        return None
    image = build_image(draft.tables)
    care = Care(slip_rate=slip_rate, rng=random.Random(stable_seed("care", seed)))
    server = ToolServer(image, draft.tools)
    try:
        plan = domain.plan(draft, Client(server), care)
        task = make_task(domain, draft, world_hash="", gold=plan)
        played = submit_plan(task, plan)
        for call in played.calls[len(plan.calls) :]:
            server.call(call)
        journal = tuple(server.journal)
        episode = Episode(initial=image, final=server.snapshot(), journal=journal, answer=plan.answer)
    finally:
        server.close()
    messages = list(task.prompt)
    for call, entry in zip(played.calls, journal, strict=True):
        messages.append(Message(role="assistant", tool_calls=(call,)))
        messages.append(Message(role="tool", content=entry.result))
    if len(played.calls) > len(plan.calls):
        messages.pop()  # the call that ends the episode gets no reply
    else:
        messages.append(Message(role="assistant", content=plan.answer))
    num_turns = sum(message.role == "assistant" for message in messages)
    return Demonstration(
        id=f"{domain.name}-{level}-{seed:016x}",
        domain=domain.name,
        level=level,
        seed=seed,
        slip_rate=slip_rate,
        num_slips=care.num_slips,
        # Our own server's play: nothing to be suspected of, so it is not played a second time.
        reward=grade_answers(task, episode, [plan.answer])[0].score if num_turns <= task.max_turns else 0.0,
        messages=tuple(messages),
        tools=toolset or toolset_id(domain.name, draft.tools),
    )


def demonstration_file(name: str, demonstrations: Sequence[Demonstration]) -> dict[str, bytes]:
    lines = "".join(canonical_json(_as_row(demonstration)) + "\n" for demonstration in demonstrations)
    return {f"demonstrations/{name}.jsonl": lines.encode()}


def read_demonstrations(
    directory: Path | str, *, domain: str | None = None, level: int | None = None
) -> Iterator[Demonstration]:
    """The corpus' demonstrations of one domain and level (default: all). Raises ValueError for a damaged
    file.
    """
    for shard in read_manifest(directory).shards:
        if (
            shard.kind != "demonstrations"
            or domain not in (None, shard.domain)
            or level not in (None, shard.level)
        ):
            continue
        for name, sha in shard.files.items():
            lines = read_checked(Path(directory), name, sha).splitlines()
            for number, line in enumerate(lines, start=1):
                try:
                    yield _from_row(json.loads(line))
                except (ValueError, TypeError, KeyError) as error:
                    raise ValueError(f"{directory}/{name} line {number}: {error}") from None


def _as_row(demonstration: Demonstration) -> dict[str, Any]:
    """What `dataclasses.asdict` gives, without its copies, which took a tenth of a demonstration's time."""
    fields = {name: getattr(demonstration, name) for name in Demonstration.__slots__}
    fields["messages"] = [
        {
            "role": message.role,
            "content": message.content,
            "tool_calls": [{"tool": call.tool, "arguments": call.arguments} for call in message.tool_calls],
        }
        for message in demonstration.messages
    ]
    return fields


def _from_row(row: dict[str, Any]) -> Demonstration:
    messages = tuple(
        Message(
            role=message["role"],
            content=message["content"],
            tool_calls=tuple(Call(tool=c["tool"], arguments=c["arguments"]) for c in message["tool_calls"]),
        )
        for message in row["messages"]
    )
    return Demonstration(**{**row, "messages": messages})
