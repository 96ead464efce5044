"""All gates in their order, and how a candidate passes through them."""

from collections.abc import Callable
from contextlib import closing
from typing import Final

from envs.task import GateRecord
from synthesis.gates import (
    channels,
    determinism,
    false_negatives,
    floor,
    frame,
    gold,
    grounding,
    guessing,
    injection,
    leaks,
    necessity,
    provenance,
    schema,
    shortcuts,
    solution_mutants,
    tampering,
    twins,
    uniqueness,
    verifier_mutants,
)
from synthesis.gates.trial import Trial
from synthesis.general import Candidate

_MODULES = (
    schema, determinism, gold, floor, guessing, solution_mutants, tampering, channels, injection,
    false_negatives, frame, grounding, uniqueness, necessity, leaks, shortcuts, twins, provenance,
    verifier_mutants,
)  # fmt: skip
GATES: Final[dict[str, Callable[[Trial], GateRecord]]] = {module.GATE: module.check for module in _MODULES}
GATE_VERSIONS: Final[dict[str, int]] = {module.GATE: module.VERSION for module in _MODULES}
TITLES: Final[dict[str, str]] = {module.GATE: module.TITLE for module in _MODULES}


def run_gates(candidate: Candidate) -> tuple[GateRecord, ...]:
    """The gates' records in order, up to and with the first that refuses."""
    records: list[GateRecord] = []
    with closing(Trial(candidate)) as trial:
        for check in GATES.values():
            records.append(check(trial))
            if not records[-1].passed:
                break
    return tuple(records)
