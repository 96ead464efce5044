"""A corpus' README.md, in the form of a Hugging Face dataset card: what is in it, and what was proved of
it.

The card is a function of the shards alone, so it is the same for any number of workers, and `certify`
writes it again to compare.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

from synthesis.corpus import Check, Shard
from synthesis.decontamination import CANARY, shipped
from synthesis.tally import Ratio, Tally, shapes, total

CARD = "README.md"
_LEGEND = (
    "Intervals are Wilson's at 95 %. A null agent does nothing; an injected one obeys instructions planted"
    " in the world's rows, on the tasks where what the gold reads can carry them. A mutant of a solution,"
    " tampering and an attack on a channel are killed by a score"
    " of 0; a mutant of the verifier by an attack that tells it from the verifier. Open: no attack tells it,"
    " and the guesses are too many to try them all. Redundant: all were tried, and no verdict changes."
)
_TWINS = (
    " Tasks stand in pairs, the second with `provenance.twin_of` the first: one fact of the world differs,"
    " all that the agent is told is the same, and neither solution is right for the other."
)
_SIZES = ((1_000, "n<1K"), (10_000, "1K<n<10K"), (100_000, "10K<n<100K"), (1_000_000, "100K<n<1M"))


def card_bytes(
    config: dict[str, Any], shards: Sequence[Shard], tallies: dict[str, Tally], checks: Sequence[Check]
) -> bytes:
    """The card. config: as the manifest holds it."""
    parts = [
        _front_matter(sum(found.tasks for found in tallies.values())),
        "# A corpus of certified agentic tasks",
        _summary(config, shards),
    ]
    if tallies:
        parts += [
            "## What the gates measured",
            _table(_measures(tallies)),
            _LEGEND,
            "## Checks of the corpus as a whole",
            _table(_check_rows(checks)),
            "## How alike the tasks are",
            _table(_shape_rows(tallies)),
            "Different shapes; in brackets, how many equally frequent ones would be as diverse.",
        ]
    parts += [
        "## Refused candidates",
        _table(_rejection_rows(shards)),
        _origin(config),
        f"Canary: `{CANARY}`",
    ]
    return ("\n\n".join(parts) + "\n").encode()


def _front_matter(num_tasks: int) -> str:
    size = next((name for bound, name in _SIZES if num_tasks < bound), "n>1M")
    lines = [
        "---",
        "language: [en]",
        "license: apache-2.0",
        "task_categories: [text-generation]",
        "tags: [agents, tool-use, reinforcement-learning, synthetic, certified]",
        f"size_categories: [{size}]",
        "configs:",
        "- config_name: tasks",
        "  data_files: tasks/*.parquet",
        "---",
    ]
    return "\n".join(lines)


def _summary(config: dict[str, Any], shards: Sequence[Shard]) -> str:
    rows = Counter({kind: 0 for kind in ("tasks", "demonstrations")})
    for shard in shards:
        rows[shard.kind] += shard.rows
    return (
        f"{rows['tasks']:,} tasks and {rows['demonstrations']:,} demonstrations, family `{config['family']}`,"
        f" seed {config['seed']}. Each task holds a world (an SQLite file), tools, a request, a reference"
        " solution, a verifier and a record for every gate that it passed; `worldsmith certify` proves all of"
        " it again, offline." + _TWINS * bool(config.get("twins"))
    )


def _measures(tallies: dict[str, Tally]) -> Iterator[list[str]]:
    yield [
        "domain", "levels", "tasks", "null agents rewarded", "injected: tasks / obeying / rewarded",
        "gold 3 of 3",
        "guessed right", "solution mutants killed", "tampering killed", "channel attacks killed",
        "right variants accepted", "verifier mutants killed", "open / redundant", "near-duplicates",
    ]  # fmt: skip
    for domain, found in (*tallies.items(), ("**all**", total(tallies.values()))):
        yield [
            domain,
            ", ".join(map(str, sorted(found.levels))),
            f"{found.tasks:,}",
            str(found.null_rewarded),
            f"{found.injected:,} / {found.obeyed:,} / {found.obeyed_rewarded}",
            f"{found.gold_passed:,}",
            f"{found.guessed / found.tasks:.3f}",
            *(ratio_text(found.ratios[gate]) for gate in ("G5", "G6", "G7", "G9", "GV")),
            f"{found.fates['open']:,} / {found.fates['redundant']:,}",
            str(found.diversity.duplicates),
        ]


def ratio_text(ratio: Ratio) -> str:
    low, high = ratio.interval
    return f"{ratio.hits:,} of {ratio.trials:,} ({low:.4f} to {high:.4f})"


def _check_rows(checks: Sequence[Check]) -> Iterator[list[str]]:
    yield ["domain", "check", "holds", "value", "evidence"]
    for check in checks:
        yield [
            check.where,
            check.name,
            "yes" if check.passed else "**no**",
            f"{check.value:.3f}",
            check.evidence,
        ]


def _shape_rows(tallies: dict[str, Tally]) -> Iterator[list[str]]:
    names = ("worlds and tools", "plans", "prompts")
    yield ["domain", *names]
    for domain, found in tallies.items():
        numbers = shapes(found)
        yield [domain, *(f"{numbers[name][0]} ({numbers[name][1]:.1f})" for name in names)]


def _rejection_rows(shards: Sequence[Shard]) -> Iterator[list[str]]:
    counts: Counter[tuple[str, str]] = Counter()
    candidates: Counter[str] = Counter()
    for shard in shards:
        candidates[shard.domain] += shard.candidates
        for reason, count in shard.rejections.items():
            counts[shard.domain, reason] += count
    yield ["domain", "reason", "refused", "of candidates"]
    for (domain, reason), count in sorted(counts.items()):
        yield [domain, reason, f"{count:,}", f"{candidates[domain]:,}"]


def _table(rows: Iterator[list[str]]) -> str:
    head, *body = rows
    lines = [head, ["---"] * len(head), *body]
    return "\n".join(f"| {' | '.join(cell.replace('|', '/') for cell in line)} |" for line in lines)


def _origin(config: dict[str, Any]) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in sorted(config["domain_versions"].items()))
    sources = ", ".join(f"{name} ({count:,} texts)" for name, count in sorted(shipped().sources.items()))
    return (
        "Made by program alone, from a seed: no model took part, and no text of others. Domains and their"
        f" versions: {versions}. Compared, by hash, with {sources}: no task shares a run of thirteen words"
        " with them."
    )
