"""GV: the attacks themselves, measured by damage to the verifier.

Each mutant of a verifier is weaker or wrong at one place: a clause dropped, a bound moved, an `and` for an
`or`, a text compared loosely, the frame dropped or widened, the journal not played again. It is *killed* when
an attack of some gate gets another verdict by it; *missed* when only the enumeration of every guess (G4)
notices it; *redundant* when every guess was tried and no verdict changes; *equivalent* when the guesses are
too many to try and the changed condition says the same about everything tried; else it is *open*: there may
be an episode that tells.
"""

from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, replace
from typing import Literal

from envs.task import Clause, FrameRule, GateRecord
from envs.verifier import Grader, GraderError, judge, parse_answer
from synthesis.gates import false_negatives, guessing
from synthesis.gates.necessity import attacked, fault_of, violated_alone
from synthesis.gates.sql_mutants import sql_mutants
from synthesis.gates.tampering import journal_attacks
from synthesis.gates.trial import Probe, Trial

GATE, TITLE, VERSION = "GV", "verifier mutants", 1
MIN_KILLED = 0.95
MAX_PROBES = 8
"""Of those that only the mutated part refuses; as many of the accepted ones."""
MAX_OTHERS = 40

Fate = Literal["killed", "missed", "redundant", "equivalent", "open"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Outcome:
    mutant: str
    fate: Fate


def check(trial: Trial) -> GateRecord:
    found = list(outcomes(trial))
    fates = Counter(outcome.fate for outcome in found)
    total = fates["killed"] + fates["missed"]
    missed = [outcome.mutant for outcome in found if outcome.fate == "missed"]
    value = fates["killed"] / total if total else 0.0
    return GateRecord(
        gate=GATE,
        # One that is missed among twenty or fewer is more than 5 %, and says little: it takes two.
        passed=fates["killed"] > 0 and (value >= MIN_KILLED or len(missed) < 2),
        value=value,
        evidence=f"killed {fates['killed']} of {total}; {fates['open']} open, {fates['redundant']} redundant,"
        f" {fates['equivalent']} equivalent" + (f"; missed: {missed[0]}" if missed else ""),
        version=VERSION,
    )


def outcomes(trial: Trial) -> Iterator[Outcome]:
    if not any(false_negatives.GATE in probe.gates for probe in trial.probes()):
        false_negatives.check(trial)
    probes = attacked(trial)
    alone = violated_alone(trial)
    decided = {clause.name: _chosen(alone.get(fault_of(clause), [])) for clause in trial.task.clauses}
    exhaustive = bool(trial.task.guess.plans) or guessing.is_enumerable(trial)
    for name, refused in decided.items():
        yield Outcome(mutant=f"without {name!r}", fate=_fate(refused, exhaustive=exhaustive, differs=True))
    yield from _clause_outcomes(trial, decided, exhaustive=exhaustive)
    yield from _frame_outcomes(trial, probes, exhaustive=exhaustive)
    yield Outcome(mutant="without the replay", fate="killed" if _replay_needed(trial) else "missed")


def _chosen(probes: list[Probe]) -> list[Probe]:
    """A few, those of the attacks before those of the enumeration, and few plays rather than many."""
    ordered = sorted(probes, key=lambda probe: (not _is_attack(probe), len(probe.calls)))
    return ordered[:MAX_PROBES]


def _is_attack(probe: Probe) -> bool:
    return probe.gates != {guessing.GATE}


def _fate(changed: list[Probe], *, exhaustive: bool, differs: bool) -> Fate:
    """changed: the probes with another verdict. differs: whether the part itself says otherwise anywhere."""
    if any(map(_is_attack, changed)):
        return "killed"
    if changed:
        return "missed"
    if not differs:
        return "equivalent"
    return "redundant" if exhaustive else "open"


def _clause_outcomes(trial: Trial, decided: dict[str, list[Probe]], *, exhaustive: bool) -> Iterator[Outcome]:
    """Every clause's mutants, on the accepted probes and on those that the clause alone refuses."""
    mutants = _runnable(trial)
    changed: dict[str, list[Probe]] = {name: [] for name in mutants}
    for probe, violated in _violations(trial, mutants, _chosen([p for p in trial.probes() if p.accepted])):
        for name in violated:
            changed[name].append(probe)
    for clause, refused in decided.items():
        own = {name: sql for name, sql in mutants.items() if name.startswith(f"{clause}: ")}
        for probe, violated in _violations(trial, own, refused):
            for name in own.keys() - violated:
                changed[name].append(probe)
    differing = set(mutants)
    if not exhaustive:  # where every guess was tried and no verdict changes, that is the end of it
        differing = _differing(trial, {name: sql for name, sql in mutants.items() if not changed[name]})
    for name in mutants:
        yield Outcome(
            mutant=name, fate=_fate(changed[name], exhaustive=exhaustive, differs=name in differing)
        )


def _runnable(trial: Trial) -> dict[str, str]:
    """All clauses' mutants by name, those that SQLite refuses left out."""
    found = {
        f"{clause.name}: {name}": sql
        for clause in trial.task.clauses
        for name, sql in sql_mutants(clause.sql)
    }
    with closing(_grader(trial, {})) as grader:
        grader.grade_play(trial.gold, [trial.task.gold.answer])
        return {name: sql for name, sql in found.items() if grader.accepts(sql)}


def _grader(trial: Trial, mutants: dict[str, str]) -> Grader:
    clauses = tuple(Clause(name=name, part="goal", sql=sql) for name, sql in mutants.items())
    return Grader(replace(trial.task, clauses=clauses), trial.image)


def _violations(
    trial: Trial, mutants: dict[str, str], probes: list[Probe]
) -> Iterator[tuple[Probe, set[str]]]:
    """Which of the mutants each probe violates; one play for all answers that follow the same calls."""
    plays: dict[int, list[Probe]] = {}
    for probe in probes if mutants else []:
        plays.setdefault(id(probe.episode), []).append(probe)
    with closing(_grader(trial, mutants)) as grader:
        for group in plays.values():
            try:
                verdicts = grader.grade_play(group[0].episode, [probe.answer for probe in group])
            except GraderError:  # a mutant that cannot judge this play
                continue
            for probe, verdict in zip(group, verdicts, strict=True):
                yield probe, {fault.removeprefix("goal: ") for fault in verdict.faults} & mutants.keys()


def _differing(trial: Trial, mutants: dict[str, str]) -> set[str]:
    """The mutants that hold where their clause does not, or the other way round, on any of a few probes."""
    clause_of = {
        name: fault_of(clause)
        for clause in trial.task.clauses
        for name in mutants
        if name.startswith(f"{clause.name}: ")
    }
    formed = [probe for probe in trial.probes() if is_formed(trial, probe)]
    found: set[str] = set()
    for probe, violated in _violations(trial, mutants, formed[:: len(formed) // MAX_OTHERS + 1]):
        found |= {n for n in mutants if (n in violated) != (clause_of[n] in probe.verdict.faults)}
    return found


def is_formed(trial: Trial, probe: Probe) -> bool:
    """The answer has the form that the task asks for, so that the clauses were evaluated."""
    return parse_answer(trial.task.answer, probe.answer) is not None


def _frame_outcomes(trial: Trial, probes: list[Probe], *, exhaustive: bool) -> Iterator[Outcome]:
    """Frames that allow more, tried on what only the frame refuses."""
    if not trial.write_tools:
        return
    stray = _chosen([p for p in probes if p.verdict.faults and all(map(_is_stray, p.verdict.faults))])
    yield Outcome(mutant="without the frame", fate=_fate(stray, exhaustive=exhaustive, differs=True))
    for name, frame in _wider_frames(trial):
        if set(frame) == set(trial.task.frame):
            continue
        wider = replace(trial.task, frame=frame)
        with closing(Grader(wider, trial.image)) as grader:
            changed = [p for p in stray if grader.grade_play(p.episode, [p.answer])[0].score > 0]
        yield Outcome(mutant=name, fate=_fate(changed, exhaustive=exhaustive, differs=True))


def _is_stray(fault: str) -> bool:
    return fault.startswith("frame: ")


def _wider_frames(trial: Trial) -> Iterator[tuple[str, tuple[FrameRule, ...]]]:
    frame = trial.task.frame
    first = {table: column for table, column in reversed(trial.cells)}
    for table in dict.fromkeys(rule.table for rule in frame):
        columns = tuple({column for rule in frame if rule.table == table for column in rule.columns})
        rows = (
            FrameRule(table=table, key=str(key), columns=columns) for key in trial.cells[table, first[table]]
        )
        yield f"every row of {table} in the frame", (*frame, *rows)


def _replay_needed(trial: Trial) -> bool:
    """Some forged journal is refused by the whole verifier, and accepted without the replay."""
    for _, episode in journal_attacks(trial):
        with closing(Grader(trial.task, trial.image)) as grader:
            accepted = grader.grade_play(episode, [episode.answer])[0].score > 0
        if accepted and judge(trial.task, episode).score == 0.0:
            return True
    return False
