"""G21: where the task comes from, and what it cost in what can be counted again: calls played, verdicts
given.

Seconds differ from run to run and would make two corpora of one seed differ; `benchmarks/synthesis.py`
measures them. No model took part: the generator, its version and the seed say it all.
"""

from envs.task import GateRecord, canonical_json, digest
from synthesis.gates.trial import Trial
from synthesis.general import domain_named

GATE, TITLE, VERSION = "G21", "cost and provenance", 1


def check(trial: Trial) -> GateRecord:
    task = trial.task
    source, world = task.provenance, task.world
    said = (source.generator, source.generator_version, source.seed)
    faults: list[str] = []
    if said != (world.generator, world.generator_version, world.seed):
        faults.append("task and world name different sources")
    if source.generator_version != domain_named(task.domain).version:
        faults.append(f"made by version {source.generator_version} of the domain, this is another")
    if source.seed != trial.draft.seed:
        faults.append("its draft has another seed")
    prompt = digest(canonical_json([[message.role, message.content] for message in task.prompt]))
    return GateRecord(
        gate=GATE,
        passed=not faults,
        value=float(trial.num_verdicts),
        evidence=faults[0]
        if faults
        else f"{source.generator} {source.generator_version}, prompt {prompt[:12]}, no model;"
        f" {trial.num_plays} plays, {trial.num_verdicts} verdicts",
        version=VERSION,
    )
