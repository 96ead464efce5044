"""Distillation: what specialists played and the verifier passed, as lessons for one policy.

    play_all     a specialist plays its group's training tasks; each chunk of them is a file that stays
    select       which of the episodes become lessons; every other one is counted by why it does not

The tokens that were sampled are the tokens that are learnt; nothing is rendered or encoded again.
"""

import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from envs.files import write_whole
from envs.task import Task, digest, stable_seed
from rl.replica_workers import AnyWorkers
from rl.run import Run, sampling
from rl.stored import pack, unpack
from rl.trajectory import PlayableTask, PlayRequest, Trajectory
from rl.transcript import Transcript

CHUNK = 512
"""Episodes of a file; a kill costs at most one file's."""
_WORD = re.compile(r"\w+")


class Refusal(StrEnum):
    """Why an episode is no lesson; the first of these that is so."""

    NOT_MEASURED = "not_measured"
    FAILED = "failed"
    SUSPECTED_HACK = "suspected_hack"
    HELD_OUT = "held_out"
    """Its task, world or question is a held-out task's."""
    COPY = "copy"
    """Token by token another lesson of the same task."""
    SURPLUS = "surplus"
    """Its task has as many lessons as it may have."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Selection:
    """sampled = len(kept) + the sum of `refused`."""

    sampled: int
    tokens: int
    """Of all that was sampled, prompts included."""
    kept: tuple[Trajectory, ...]
    refused: Counter[Refusal]

    def as_fields(self) -> dict[str, int]:
        refused = {str(why): self.refused[why] for why in Refusal}
        return {"sampled": self.sampled, "tokens": self.tokens, "kept": len(self.kept), **refused}


def marks(task: Task) -> set[str]:
    """What a lesson must not share with a held-out task: id, world, question (words alone, in lower case)."""
    question = " ".join(_WORD.findall(task.prompt[-1].content.lower()))
    return {f"task {task.task_id}", f"world {task.world.content_hash}", f"question {digest(question)}"}


def select(
    episodes: Sequence[Trajectory],
    tasks: Sequence[PlayableTask],
    heldout: Sequence[PlayableTask],
    *,
    kept_per_task: int,
) -> Selection:
    """Rejection sampling over episodes of `tasks`, in their order."""
    by_id = {playable.task.task_id: playable.task for playable in tasks}
    held = set().union(*(marks(playable.task) for playable in heldout))
    lessons: defaultdict[str, list[Trajectory]] = defaultdict(list)
    refused: Counter[Refusal] = Counter()
    for episode in episodes:
        others = lessons[episode.task_id]
        why = _refusal(episode, by_id[episode.task_id], held, others, kept_per_task)
        if why is None:
            others.append(episode)
        else:
            refused[why] += 1
    return Selection(
        sampled=len(episodes),
        tokens=sum(len(episode.token_ids) for episode in episodes),
        kept=tuple(episode for others in lessons.values() for episode in others),
        refused=refused,
    )


def _refusal(
    episode: Trajectory, task: Task, held: set[str], others: Sequence[Trajectory], kept_per_task: int
) -> Refusal | None:
    conditions = (
        (episode.reward is None, Refusal.NOT_MEASURED),
        (episode.reward != 1.0, Refusal.FAILED),
        (bool(episode.baits), Refusal.SUSPECTED_HACK),
        (bool(marks(task) & held), Refusal.HELD_OUT),
        (any(episode.token_ids == other.token_ids for other in others), Refusal.COPY),
        (len(others) >= kept_per_task, Refusal.SURPLUS),
    )
    return next((why for so, why in conditions if so), None)


def lesson(episode: Trajectory) -> Transcript:
    return Transcript(token_ids=episode.token_ids, written=episode.sampled)


def chunks(run: Run, *, samples: int) -> list[list[PlayRequest]]:
    """Every training task of the trained levels `samples` times, a chunk of whole tasks at a time."""
    wanted = [
        (index, playable.task.task_id)
        for index, playable in enumerate(run.data.tasks)
        if playable.task.level in run.config.rl.levels
    ]
    size = max(1, CHUNK // samples)
    return [
        [
            PlayRequest(
                task_index=index,
                group=index,
                sample=sample,
                attempt=0,
                seed=stable_seed(run.config.seed, "distill", task_id, sample),
            )
            for index, task_id in wanted[at : at + size]
            for sample in range(samples)
        ]
        for at in range(0, len(wanted), size)
    ]


def chunk_files(directory: Path, name: str, count: int) -> list[Path]:
    return [directory / f"{name}-{number:04d}.safetensors" for number in range(count)]


def unplayed(run: Run, name: str, *, samples: int) -> list[tuple[Path, list[PlayRequest]]]:
    """The chunks that no file in the run's `samples/` holds yet, with the file that each will be."""
    plan = chunks(run, samples=samples)
    files = chunk_files(run.out / "samples", name, len(plan))
    return [(file, requests) for file, requests in zip(files, plan, strict=True) if not file.exists()]


def play_all(run: Run, workers: AnyWorkers, name: str, *, samples: int) -> None:
    """Plays what is unplayed."""
    left = unplayed(run, name, samples=samples)
    total = sum(map(len, chunks(run, samples=samples)))
    done = total - sum(len(requests) for _, requests in left)
    run.observer.begin(f"{name} plays", total=total, done=done, unit="episodes")
    for file, requests in left:
        played = workers.play(requests, sampling(run))
        write_whole(file, pack(played))
        passed = sum(episode.reward == 1.0 for episode in played)
        run.observer.advance(len(played), f"{passed / len(played):.0%} passed")
    run.observer.end()


def played(run: Run, name: str, *, samples: int) -> Iterator[Trajectory]:
    """The episodes that `play_all` left, in the order of their requests. Raises ValueError for a damaged
    file, naming it.
    """
    for file in chunk_files(run.out / "samples", name, len(chunks(run, samples=samples))):
        yield from unpack(file.read_bytes(), where=str(file))
