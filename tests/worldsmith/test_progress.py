import io

from worldsmith.progress import Progress, duration


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_the_line_shows_share_rate_time_left_and_note() -> None:
    clock = Clock()
    progress = Progress("cold start", total=900, unit="steps", stream=io.StringIO(), clock=clock)
    clock.now = 10.0
    progress.advance(300, note="loss 0.31")
    assert progress.line() == "cold start 300/900 steps (33%), 30/s, 20 s left, loss 0.31"  # 300 in 10 s


def test_outside_a_terminal_a_line_comes_at_most_every_ten_seconds_and_at_the_end() -> None:
    clock, stream = Clock(), io.StringIO()
    with Progress("rl", total=30, stream=stream, clock=clock) as progress:
        for _ in range(30):
            clock.now += 1.0
            progress.advance()
    lines = stream.getvalue().splitlines()
    assert [line.split(",")[0] for line in lines] == [
        "rl 1/30 (3%)",
        "rl 11/30 (36%)",
        "rl 21/30 (70%)",
        "rl 30/30 (100%)",
    ]
    assert lines[-1].endswith("took 30 s")


def test_on_a_terminal_the_line_rewrites_itself() -> None:
    clock, stream = Clock(), Terminal()
    with Progress("rl", total=2, stream=stream, clock=clock) as progress:
        for _ in range(2):
            clock.now += 1.0
            progress.advance()
    assert stream.getvalue().count("\r") == 2
    assert stream.getvalue().count("\n") == 1


def test_the_rate_after_a_resume_counts_only_what_this_run_did() -> None:
    clock = Clock()
    progress = Progress("rl", total=100, stream=io.StringIO(), clock=clock)
    clock.now = 60.0
    progress.resume_at(80)
    clock.now = 65.0
    progress.advance(10)
    assert progress.line() == "rl 90/100 (90%), 2/s, 5 s left"
    progress.advance(10)
    assert progress.line().endswith("took 5 s")


def test_the_rate_follows_the_last_half_minute() -> None:
    clock = Clock()
    progress = Progress("rl", total=None, stream=io.StringIO(), clock=clock)
    for _ in range(100):  # 1 a second, then 1 every 10 seconds
        clock.now += 1.0
        progress.advance()
    for _ in range(10):
        clock.now += 10.0
        progress.advance()
    assert progress.line() == "rl 110, 0.1/s"


def test_duration_is_short_at_every_size() -> None:
    assert [duration(s) for s in (0.4, 42, 150, 3900)] == ["0 s", "42 s", "2 min 30 s", "1 h 05 min"]


def test_a_moment_tells_no_rate() -> None:
    clock = Clock()
    progress = Progress("synth", total=220, unit="admitted", stream=io.StringIO(), clock=clock)
    clock.now = 0.0001
    progress.advance(5)
    assert progress.line() == "synth 5/220 admitted (2%)"
