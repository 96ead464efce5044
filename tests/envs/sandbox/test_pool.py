"""The pool's book-keeping, over scripted boxes; test_reset.py and test_faults.py have real ones."""

import threading
import time
from contextlib import closing

import pytest

from envs.sandbox.contract import ExecResult, SandboxLostError, SandboxStartError, SandboxUnavailableError
from envs.sandbox.pool import BoxPool, PoolConfig
from envs.sandbox.start_gate import StartGate


class ScriptedBox:
    """Counts what is done to it; fails where its factory says so."""

    tier, work_dir = "scripted", "/work"

    def __init__(self, factory: "Factory") -> None:
        self.factory = factory
        self.is_started = self.is_closed = self.is_dead = False
        self.dirt = b""

    def start(self) -> None:
        if self.factory.failing_starts > 0:
            self.factory.failing_starts -= 1
            raise SandboxStartError("it did not come up")
        self.is_started = True

    def exec(self, argv, **options) -> ExecResult:
        if self.is_dead or self.is_closed:
            raise SandboxLostError("its container is gone")
        return ExecResult(exit_code=0, stdout=self.dirt, stderr=b"")

    def read_file(self, path: str, *, max_bytes: int = 0) -> bytes:
        return self.dirt

    def write_file(self, path: str, data: bytes) -> None:
        self.dirt = data

    def mark_pristine(self) -> bool:
        return self.factory.can_reset

    def snapshot(self, *, max_bytes: int = 0):
        raise NotImplementedError

    def reset(self, to: object = None) -> None:
        if self.is_dead or self.dirt == b"sticks":
            self.is_closed = True
            raise SandboxLostError("it is not clean after a reset")
        self.dirt = b""

    def close(self) -> None:
        self.is_closed = True


class Factory:
    def __init__(self, *, failing_starts: int = 0, can_reset: bool = True) -> None:
        self.failing_starts = failing_starts
        self.can_reset = can_reset
        self.made: list[ScriptedBox] = []

    def __call__(self) -> ScriptedBox:
        self.made.append(ScriptedBox(self))
        return self.made[-1]

    def living(self) -> list[ScriptedBox]:
        return [box for box in self.made if box.is_started and not box.is_closed]


def pool_of(factory: Factory, **config: float) -> BoxPool:
    return BoxPool(factory, PoolConfig(**{"warm": 0, **config}))  # pyright: ignore[reportArgumentType]


def eventually(condition, timeout_s: float = 20.0) -> bool:
    deadline = time.monotonic() + timeout_s
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.005)
    return condition()


def test_a_box_that_comes_back_is_cleaned_and_given_out_again() -> None:
    factory = Factory()
    with closing(pool_of(factory)) as pool:
        for _ in range(3):
            with closing(pool.acquire()) as box:
                assert box.exec(["ls"]).stdout == b""
                box.write_file("x", b"dirt")
        assert len(factory.made) == 1
        assert (pool.counts.started, pool.counts.given, pool.counts.resets) == (1, 3, 3)


def test_a_box_that_is_not_clean_or_is_lost_is_never_given_out_again() -> None:
    factory = Factory()
    with closing(pool_of(factory)) as pool:
        with closing(pool.acquire()) as box:
            box.write_file("x", b"sticks")
        with closing(pool.acquire()) as box:
            assert box.exec(["ls"]).stdout == b""
            factory.made[1].is_dead = True
        with closing(pool.acquire()) as box:
            assert box.exec(["ls"]).stdout == b""
        assert len(factory.made) == 3
        assert pool.counts.discarded == 2
        assert pool.counts.last_fault == "it is not clean after a reset"
        assert factory.made[0].is_closed
        assert eventually(lambda: factory.made[1].is_closed)


def test_a_box_that_died_while_it_waited_is_found_out_before_it_is_given_out() -> None:
    factory = Factory()
    with closing(pool_of(factory)) as pool:
        pool.acquire().close()
        factory.made[0].is_dead = True
        with closing(pool.acquire()) as box:
            assert box.exec(["true"]).exit_code == 0
        assert pool.counts.discarded == 1


def test_a_box_that_cannot_be_proved_clean_serves_once() -> None:
    factory = Factory(can_reset=False)
    with closing(pool_of(factory)) as pool:
        pool.acquire().close()
        pool.acquire().close()
        assert len(factory.made) == 2
        assert eventually(lambda: not factory.living())


def test_a_box_serves_so_many_episodes_and_no_longer_than_its_age_allows() -> None:
    factory = Factory()
    with closing(pool_of(factory, max_uses=2)) as pool:
        for _ in range(4):
            pool.acquire().close()
        assert len(factory.made) == 2
    aged = Factory()
    with closing(pool_of(aged, max_age_s=0.01)) as pool:
        pool.acquire().close()
        time.sleep(0.02)
        pool.acquire().close()
        assert len(aged.made) == 2


def test_a_box_that_was_given_back_obeys_its_last_holder_no_more() -> None:
    with closing(pool_of(Factory())) as pool:
        old = pool.acquire()
        old.close()
        old.close()
        with closing(pool.acquire()) as new:
            for use in (lambda: old.exec(["true"]), lambda: old.write_file("x", b"1"), old.reset, old.start):
                with pytest.raises(SandboxLostError, match="given back"):
                    use()
            assert new.exec(["ls"]).stdout == b""


def test_warm_boxes_are_started_ahead_and_replaced() -> None:
    factory = Factory()
    with closing(pool_of(factory, warm=2)) as pool:
        pool.warm_up(20)
        assert len(factory.living()) == 2
        with closing(pool.acquire()):
            assert eventually(lambda: len(factory.living()) == 3)
    assert factory.living() == []


def test_a_start_that_fails_once_is_tried_again_in_another_box_and_twice_is_told() -> None:
    with closing(pool_of(Factory(failing_starts=1))) as pool:
        pool.acquire().close()
        assert pool.counts.failed_starts == 1
    with closing(pool_of(Factory(failing_starts=2))) as pool:
        with pytest.raises(SandboxStartError, match="did not come up"):
            pool.acquire()
        pool.acquire().close()


def test_warm_up_tells_why_its_boxes_do_not_come() -> None:
    gate = StartGate(max_failures=100)
    with (
        closing(BoxPool(Factory(failing_starts=99), PoolConfig(warm=1), gate)) as pool,
        pytest.raises(SandboxUnavailableError, match=r"0 of 1 warm boxes started;.*did not come up"),
    ):
        pool.warm_up(20)


def test_past_the_most_boxes_who_asks_waits_for_one_to_come_back() -> None:
    factory = Factory()
    with closing(pool_of(factory, max_boxes=1)) as pool:
        first = pool.acquire()
        with pytest.raises(SandboxUnavailableError, match="all 1 boxes stayed in use"):
            pool.acquire(timeout_s=0.05)
        threading.Timer(0.1, first.close).start()
        with closing(pool.acquire(timeout_s=20)):
            pass
        assert len(factory.made) == 1


def test_a_failed_acquire_leaves_its_place_to_others() -> None:
    factory = Factory(failing_starts=2)
    with closing(pool_of(factory, max_boxes=1)) as pool:
        with pytest.raises(SandboxStartError):
            pool.acquire()
        pool.acquire(timeout_s=1).close()


def test_a_closed_pool_ends_every_box_also_those_that_come_back_later() -> None:
    factory = Factory()
    pool = pool_of(factory)
    late = pool.acquire()
    pool.acquire().close()
    pool.close()
    pool.close()
    late.close()
    assert eventually(lambda: not factory.living())
    with pytest.raises(SandboxUnavailableError, match="closed"):
        pool.acquire()


def test_many_threads_never_share_a_box() -> None:
    factory = Factory()
    shared: list[bytes] = []

    def play(number: int) -> None:
        for _ in range(20):
            with closing(pool.acquire(timeout_s=60)) as box:
                if box.exec(["ls"]).stdout:
                    shared.append(box.exec(["ls"]).stdout)
                box.write_file("x", b"%d" % number)
                time.sleep(0)
                if box.read_file("x") != b"%d" % number:
                    shared.append(box.read_file("x"))

    with closing(pool_of(factory, max_boxes=3, warm=1)) as pool:
        threads = [threading.Thread(target=play, args=(number,)) for number in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert shared == []
    assert len(factory.made) <= 4


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"warm": 5, "max_boxes": 4}, "pool.warm must lie in"),
        ({"max_uses": 0}, "at least 1"),
        ({"max_age_s": 0}, "pool.max_age_s must lie in"),
    ],
)
def test_a_config_that_makes_no_sense_is_refused(config: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PoolConfig(**config)
