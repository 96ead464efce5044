"""Two learner processes against one: the same rows, the same update; and what ends them."""

import asyncio
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from ray.exceptions import RayActorError

from rl.board import Board
from rl.learners import LearnerFaultError, LearnerLostError, parts, what_ended
from rl.step_means import StepMeans
from tests.rl.test_learner import GROUP, batch_of
from tests.rl.two_learners import EXPERTS, LOSSES, RATE, SHARDINGS, STEPS
from worldsmith.cli import INFRASTRUCTURE, exit_code_of, one_line

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def came_to(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What one learner and two made of the same batches, by name."""
    out = tmp_path_factory.mktemp("two")
    subprocess.run(
        [sys.executable, "-m", "tests.rl.two_learners", str(out)],
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
        check=True,
        timeout=170,
    )
    return {path.stem: torch.load(path) for path in out.glob("*.pt")}


def furthest(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> float:
    """The largest difference of any two tensors of the same name."""
    assert left.keys() == right.keys()
    return max((left[name] - right[name]).abs().max().item() for name in left)


@pytest.mark.slow
@pytest.mark.parametrize("sharding", SHARDINGS)
@pytest.mark.parametrize("loss", LOSSES)
def test_two_processes_make_the_update_that_one_makes(
    came_to: dict[str, Any], loss: str, sharding: str
) -> None:
    alone, first, second = (came_to[f"{loss}-{who}"] for who in ("alone", f"{sharding}-0", f"{sharding}-1"))
    before = came_to["before"]
    assert furthest(before, alone["weights"]) > RATE
    assert furthest(alone["weights"], first["weights"]) < 1e-6
    assert furthest(first["weights"], second["weights"]) == 0
    for step in range(STEPS):
        for index, fields in alone["moments"][step]["state"].items():
            gradient, theirs = fields["exp_avg"], first["moments"][step]["state"][index]["exp_avg"]
            assert (gradient - theirs).norm() <= 2e-6 * gradient.norm(), (step, index)


@pytest.mark.slow
@pytest.mark.parametrize("sharding", SHARDINGS)
@pytest.mark.parametrize("loss", LOSSES)
def test_two_processes_tell_the_metrics_of_all_rows(
    came_to: dict[str, Any], loss: str, sharding: str
) -> None:
    for rank in range(2):
        for own, whole in zip(
            came_to[f"{loss}-{sharding}-{rank}"]["metrics"], came_to[f"{loss}-alone"]["metrics"], strict=True
        ):
            assert own == pytest.approx(whole, rel=1e-5, abs=1e-6)
            assert own["expert_load_max"] > 1.5  # of 8 experts 4 are used, and unevenly


@pytest.mark.slow
@pytest.mark.parametrize("sharding", SHARDINGS)
def test_experts_that_one_learner_alone_has_rows_for_learn_and_count(
    came_to: dict[str, Any], sharding: str
) -> None:
    before, after = came_to["before"], came_to[f"response-{sharding}-0"]["weights"]
    name = next(n for n in before if n.endswith("mlp.experts.gate_up_proj"))
    moved = (after[name] - before[name]).abs().amax(dim=(1, 2))
    used = [expert for experts in EXPERTS for expert in experts]
    assert (moved > 0).nonzero().flatten().tolist() == used
    bias = after[name.replace("experts.gate_up_proj", "gate.e_score_correction_bias")]
    alone = came_to["response-alone"]["weights"]
    assert torch.equal(bias, alone[name.replace("experts.gate_up_proj", "gate.e_score_correction_bias")])
    assert bias[2] > 0  # nobody's
    assert bias[6] < 0  # the second learner's, with most of the tokens


@pytest.mark.slow
@pytest.mark.parametrize("sharding", SHARDINGS)
def test_learners_that_begin_anew_go_on_to_the_bit(came_to: dict[str, Any], sharding: str) -> None:
    undisturbed, resumed = came_to[f"token-{sharding}-0"], came_to[f"resumed-{sharding}-0"]
    assert furthest(undisturbed["weights"], resumed["weights"]) == 0
    left, right = undisturbed["moments"][-1]["state"], resumed["moments"][-1]["state"]
    assert left.keys() == right.keys()
    for index, fields in left.items():
        assert furthest(fields, right[index]) == 0
    assert undisturbed["metrics"][-1] == resumed["metrics"][-1]


def test_learners_have_whole_groups_in_their_order() -> None:
    batch = batch_of(0)
    assert parts(batch, 2) == [batch[:GROUP], batch[GROUP:]]


def test_the_first_learner_alone_answers_and_once_an_order() -> None:
    async def exchange() -> None:
        board = Board(2)
        for rank in range(2):
            await board.begin(rank)
        with pytest.raises(RuntimeError, match="0 answer"):
            await board.answer(0, ["too early"])
        await board.put(["left", "right"])  # pyright: ignore[reportArgumentType]
        assert [await board.take(rank) for rank in range(2)] == ["left", "right"]
        with pytest.raises(RuntimeError, match="learner 1 answers"):
            await board.answer(1, ["another's"])
        await board.answer(0, ["weights"])
        assert await board.answered() == ["weights"]
        with pytest.raises(RuntimeError, match="0 answer"):
            await board.answer(0, ["once more"])
        with pytest.raises(RuntimeError, match="started twice"):
            await board.begin(1)

    asyncio.run(asyncio.wait_for(exchange(), 20))


def test_orders_and_answers_come_in_their_order() -> None:
    async def exchange() -> None:
        board = Board(2)
        for number in (1, 2):
            await board.put([f"left {number}", f"right {number}"])
        assert [await board.take(1) for _ in range(2)] == ["right 1", "right 2"]
        assert [await board.take(0) for _ in range(2)] == ["left 1", "left 2"]
        for answer in ("first", "second"):
            await board.answer(0, [answer])
        assert [await board.answered() for _ in range(2)] == [["first"], ["second"]]
        with pytest.raises(ValueError, match="shorter"):
            await board.put(["one for two"])

    asyncio.run(asyncio.wait_for(exchange(), 20))


GONE = "[../gloo/transport/tcp/pair.cc:538] Connection closed by peer [127.0.0.1]:21863"


class WorkersFailed(Exception):  # noqa: N818 (as Ray Train's)
    def __init__(self, failures: dict[int, Exception]) -> None:
        super().__init__("Training failed due to worker errors:\n...")
        self.worker_failures = failures


class SilentWorkerError(Exception):
    health_check_failure = RayActorError()


@pytest.mark.parametrize(
    ("failures", "kind", "message"),
    [
        ({0: RuntimeError(GONE), 1: RayActorError()}, LearnerLostError, "learner 2 of 2 died"),
        ({0: RuntimeError(GONE)}, LearnerLostError, "a learner died"),
        ({1: ValueError("bad\nshapes differ")}, LearnerFaultError, "learner 2: ValueError: shapes differ"),
        ({0: RuntimeError(GONE), 1: KeyError("x")}, LearnerFaultError, "learner 2: KeyError"),
        ({0: RayActorError(), 1: RayActorError()}, LearnerLostError, "learner 1 of 2 and 2 of 2 died"),
        ({0: SilentWorkerError()}, LearnerLostError, "learner 1 of 2 died"),
        ({0: RuntimeError("NCCL error"), 1: RuntimeError("from gloo")}, LearnerLostError, "a learner died"),
        ({0: RuntimeError()}, LearnerFaultError, "rl.learners: learner 1: RuntimeError:"),
        ({}, LearnerFaultError, "rl.learners: WorkersFailed: ..."),
    ],
)
def test_what_ended_the_learners_is_one_line(
    failures: dict[int, Exception], kind: type[Exception], message: str
) -> None:
    error = what_ended(WorkersFailed(failures), 2)
    assert type(error) is kind
    assert message in one_line(error)
    assert "\n" not in str(error)
    assert exit_code_of(error) == (INFRASTRUCTURE if kind is LearnerLostError else None)


class Gathering:
    """Of an Accelerator, what `StepMeans` asks for: another learner has told the same, so often as large."""

    device = torch.device("cpu")

    def __init__(self, times: float) -> None:
        self._times = times

    def gather(self, told: torch.Tensor) -> torch.Tensor:
        return torch.cat([told, self._times * told])


def test_means_are_over_all_learners_and_by_weight() -> None:
    means = StepMeans()
    means.add(1, loss=2.0)
    means.add(3, loss=4.0)
    means.add(0, kl=7.0)
    means.add_largest(drift=0.5)
    means.add_largest(drift=0.25)
    means.add_largest(below=-3.0)
    told = means.over(Gathering(10))  # pyright: ignore[reportArgumentType]
    assert told == pytest.approx({"loss": (14 + 140) / (4 + 40), "kl": 0.0, "drift": 5.0, "below": -3.0})
    assert list(told) == ["loss", "kl", "drift", "below"]
    one = StepMeans()
    one.add(1, loss=8.0)
    for times in (0, 2):  # the other learner has no such row, or two
        assert one.over(Gathering(times))["loss"] == 8.0  # pyright: ignore[reportArgumentType]
