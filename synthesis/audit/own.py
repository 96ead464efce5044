"""Our own corpora: the gates play each stored task again, in this process, as its tools are data.

Where `certify` asks whether every record comes out as written, this asks what an audit asks of anyone's task.
"""

import re
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path

from envs.task import GateRecord
from synthesis.audit.records import TaskAudit
from synthesis.corpus import CorpusTask, read_corpus
from synthesis.counterfactual import made_again
from synthesis.gates import floor, gold, leaks, solution_mutants, tampering
from synthesis.gates.trial import Trial
from synthesis.general import Candidate

FORMAT = "worldsmith"
_KILLED = re.compile(r"killed (\d+) of (\d+)")
_SCORED_0 = re.compile(r"(\d+) of (\d+) attacks scored 0")


def task_ids(directory: Path) -> list[str]:
    """Raises ValueError for a directory that is no whole corpus."""
    return [entry.task.task_id for entry in read_corpus(directory)]


def audit(directory: Path, wanted: Sequence[str] | None) -> Iterator[TaskAudit]:
    for entry in read_corpus(directory):
        if wanted is None or entry.task.task_id in wanted:
            yield _audit(entry)


def _audit(entry: CorpusTask) -> TaskAudit:
    task = replace(entry.task, quality=())
    try:
        rebuilt = made_again(task)
    except ValueError as error:
        return TaskAudit(task=task.task_id, format=FORMAT, not_run=str(error)[:200])
    if rebuilt is None:
        return TaskAudit(task=task.task_id, format=FORMAT, not_run=f"seed {task.world.seed} gives no task")
    # The stored task and world are on trial; of the one made again only what the operators draw from.
    with closing(Trial(Candidate(task=task, image=entry.image, draft=rebuilt.draft))) as trial:
        paid = gold.check(trial)
        killed = solution_mutants.check(trial)
        harmed = tampering.check(trial)
        shown = leaks.check(trial)
        nothing = floor.check(trial)
    num_killed, num_mutants = _pair(_KILLED, killed)
    num_refused, num_harmed = _pair(_SCORED_0, harmed)
    return TaskAudit(
        task=task.task_id,
        format=FORMAT,
        null_reward=nothing.value,
        gold_reward=float(paid.passed),
        gold_error="" if paid.passed else paid.evidence[:200],
        mutants=num_mutants,
        killed=num_killed,
        survivors=() if num_killed == num_mutants else (killed.evidence[:160],),
        damages=num_harmed,
        damage_accepted=() if num_refused == num_harmed else (harmed.evidence[:160],),
        leaks=() if shown.passed else (shown.evidence[:160],),
    )


def _pair(pattern: re.Pattern[str], record: GateRecord) -> tuple[int, int]:
    found = pattern.search(record.evidence)
    assert found is not None, f"gate {record.gate} counts in its evidence"
    return int(found[1]), int(found[2])
