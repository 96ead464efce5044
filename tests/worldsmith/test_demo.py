"""The demo's corpora: what an earlier run made is not counted as this one's speed."""

import itertools
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from rl.run_files import RunLog
from synthesis.corpus import Shard
from worldsmith import demo
from worldsmith.progress import Progress


def test_shards_that_were_there_say_nothing_about_the_rate(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = {"corpus": 300, "heldout": 40}

    def synthesize(config: Any, directory: Path, *, on_shard: Any, on_found: Any, **rest: Any) -> None:
        shard = partial(Shard, name="", kind="tasks", domain="trip", level=1, candidates=0, files={})
        on_found(shard(rows=rows[directory.name]))
        on_shard(shard(rows=10))

    times = itertools.count()  # a second passes whenever somebody looks
    monkeypatch.setattr(demo, "Progress", partial(Progress, clock=lambda: float(next(times))))
    monkeypatch.setattr(demo, "synthesize", synthesize)
    log = RunLog(tmp_path, command="demo", config={}, tier="none", seed=0)
    demo.make_corpora(log, tmp_path, seed=0, num_demonstrations=100)
    shown = [line.split(", ") for line in capsys.readouterr().err.splitlines()]
    assert [(line[0].split("/")[0], line[1]) for line in shown] == [
        ("synth corpus 310", "5/s"),  # 10 rows in the 2 seconds from the one look to the other
        ("synth heldout 50", "5/s"),
    ]
