"""Several learners for one policy, under Ray Train: each trains on a part of a step's rows.

This process, the run's, does not learn: it plays, publishes, records and saves as ever. It hands each learner
whole groups, and gets back from the first one what all have made of the weights together (`Learners.step`)
and, before a checkpoint, of the moments. The learners' processes are `rl.learner_process`.

    with Learners(job, storage) as learners:
        stepped = learners.step(rows, seed=7)

A learner that dies ends the run, which goes on from its last checkpoint when it is started again: what the
others hold is of no use without it, and the checkpoint has all that it held.
"""

import shutil
import threading
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

import ray
from ray.exceptions import RayActorError, RayError
from ray.train import FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchTrainer

from rl.board import Board
from rl.learner_process import End, Job, Order, Rows, SendMoments, Stepped, learn
from rl.trajectory import Trajectory

POLL_S = 0.2
END_S = 30.0
"""Learners that are told to end have so long."""
DEATHS = ("Connection closed by peer", "Connection reset by peer", "Broken pipe", "NCCL", "gloo")
"""What a learner says when another one is gone."""

T = TypeVar("T")


class LearnerLostError(RuntimeError):
    """A learner's process is gone."""


class LearnerFaultError(RuntimeError):
    """A learner raised."""


class Learners:
    """`job.settings["num_learners"]` processes, started on entering, ended on leaving."""

    def __init__(self, job: Job, storage: Path) -> None:
        self._job = job
        self._storage = storage.resolve()
        self._count = int(job.settings["num_learners"])
        self._over = threading.Event()
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._fit, daemon=True, name="learners")

    def __enter__(self) -> Self:
        """Raises ValueError where Ray has no room for them. Does not wait until they are there."""
        gpus = int(ray.cluster_resources().get("GPU", 0))
        cpus = int(ray.cluster_resources().get("CPU", 0))
        if cpus < self._count:
            raise ValueError(
                f"rl.learners: Ray has {cpus} CPU(s), {self._count} learners take one each; set fewer or add"
                " nodes"
            )
        self._board: Any = ray.remote(num_cpus=0)(Board).remote(self._count)
        self._trainer = TorchTrainer(
            learn,
            # A list keeps Ray from fetching the job on the way.
            train_loop_config={"board": self._board, "job": [ray.put(self._job)]},
            scaling_config=ScalingConfig(num_workers=self._count, use_gpu=gpus >= self._count),
            run_config=RunConfig(
                name="learners",
                storage_path=str(self._storage),
                failure_config=FailureConfig(max_failures=0),
            ),
        )
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        if not self._over.is_set():
            ray.get(self._board.put.remote([End()] * self._count))
            self._over.wait(END_S if error is None else 0.0)
        ray.kill(self._board)
        shutil.rmtree(self._storage, ignore_errors=True)

    def step(self, rows: Sequence[Trajectory], *, seed: int) -> Stepped:
        """One step on these, groups adjacent. Raises LearnerLostError when a learner dies, LearnerFaultError
        when one raises.
        """
        orders = [Rows(seed=seed, rows=ray.put(part)) for part in parts(rows, self._count)]
        return self._ask(orders, Stepped)

    def moments(self) -> dict[str, Any]:
        """The optimizer's state after the last step. Raises as `step` does."""
        return self._ask([SendMoments()] * self._count, dict)

    def _ask(self, orders: Sequence[Order], kind: type[T]) -> T:
        ray.get(self._board.put.remote(list(orders)))
        pending = self._board.answered.remote()
        while not ray.wait([pending], timeout=POLL_S)[0]:
            self._check()
        try:
            answer = ray.get(ray.get(pending)[0])
        except RayError as error:  # the first learner died with its answer
            raise LearnerLostError(
                f"rl.learners: the first learner is gone ({_line(error)}); {AGAIN}"
            ) from error
        assert isinstance(answer, kind)
        return answer

    def _check(self) -> None:
        """Raises when the learners are no more."""
        if self._over.is_set():
            raise what_ended(self._error, self._count) from self._error

    def _fit(self) -> None:
        try:
            self._trainer.fit()
        except BaseException as error:
            self._error = error
        finally:
            self._over.set()


AGAIN = "what was saved last stands, run the same command again to go on"


def what_ended(error: BaseException | None, count: int) -> Exception:
    """What to tell of learners that ended unasked."""
    failures: dict[int, Exception] = getattr(error, "worker_failures", {})
    dead = [rank for rank, failure in failures.items() if _is_death(failure)]
    if dead:
        whose = " and ".join(f"{rank + 1} of {count}" for rank in dead)
        return LearnerLostError(f"rl.learners: learner {whose} died; {AGAIN}")
    told = [f"learner {rank + 1}: {_line(failure)}" for rank, failure in failures.items()]
    if failures and all(any(word in line for word in DEATHS) for line in told):
        return LearnerLostError(f"rl.learners: a learner died ({'; '.join(told)}); {AGAIN}")
    return LearnerFaultError(f"rl.learners: {'; '.join(told) or _line(error)}")


def _is_death(failure: Exception) -> bool:
    return isinstance(getattr(failure, "health_check_failure", failure), RayActorError)


def _line(error: BaseException | None) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[-1] if lines else ''}"


def parts(rows: Sequence[Trajectory], count: int) -> list[list[Trajectory]]:
    """Equally many rows for each learner, in their order, so that groups stay whole."""
    size, left = divmod(len(rows), count)
    assert not left, "the configuration is checked"
    return [list(rows[rank * size : (rank + 1) * size]) for rank in range(count)]
