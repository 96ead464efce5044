"""`worldsmith train` where the config has a section `pipeline`: plan, progress and result, in words."""

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rl.config import PipelineConfig
from rl.pipeline import Stage, cold_start_source, narrowed, plan_stages, run_pipeline
from rl.pipeline_figures import Figures
from rl.run import Data
from rl.run_files import locked
from rl.stages import Kind
from worldsmith.learning import learners_in_words
from worldsmith.report import write_report
from worldsmith.watching import Watcher


def plan_lines(config: PipelineConfig, data: Data, out: Path) -> list[str]:
    """A line a stage: what it will do, and whether it has been done."""
    stages = plan_stages(config, data, out)
    if not stages[0].finished:
        cold_start_source(config)
    lines = [
        f"{stage.name:<{max(len(one.name) for one in stages)}}  {what_it_does(stage, config, data)}"
        f"{'; done' if stage.finished else ''}"
        for stage in stages
    ]
    return [*lines, f"into {out}"]


def what_it_does(stage: Stage, config: PipelineConfig, data: Data) -> str:
    own = narrowed(data, stage.domains)
    rl, distill = stage.config.rl, config.pipeline.distill
    tasks = [playable for playable in own.tasks if playable.task.level in rl.levels]
    held = f"{len(own.heldout):,} held out"
    if stage.kind is Kind.COLD_START:
        source = config.pipeline.cold_start_from
        steps = f"{stage.config.cold_start.num_steps:,} steps on {len(data.clean) + len(data.mixed):,}"
        return f"taken over from {source}; {held}" if source else f"{steps} demonstrations; {held}"
    if stage.kind is Kind.DISTILLED:
        return (
            f"specialists play {len(tasks):,} tasks {distill.samples} times, {distill.steps:,} steps on at"
            f" most {distill.kept_per_task} passed episode(s) of each; {held}"
        )
    end = f", or until RL's compute is {rl.until_share:g} of the cold start's" if rl.until_share else ""
    return (
        f"{rl.steps:,} steps of RL{end}, {rl.groups_per_step} groups of {rl.group_size} from {len(tasks):,}"
        f" tasks of {', '.join(stage.domains)}{learners_in_words(rl)}; {held}"
    )


def train_in_stages(config: PipelineConfig, data: Data, out: Path, *, as_json: bool) -> int:
    stages = plan_stages(config, data, out)

    @contextmanager
    def watch(stage: Stage) -> Iterator[Watcher]:
        print(f"stage {stages.index(stage) + 1} of {len(stages)}: {stage.name}", file=sys.stderr)
        watcher = Watcher(stage.out, out)
        yield watcher
        watcher.close()

    with locked(out):
        found = run_pipeline(config, data, out, watch)
        page = write_report(out)
    if as_json:
        print(json.dumps({"out": str(out), **found.as_fields(config.pipeline.margin)}))
    else:
        print("\n".join([*result_lines(found), f"look at {page}"]))
    return 0


def result_lines(found: Figures) -> list[str]:
    lines = []
    for name, group in found.groups.items():
        rates = ", ".join(f"{kind} {rate.pass_rate:.3f}" for kind, rate in group.rates.items())
        low, high = group.interval
        lines.append(
            f"{name}: {rates}; mixed less specialist {100 * group.difference:+.1f} points"
            f" ({100 * low:+.1f} to {100 * high:+.1f})"
        )
    share = found.compute.rl_share
    return [*lines, f"RL took {share:.3f} of the cold start's compute" if share is not None else ""]
