"""Runs a small run in a forked process, over and over, each time ended by a signal at a random moment.

    python -m tests.rl.run_in_pieces OUT '{"kills": 20, ...}'

The parent imports and makes the data once, so that a start costs no more than the run itself. Its last line
of output is what the test looks at, as JSON.
"""

import json
import os
import random
import signal
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from rl.stopping import EXIT_CODE, Terminated
from rl.train import train
from tests.rl.small_pipeline import go, pipeline_config, pipeline_data
from tests.rl.small_run import make_config, make_data

LONGEST_S = 400

Go = Callable[[Path], object]
"""Runs, or goes on with, the run in a directory."""


def start(go_on: Go, out: Path) -> int:
    """A child that does so; its process id."""
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        go_on(out)
        code = 0
    except Terminated:
        code = EXIT_CODE
    except BaseException:
        traceback.print_exc()
    os._exit(code)


def ended(child: int, within_s: float) -> int | None:
    """Its exit code, negative for a signal's; None when it goes on for longer."""
    until = time.monotonic() + within_s
    while time.monotonic() < until:
        pid, status = os.waitpid(child, os.WNOHANG)
        if pid:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.005)
    return None


def in_pieces(go_on: Go, out: Path, *, signals: Sequence[int], longest_s: float, seed: int) -> list[Path]:
    """Runs that were ended by these signals, one after the other, and then went on to their end."""
    rng = random.Random(seed)
    runs = [out / "run-0"]
    for number in signals:
        while True:
            child = start(go_on, runs[-1])
            code = ended(child, rng.random() * longest_s)
            if code is None:
                break
            assert code == 0, f"the run in {runs[-1]} ended by itself with {code}"
            runs.append(out / f"run-{len(runs)}")  # that one is done: the next signals are for another
        os.kill(child, number)
        code = ended(child, LONGEST_S)
        # Before the run has its handler, SIGTERM ends the process by itself; 0: it had just come to its end.
        expected = (0, -number, EXIT_CODE) if number == signal.SIGTERM else (0, -number)
        assert code in expected, (number, code)
    for run in runs:
        assert ended(start(go_on, run), LONGEST_S) == 0
    return runs


def what_runs(options: dict[str, Any]) -> Go:
    if options["pipeline"]:
        pipeline, pipeline_tasks = pipeline_config(), pipeline_data()
        return lambda out: go(pipeline, pipeline_tasks, out)
    config, data = make_config(rl=options["rl"], rollout=options["rollout"]), make_data()
    return lambda out: train(config, data, out)


def main(argv: list[str]) -> None:
    out, options = Path(argv[0]), json.loads(argv[1])
    go_on = what_runs(options)
    started = time.monotonic()
    assert ended(start(go_on, out / "whole"), LONGEST_S) == 0
    whole_s = time.monotonic() - started
    signals = [signal.SIGKILL] * options["kills"] + [signal.SIGTERM] * options["terms"]
    runs = in_pieces(
        go_on,
        out / "pieces",
        signals=signals,
        longest_s=options["share"] * whole_s,
        seed=options["seed"],
    )
    report: dict[str, Any] = {"whole": str(out / "whole"), "pieces": [str(run) for run in runs]}
    sys.stdout.write(json.dumps(report | {"seconds": time.monotonic() - started}) + "\n")


if __name__ == "__main__":
    main(sys.argv[1:])
