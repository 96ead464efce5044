"""G13: conditions that bind. A clause is necessary when, without it, another answer or deed would be right.

Read off the probes of the gates before: one that violates this clause alone proves it. What no probe shows is
reported as not shown; where the whole guess space was tried, no guess needs it.
"""

from envs.task import Clause, GateRecord
from synthesis.gates import floor, guessing, solution_mutants
from synthesis.gates.trial import Probe, Trial

GATE, TITLE, VERSION = "G13", "necessity", 1


def check(trial: Trial) -> GateRecord:
    alone = violated_alone(trial)
    clauses = trial.task.clauses
    binding = [clause for clause in clauses if alone.get(fault_of(clause))]
    rest = [clause.name for clause in clauses if not alone.get(fault_of(clause))]
    return GateRecord(
        gate=GATE,
        passed=bool(binding),
        value=len(binding) / len(clauses) if clauses else 0.0,
        evidence=f"{len(binding)} of {len(clauses)} clauses bind"
        + (f"; not shown: {rest[0]}" if rest else ""),
        version=VERSION,
    )


def fault_of(clause: Clause) -> str:
    """How a verdict names the clause."""
    return f"{clause.part}: {clause.name}"


def violated_alone(trial: Trial) -> dict[str, list[Probe]]:
    """By fault: the probes that fail by this fault and no other."""
    found: dict[str, list[Probe]] = {}
    for probe in attacked(trial):
        if len(probe.verdict.faults) == 1:
            found.setdefault(probe.verdict.faults[0], []).append(probe)
    return found


def attacked(trial: Trial) -> list[Probe]:
    """The trial's probes, after the gates that make most of them."""
    tried = {gate for probe in trial.probes() for gate in probe.gates}
    for module in (floor, guessing, solution_mutants):
        if module.GATE not in tried:
            module.check(trial)
    return trial.probes()
