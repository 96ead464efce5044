"""The corpus is a function of its config: for any order of shards or number of workers, after any kill."""

import fcntl
import itertools
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from synthesis import candidates, pipeline
from synthesis.corpus import MANIFEST, Shard, check_disjoint, read_corpus
from synthesis.pipeline import ShardResult, make_shard, synthesize
from synthesis.receipts import locked_directory
from synthesis.shard_plan import CANDIDATES_PER_ROW, ShardSpec, SynthConfig, plan_shards

ROOT = Path(__file__).resolve().parents[2]


def contents(directory: Path) -> dict[str, bytes]:
    return {
        str(p.relative_to(directory)): p.read_bytes() for p in sorted(directory.rglob("*")) if p.is_file()
    }


def test_the_count_is_spread_evenly_over_domains_and_levels() -> None:
    specs = plan_shards(
        SynthConfig(
            domains=("trip", "retail"),
            count=10,
            seed=1,
            levels=(1, 2, 5),
            shard_rows=2,
            demonstrations=7,
        )
    )
    rows: dict[tuple[str, str, int], int] = {}
    for spec in specs:
        rows[spec.kind, spec.domain, spec.level] = (
            rows.get((spec.kind, spec.domain, spec.level), 0) + spec.rows
        )
    tasks = {cell[1:]: count for cell, count in rows.items() if cell[0] == "tasks"}
    # Retail has no level 5, and a cold start is shown levels 1 to 3 alone.
    assert tasks == {("trip", 1): 2, ("trip", 2): 2, ("trip", 5): 2, ("retail", 1): 2, ("retail", 2): 2}
    shown = {cell[1:]: count for cell, count in rows.items() if cell[0] == "demonstrations"}
    assert shown == {("trip", 1): 2, ("trip", 2): 2, ("retail", 1): 2, ("retail", 2): 1}


def test_no_two_shards_draw_the_same_candidate() -> None:
    specs = plan_shards(SynthConfig(count=40, seed=1, levels=(1,), domains=("trip",), shard_rows=7))
    ranges = sorted((spec.start, spec.start + spec.rows * CANDIDATES_PER_ROW) for spec in specs)
    assert all(end <= start for (_, end), (start, _) in itertools.pairwise(ranges))
    assert [spec.rows for spec in specs] == [7, 7, 7, 7, 7, 5]
    assert len({spec.name for spec in specs}) == 6


def test_a_shard_is_the_same_whenever_it_is_made(small_config: SynthConfig) -> None:
    spec = plan_shards(small_config)[0]
    assert make_shard(spec) == make_shard(spec)
    assert make_shard(spec).contents != make_shard(replace(spec, seed=spec.seed + 1)).contents


def test_a_corpus_holds_what_was_asked_for(made_once: Path, small_config: SynthConfig) -> None:
    tasks = read_corpus(made_once)
    cells = [(entry.task.domain, entry.task.level) for entry in tasks]
    assert {cell: cells.count(cell) for cell in cells} == dict.fromkeys(small_config.cells(), 2)
    assert len({entry.task.task_id for entry in tasks}) == 8
    assert not (made_once / pipeline.WORK).exists()


def test_a_task_that_is_refused_is_counted_and_replaced(
    small_config: SynthConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    made, real = [], candidates.make_candidate

    def none_at_first(domain: object, level: int, seed: int) -> object:
        made.append(seed)
        return None if len(made) <= 3 else real(domain, level, seed)  # pyright: ignore[reportArgumentType]

    monkeypatch.setattr(candidates, "make_candidate", none_at_first)
    shard = make_shard(plan_shards(small_config)[0]).shard
    assert (shard.rows, shard.candidates, shard.rejections) == (2, 5, {pipeline.NO_TASK: 3})


def test_running_again_changes_nothing(corpus: Path, small_config: SynthConfig) -> None:
    before = contents(corpus)
    manifest = synthesize(small_config, corpus, workers=0)
    assert contents(corpus) == before
    assert manifest.num_tasks == 8


def test_the_order_in_which_shards_are_done_does_not_show(
    made_once: Path, small_config: SynthConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def shuffled(specs: Sequence[ShardSpec], workers: int, sandbox: None) -> Iterator[ShardResult]:
        return map(make_shard, random.Random(3).sample(specs, len(specs)))

    monkeypatch.setattr(pipeline, "_run", shuffled)
    synthesize(small_config, tmp_path / "other", workers=0)
    assert contents(tmp_path / "other") == contents(made_once)


@pytest.mark.parametrize("stop_after", [0, 1, 3, 5])
def test_a_run_that_is_cut_off_goes_on_where_it_was(
    made_once: Path, small_config: SynthConfig, tmp_path: Path, stop_after: int
) -> None:
    directory = tmp_path / "cut"
    seen: list[str] = []

    def cut(shard: object) -> None:
        seen.append("")
        if len(seen) > stop_after:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        synthesize(small_config, directory, workers=0, on_shard=cut)
    assert not (directory / MANIFEST).exists()
    with pytest.raises(ValueError, match="no finished corpus"):
        read_corpus(directory)
    (directory / "tasks").mkdir(exist_ok=True)
    (directory / "tasks" / ".part-00000.parquet.1.tmp").write_bytes(b"torn")
    every = len(plan_shards(small_config))
    for found in (stop_after + 1, every):
        told: dict[str, list[Shard]] = {"found": [], "made": []}
        synthesize(
            small_config,
            directory,
            workers=0,
            on_shard=told["made"].append,
            on_found=told["found"].append,
        )
        assert [len(shards) for shards in told.values()] == [found, every - found]
    assert contents(directory) == contents(made_once)


def test_a_shard_damaged_before_the_end_is_made_again(
    made_once: Path, small_config: SynthConfig, tmp_path: Path
) -> None:
    directory = tmp_path / "cut"

    def cut(shard: object) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        synthesize(small_config, directory, workers=0, on_shard=cut)
    (directory / "tasks" / "part-00000.parquet").write_bytes(b"torn")
    synthesize(small_config, directory, workers=0)
    assert contents(directory) == contents(made_once)


NUM_KILLS = 20
KILLED = SynthConfig(
    domains=("trip", "retail"),
    levels=(1, 3),
    count=48,
    demonstrations=60,
    slip_rates=(0.0, 0.5),
    seed=9,
    shard_rows=2,
)
KILLED_COMMAND = [
    *("--domain", "trip,retail", "--levels", "1,3", "--count", "48", "--demonstrations", "60"),
    *("--slip-rate", "0,0.5", "--seed", "9", "--shard-rows", "2", "--workers", "0"),
]


def is_at_work(directory: Path) -> bool:
    """Another process holds the directory's lock: it has read what is there and makes shards."""
    try:
        file = os.open(directory / pipeline.WORK / "lock", os.O_RDWR)
    except OSError:
        return False
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(file)
    return False


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_killed_at_twenty_random_points_it_ends_with_the_same_bytes(tmp_path: Path) -> None:
    synthesize(KILLED, tmp_path / "undisturbed", workers=0)
    directory, rng = tmp_path / "killed", random.Random(1)
    argv = [sys.executable, "-m", "worldsmith", "synth", *KILLED_COMMAND, "--out", str(directory)]
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    interrupted = 0
    for _ in range(NUM_KILLS):
        process = subprocess.Popen(argv, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        deadline = time.monotonic() + 60
        while not is_at_work(directory) and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.01)
        time.sleep(rng.uniform(0, 0.5))
        process.send_signal(signal.SIGKILL)
        interrupted += process.wait() == -signal.SIGKILL and not (directory / MANIFEST).exists()
    assert interrupted >= NUM_KILLS / 2, "most kills came when all was done"
    assert subprocess.run(argv, env=env, capture_output=True, check=False).returncode == 0
    assert contents(directory) == contents(tmp_path / "undisturbed")


@pytest.mark.integration
@pytest.mark.parametrize("workers", [1, 2])
def test_ray_workers_make_the_same_bytes(
    made_once: Path, small_config: SynthConfig, tmp_path: Path, workers: int
) -> None:
    synthesize(small_config, tmp_path / "ray", workers=workers)
    assert contents(tmp_path / "ray") == contents(made_once)


def test_another_config_is_refused_with_the_difference(corpus: Path, small_config: SynthConfig) -> None:
    with pytest.raises(ValueError, match="count 8 there, 9 now"):
        synthesize(replace(small_config, count=9), corpus, workers=0)
    (corpus / MANIFEST).unlink()
    (corpus / pipeline.WORK).mkdir(exist_ok=True)
    (corpus / pipeline.WORK / "config.json").write_text(
        json.dumps(small_config.as_json() | {"gate_versions": {}})
    )
    with pytest.raises(ValueError, match="gate_versions"):
        synthesize(small_config, corpus, workers=0)


def test_a_corpus_begun_before_there_was_a_field_is_gone_on_with(
    small_config: SynthConfig, tmp_path: Path
) -> None:
    (tmp_path / pipeline.WORK).mkdir()
    small_config = replace(small_config, count=2, demonstrations=0, slip_rates=(0.0,))
    fields = small_config.as_json()
    del fields["slip_rates"], fields["demonstration_levels"]
    (tmp_path / pipeline.WORK / "config.json").write_text(json.dumps(fields))
    with pytest.raises(ValueError, match=r"slip_rates \[0\.0\] there, \[0\.5\] now"):
        synthesize(replace(small_config, slip_rates=(0.5,)), tmp_path, workers=0)
    assert synthesize(small_config, tmp_path, workers=0).num_tasks == small_config.count


def test_two_runs_in_one_directory_are_refused(small_config: SynthConfig, tmp_path: Path) -> None:
    with (
        locked_directory(tmp_path),
        pytest.raises(ValueError, match="another synth is writing here"),
    ):
        synthesize(small_config, tmp_path, workers=0)


def test_a_directory_of_something_else_is_left_alone(small_config: SynthConfig, tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("x")
    with pytest.raises(ValueError, match=r"thesis\.tex"):
        synthesize(small_config, tmp_path, workers=0)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]
    with pytest.raises(ValueError, match="is a file"):
        synthesize(small_config, tmp_path / "thesis.tex", workers=0)


def test_corpora_of_two_seeds_share_nothing(
    made_once: Path, small_config: SynthConfig, tmp_path: Path
) -> None:
    synthesize(replace(small_config, seed=6, demonstrations=0), tmp_path / "held-out", workers=0)
    check_disjoint(made_once, tmp_path / "held-out")
    with pytest.raises(ValueError, match=r"share 8 task\(s\)"):
        check_disjoint(made_once, made_once)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"count": -1}, "count must lie in"),
        ({"count": 0}, "nothing to make"),
        ({"domains": ("trp",)}, "no domain 'trp'"),
        ({"domains": ()}, "domains must be given"),
        ({"levels": (1, 1)}, "each once"),
        ({"levels": (11,)}, "level 11 does not exist"),
        ({"domains": ("retail",), "levels": (5,)}, "level 5 does not exist"),
        ({"slip_rates": (1.5,)}, "slip_rates"),
        ({"shard_rows": 0}, "shard_rows"),
        ({"family": "code"}, "family must be general"),
        ({"levels": (4,), "demonstrations": 3}, "give demonstration_levels"),
    ],
)
def test_a_config_is_checked_where_it_is_built(fields: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SynthConfig(**{"count": 1, "seed": 1, **fields})  # pyright: ignore[reportArgumentType]
