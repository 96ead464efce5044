"""Several learners, in words: what a plan says of them, and what a person should know before they start."""

import os

from rl.config import RlSection

SHARDING = {
    "auto": "each the whole model on CPUs (DDP), a share of it on GPUs (FSDP2)",
    "none": "each the whole model (DDP)",
    "full": "each a share of the model (FSDP2)",
}


def learners_in_words(rl: RlSection) -> str:
    """Empty for one learner."""
    if rl.learners == 1:
        return ""
    rows = f"{rl.rows_per_learner} rows a step each"
    return f"; {rl.learners} learners under Ray Train, {rows}, {SHARDING[rl.sharding]}"


def too_many_learners(rl: RlSection) -> str | None:
    """A line where there are more learners than cores of this machine, which may be part of a cluster."""
    cores = len(os.sched_getaffinity(0))
    if rl.learners <= cores:
        return None
    return (
        f"rl.learners: {rl.learners} learners on the {cores} core(s) of this machine take turns; unless Ray"
        f" has other machines, set at most {cores}"
    )
