"""Where a task gives its solution away: in what the agent is told, and in the files that it finds."""

from collections.abc import Iterator, Mapping

MIN_LINE = 30
"""Shorter lines of a solution stand in other files by chance."""
MIN_SHARED = 2


def file_leaks(
    instruction: str,
    environment: Mapping[str, bytes],
    solution: Mapping[str, bytes],
    tests: Mapping[str, bytes],
) -> tuple[str, ...]:
    """What of solution and tests stands in the instruction or in the environment, one line each."""
    found: list[str] = []
    secret = {f"solution/{name}": data for name, data in solution.items()}
    secret |= {f"tests/{name}": data for name, data in tests.items()}
    copies = {data.strip(): name for name, data in secret.items() if len(data.strip()) >= MIN_LINE}
    for name, data in environment.items():
        if (origin := copies.get(data.strip())) is not None:
            found.append(f"environment/{name} is {origin}")
    lines = {line: name for name, data in solution.items() for line in _lines(data)}
    shown = {
        "instruction.md": instruction.encode(),
        **{f"environment/{n}": d for n, d in environment.items()},
    }
    for name, data in shown.items():
        shared = {line for line in _lines(data) if line in lines}
        if len(shared) >= MIN_SHARED and not any(name in one for one in found):
            first = min(shared)
            found.append(
                f"{name} holds {len(shared)} lines of solution/{lines[first]}, {first[:50]!r} among them"
            )
    dockerfile = environment.get("Dockerfile", b"").decode("utf-8", "replace")
    for line in dockerfile.splitlines():
        words = line.split()
        if words[:1] in (["COPY"], ["ADD"]) and any(
            w.strip("./").startswith(("solution", "tests")) for w in words[1:-1]
        ):
            found.append(f"the image takes in {' '.join(words[1:])[:80]}")
    return tuple(found)


def _lines(data: bytes) -> Iterator[str]:
    for line in data.decode("utf-8", "replace").splitlines():
        text = " ".join(line.split())
        if len(text) >= MIN_LINE and not text.startswith(("#", "//", "import ", "from ")):
            yield text
