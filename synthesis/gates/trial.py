"""A candidate under trial: its gold's play and the verdict on any other plan, each worked out once.

A *probe* is a play and an answer that some gate tried, with the verdict: what the gates on the verifier
itself (necessity, twins, verifier mutants) look through instead of playing everything again.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from envs.task import Call, Plan, Task, canonical_json
from envs.tool_server import JournalEntry, ToolServer
from envs.verifier import Episode, Grader, Verdict
from envs.world import open_image, state_hash, tables_of
from synthesis.general import Candidate
from synthesis.grammar import Draft


@dataclass(frozen=True, kw_only=True, slots=True)
class Probe:
    """One plan with its verdict; `gates`: those that tried it."""

    calls: tuple[Call, ...]
    answer: str
    episode: Episode
    verdict: Verdict
    gates: set[str] = field(default_factory=set)

    @property
    def accepted(self) -> bool:
        return self.verdict.score > 0


class Trial:
    def __init__(self, candidate: Candidate) -> None:
        self.task: Task = candidate.task
        self.image: bytes = candidate.image
        self.draft: Draft = candidate.draft
        self._grader = Grader(self.task, self.image)
        self._server = ToolServer(self.image, self.task.tools)
        self._probes: dict[str, dict[str, Probe]] = {}
        self.num_plays = 0

    def play(self, plan: Plan) -> Episode:
        """The plan's calls in a fresh episode by a client that ignores errors, as an agent may."""
        return self._played(self.image, (), plan)

    def _played(self, image: bytes, journal: Sequence[JournalEntry], plan: Plan) -> Episode:
        """The plan's calls from `image` on, which the journal's calls have left."""
        self.num_plays += 1
        self._server.restart(image)
        self._server.journal += journal
        for call in plan.calls:
            self._server.call(call)
        return Episode(
            initial=self.image,
            final=self._server.snapshot(),
            journal=tuple(self._server.journal),
            answer=plan.answer,
        )

    @cached_property
    def _gold_images(self) -> list[bytes]:
        """The world before each of the gold's calls."""
        images = [self.image]
        self._server.restart(self.image)
        for call in self.task.gold.calls[:-1]:
            self._server.call(call)
            images.append(self._server.snapshot() if call.tool in self.write_tools else images[-1])
        return images

    def _branch(self, calls: Sequence[Call]) -> Episode:
        """The play of the calls; those that it shares with the gold's beginning are not played again."""
        gold = self.task.gold.calls
        shared = 0
        while shared < min(len(gold), len(calls)) and calls[shared] == gold[shared]:
            shared += 1
        if shared < 2:
            return self.play(Plan(calls=tuple(calls), answer=""))
        image = self.gold.final if shared == len(gold) else self._gold_images[shared]
        rest = Plan(calls=tuple(calls[shared:]), answer="")
        return self._played(image, self.gold.journal[:shared], rest)

    def play_calls(self, calls: Sequence[Call]) -> Episode:
        return self.play(Plan(calls=tuple(calls), answer=self.task.gold.answer))

    def close(self) -> None:
        self._grader.close()
        self._server.close()

    @cached_property
    def write_tools(self) -> frozenset[str]:
        return frozenset(tool.name for tool in self.task.tools if tool.writes)

    def has_write(self, calls: Sequence[Call]) -> bool:
        return any(call.tool in self.write_tools for call in calls)

    @cached_property
    def gold(self) -> Episode:
        return self.play(self.task.gold)

    @cached_property
    def gold_state(self) -> str:
        return image_state(self.gold.final)

    @cached_property
    def cells(self) -> dict[tuple[str, str], list[Any]]:
        """Every column of the world with its values row by row, by (table, column)."""
        db = open_image(self.image)
        found: dict[tuple[str, str], list[Any]] = {}
        for table in tables_of(db):
            cursor = db.execute(f'SELECT * FROM "{table}"')
            names = [column[0] for column in cursor.description]
            for name, values in zip(names, zip(*cursor.fetchall(), strict=True), strict=False):
                found[table, name] = list(values)
        db.close()
        return found

    @cached_property
    def columns(self) -> dict[tuple[str, str], list[Any]]:
        """Every column of the world with its different values, by (table, column)."""
        return {column: list(dict.fromkeys(values)) for column, values in self.cells.items()}

    def alternatives(self, value: object) -> list[Any]:
        """What else the world holds in the columns that hold `value`."""
        others: dict[Any, None] = {}
        for values in self.columns.values():
            if value in values:
                others |= dict.fromkeys(values)
        return [other for other in others if other != value or type(other) is not type(value)]

    def verdicts(self, calls: Sequence[Call], answers: Sequence[str], *, gate: str = "") -> list[Verdict]:
        """The verdict on the calls followed by each of the answers, by goal, frame, policy and answer.

        Played by our own server, so without the replay: nothing here may die of a false alarm of tampering.
        """
        known = self._probes.setdefault(canonical_json([[c.tool, c.arguments] for c in calls]), {})
        new = [answer for answer in dict.fromkeys(answers) if answer not in known]
        if new:
            is_gold = tuple(calls) == self.task.gold.calls
            episode = self.gold if is_gold else self._branch(calls)
            verdicts = self._grader.grade_play(episode, new)
            self._keep(known, episode, tuple(calls), dict(zip(new, verdicts, strict=True)))
        for answer in answers:
            known[answer].gates.add(gate)
        return [known[answer].verdict for answer in answers]

    def keep(
        self, calls: Sequence[Call], episode: Episode, verdicts: dict[str, Verdict], *, gate: str
    ) -> None:
        """Makes probes of verdicts (by answer) that the caller got from the verifier itself."""
        known = self._probes.setdefault(canonical_json([[c.tool, c.arguments] for c in calls]), {})
        new = {answer: verdict for answer, verdict in verdicts.items() if answer not in known}
        self._keep(known, episode, tuple(calls), new)
        for answer in verdicts:
            known[answer].gates.add(gate)

    def _keep(
        self,
        known: dict[str, Probe],
        episode: Episode,
        calls: tuple[Call, ...],
        verdicts: dict[str, Verdict],
    ) -> None:
        first = next(iter(known.values()), None)
        episode = episode if first is None else first.episode  # one object for all answers after one play
        for answer, verdict in verdicts.items():
            known[answer] = Probe(calls=calls, answer=answer, episode=episode, verdict=verdict)

    @property
    def num_verdicts(self) -> int:
        return sum(map(len, self._probes.values()))

    def probes(self) -> list[Probe]:
        """All that was tried so far."""
        return [probe for answers in self._probes.values() for probe in answers.values()]

    def scores(self, calls: Sequence[Call], answers: Sequence[str], *, gate: str = "") -> list[float]:
        return [verdict.score for verdict in self.verdicts(calls, answers, gate=gate)]

    def score(self, plan: Plan, *, gate: str = "") -> float:
        return self.scores(plan.calls, [plan.answer], gate=gate)[0]


def image_state(image: bytes) -> str:
    db = open_image(image)
    try:
        return state_hash(db)
    finally:
        db.close()
