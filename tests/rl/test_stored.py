"""A trajectory that was written and read is the trajectory that was."""

from dataclasses import fields, replace

import numpy as np
import pytest

from envs.outcome import Bait, Cause
from envs.task import Call, Message
from envs.verifier import Verdict
from rl.stored import pack, unpack
from rl.trajectory import Trajectory
from tests.rl.test_learner import batch_of

VERDICT = Verdict(
    score=0.0,
    goal=True,
    frame=False,
    policy=True,
    answer=True,
    tampering=True,
    reason="état",
    faults=("a",),
)


def full(trajectory: Trajectory) -> Trajectory:
    size = len(trajectory.token_ids)
    return replace(
        trajectory,
        selected=np.arange(size * 6, dtype=np.uint16).reshape(size, 2, 3),
        kept_sets=tuple([1, 2, 3][: place % 4] for place in range(size)),
        cause=Cause.TAMPERING,
        verdict=VERDICT,
        messages=(
            Message(role="user", content="hä?"),
            Message(role="assistant", tool_calls=(Call(tool="find", arguments={"n": 1.5, "x": None}),)),
        ),
        baits=(Bait.VERIFY_TOOL,),
        tool_seconds=(0.25, 1e-9),
    )


def assert_same(one: Trajectory, other: Trajectory) -> None:
    for part in fields(Trajectory):
        mine, theirs = getattr(one, part.name), getattr(other, part.name)
        if isinstance(mine, np.ndarray):
            assert mine.dtype == theirs.dtype, part.name
            assert np.array_equal(mine, theirs), part.name
        else:
            assert mine == theirs, part.name


def test_every_field_comes_back() -> None:
    plain, *_ = batch_of(1)
    lost = replace(plain, reward=None, routes=np.zeros((2, 0, 1), np.uint8), cause=Cause.REPLICA_FAILED)
    written = [full(plain), replace(plain, kept_sets=()), lost]
    read = unpack(pack(written), where="here")
    assert len(read) == 3
    for before, after in zip(written, read, strict=True):
        assert_same(before, after)
    assert unpack(pack([]), where="here") == []


def test_a_damaged_file_is_one_clear_line() -> None:
    content = pack(batch_of(1))
    with pytest.raises(ValueError, match="here: no readable trajectories"):
        unpack(content[:-40], where="here")
    with pytest.raises(ValueError, match="here: trajectories of version 9"):
        unpack(content.replace(b'"version":"1"', b'"version":"9"'), where="here")
