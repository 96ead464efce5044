"""A candidate under trial: its gold's play and the score of any other plan, each worked out once."""

from collections.abc import Sequence
from functools import cached_property
from typing import Any

from envs.task import Call, Plan, Task, canonical_json
from envs.tool_server import ToolServer
from envs.verifier import Episode, Grader
from envs.world import open_image, state_hash, tables_of
from synthesis.general import Candidate
from synthesis.grammar import Draft


class Trial:
    def __init__(self, candidate: Candidate) -> None:
        self.task: Task = candidate.task
        self.image: bytes = candidate.image
        self.draft: Draft = candidate.draft
        self._grader = Grader(self.task, self.image)
        self._scores: dict[str, dict[str, float]] = {}

    def play(self, plan: Plan) -> Episode:
        """The plan's calls by a fresh client of the tool server, which ignores errors as an agent may."""
        server = ToolServer(self.image, self.task.tools)
        try:
            for call in plan.calls:
                server.call(call)
            journal = tuple(server.journal)
            return Episode(initial=self.image, final=server.snapshot(), journal=journal, answer=plan.answer)
        finally:
            server.close()

    def close(self) -> None:
        self._grader.close()

    @cached_property
    def gold(self) -> Episode:
        return self.play(self.task.gold)

    @cached_property
    def gold_state(self) -> str:
        return image_state(self.gold.final)

    @cached_property
    def columns(self) -> dict[tuple[str, str], list[Any]]:
        """Every column of the world with its values, by (table, column)."""
        db = open_image(self.image)
        found: dict[tuple[str, str], list[Any]] = {}
        for table in tables_of(db):
            cursor = db.execute(f'SELECT * FROM "{table}"')
            names = [column[0] for column in cursor.description]
            for name, values in zip(names, zip(*cursor.fetchall(), strict=True), strict=False):
                found[table, name] = list(dict.fromkeys(values))
        db.close()
        return found

    def alternatives(self, value: object) -> list[Any]:
        """What else the world holds in the columns that hold `value`."""
        others: dict[Any, None] = {}
        for values in self.columns.values():
            if value in values:
                others |= dict.fromkeys(values)
        return [other for other in others if other != value or type(other) is not type(value)]

    def scores(self, calls: Sequence[Call], answers: Sequence[str]) -> list[float]:
        """The score of the calls followed by each of the answers, by goal, frame, policy and answer.

        Played by our own server, so without the replay: nothing here may die of a false alarm of tampering.
        """
        known = self._scores.setdefault(canonical_json([[c.tool, c.arguments] for c in calls]), {})
        new = [answer for answer in dict.fromkeys(answers) if answer not in known]
        if new:
            is_gold = tuple(calls) == self.task.gold.calls
            episode = self.gold if is_gold else self.play(Plan(calls=tuple(calls), answer=""))
            verdicts = self._grader.grade_play(episode, new)
            known.update((answer, verdict.score) for answer, verdict in zip(new, verdicts, strict=True))
        return [known[answer] for answer in answers]

    def score(self, plan: Plan) -> float:
        return self.scores(plan.calls, [plan.answer])[0]


def image_state(image: bytes) -> str:
    db = open_image(image)
    try:
        return state_hash(db)
    finally:
        db.close()
