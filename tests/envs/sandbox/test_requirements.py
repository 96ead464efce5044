from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from envs.sandbox.contract import Capabilities
from envs.sandbox.probes import ATTACKS
from envs.sandbox.requirements import (
    IN_PROCESS,
    REMEDIES,
    UnmetRequirementError,
    check_requirements,
    required_by,
)
from envs.task import Task

HELD = Capabilities(tier="namespaces", engine="unshare", held={"no_network": True, "memory_limit": False})


def test_a_task_may_require_what_is_attacked_and_nothing_else() -> None:
    assert set(REMEDIES) == set(ATTACKS)


def test_each_guarantee_is_required_once_by_the_first_task_that_does() -> None:
    tasks = [("a", ()), ("b", ("no_network",)), ("c", ("no_network", "seccomp"))]
    assert required_by(tasks) == {"no_network": "b", "seccomp": "c"}


def test_a_guarantee_that_does_not_exist_is_refused_with_the_nearest() -> None:
    with pytest.raises(
        ValueError, match="task t: requires: no guarantee 'no_netwrok', did you mean 'no_network'"
    ):
        required_by([("t", ("no_netwrok",))])
    with pytest.raises(ValueError, match="there are no_network, not_root"):
        required_by([("t", ("zzz",))])


def test_what_is_held_is_let_through() -> None:
    check_requirements({"no_network": "a"}, HELD)
    check_requirements({}, IN_PROCESS)


def test_everything_missing_is_named_at_once_with_task_evidence_and_remedy() -> None:
    shown = replace(HELD, evidence={"memory_limit": "6 of 6 lived"})
    with pytest.raises(UnmetRequirementError) as refusal:
        check_requirements({"memory_limit": "a", "no_network": "b", "landlock": "c"}, shown)
    message = str(refusal.value)
    assert message.startswith(
        "tier namespaces does not hold memory_limit (required by task a; 6 of 6 lived): run as root"
    )
    assert (
        "landlock (required by task c; not shown): play it in boxes of tier namespaces, on Linux 5.13"
        in message
    )
    assert "no_network" not in message
    assert "\n" not in message


def test_the_digest_names_tier_and_guarantees_and_not_what_was_seen() -> None:
    assert HELD.digest == replace(HELD, evidence={"no_network": "all refused"}).digest
    others = [
        replace(HELD, tier="docker"),
        replace(HELD, held={"no_network": True}),
        replace(HELD, held={"no_network": True, "memory_limit": True}),
        IN_PROCESS,
    ]
    assert len({HELD.digest, *(other.digest for other in others)}) == 5


def test_a_corpus_whose_tasks_require_a_box_is_not_played_in_this_process(
    task: Task, image: bytes, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from worldsmith import corpora

    def corpus_of(*tasks: Task) -> None:
        rows: Sequence[object] = [SimpleNamespace(task=one, image=image) for one in tasks]
        monkeypatch.setattr(corpora, "read_corpus", lambda directory, limit: rows)

    corpus_of(task)
    assert [one.task for one in corpora.playable_tasks(tmp_path)] == [task]
    corpus_of(task, replace(task, requires=("no_network",)))
    with pytest.raises(UnmetRequirementError, match="does not hold no_network"):
        corpora.playable_tasks(tmp_path)


def test_every_episode_row_says_what_its_boxes_were_shown_to_hold() -> None:
    from rl.trajectory import episode_row

    names = (
        "task_id",
        "domain",
        "level",
        "sample",
        "attempt",
        "seed",
        "reward",
        "cause",
        "num_sampled",
        "num_turns",
    )
    empty = dict.fromkeys(("token_ids", "versions", "baits", "turn_tokens", "tool_seconds"), ())
    trajectory = SimpleNamespace(**dict.fromkeys(names, 0), **empty, verdict=None, seconds_environment=0.0)
    row = episode_row(trajectory, when="rl", boxes=HELD)  # type: ignore[arg-type]  # a trajectory's fields
    assert (row["tier"], row["capabilities"]) == ("namespaces", HELD.digest)
