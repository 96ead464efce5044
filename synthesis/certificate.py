"""What the gates proved about a task, and how anyone proves it again, offline, from the corpus' files alone.

A certificate holds the hashes of the task's content, world, gold, verifier and quality. To check one is to
compute the hashes again, to build world and task again from the seed, and to run every gate again: each
number and each piece of evidence must come out as recorded.
"""

import json
from dataclasses import asdict, dataclass, replace
from hashlib import sha256
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from envs.task import (
    GateRecord,
    Task,
    canonical_json,
    content_hash,
    digest,
    quality_hash,
    task_to_json,
    verifier_hash,
)
from envs.world import image_hash
from synthesis.admission import Admission
from synthesis.card import CARD, card_bytes
from synthesis.corpus import CorpusTask, Manifest, Shard, read_checked, read_shard
from synthesis.counterfactual import made_again
from synthesis.gates.suite import GATES, run_gates
from synthesis.general import FAMILY, Candidate
from synthesis.tally import checks, tally

CERTIFICATE_VERSION = 1


@dataclass(frozen=True, kw_only=True, slots=True)
class Certificate:
    """`world_sha256` is of the image's bytes, `world_hash` of what the database holds."""

    task_id: str
    content_hash: str
    world_hash: str
    world_sha256: str
    gold_hash: str
    verifier_hash: str
    quality_hash: str
    quality: tuple[GateRecord, ...]
    version: int = CERTIFICATE_VERSION


@dataclass(frozen=True, kw_only=True, slots=True)
class Fault:
    """`where`: a task's id, a file or a shard."""

    where: str
    what: str


_CERTIFICATE = TypeAdapter(Certificate)


def certify_candidate(candidate: Candidate) -> CorpusTask | GateRecord:
    """The certified task, or the record of the gate that refused it, or an easier task that it was raised
    from.
    """
    if candidate.easier is not None:
        below = certify_candidate(candidate.easier)
        if not isinstance(below, CorpusTask):
            return below
    records = run_gates(candidate)
    if not records[-1].passed:
        return records[-1]
    task = replace(candidate.task, quality=records)
    certificate = certificate_of(task, candidate.image)
    return CorpusTask(task=task, image=candidate.image, certificate=certificate_json(certificate))


def certificate_of(task: Task, image: bytes) -> Certificate:
    return Certificate(
        task_id=task.task_id,
        content_hash=content_hash(task),
        world_hash=image_hash(image),
        world_sha256=sha256(image).hexdigest(),
        gold_hash=digest(canonical_json(asdict(task.gold))),
        verifier_hash=verifier_hash(task),
        quality_hash=quality_hash(task),
        quality=task.quality,
    )


def certificate_json(certificate: Certificate) -> str:
    return canonical_json(_CERTIFICATE.dump_python(certificate, mode="json"))


def check_task(entry: CorpusTask) -> str | None:
    """What is wrong with a task or its certificate, in one line; None when everything is proved again."""
    try:
        recorded = _CERTIFICATE.validate_json(entry.certificate)
        computed = certificate_of(entry.task, entry.image)
    except (ValidationError, ValueError) as error:
        return f"certificate or world cannot be read: {' '.join(str(error).split())[:160]}"
    for name, value in asdict(computed).items():
        if asdict(recorded)[name] != value:
            return f"{name} is not what the certificate says"
    if entry.certificate != certificate_json(recorded):
        return "the certificate is not in its canonical form"
    return _rebuilt_fault(entry)


def _rebuilt_fault(entry: CorpusTask) -> str | None:
    task = replace(entry.task, quality=())
    if task.family != FAMILY:
        return f"family {task.family!r} cannot be made again by this program"
    try:
        rebuilt = made_again(task)
    except ValueError as error:
        return f"cannot be made again: {error}"
    if rebuilt is None or rebuilt.image != entry.image:
        return f"seed {task.world.seed} gives another world"
    if (field := _different_field(task, rebuilt.task)) is not None:
        return f"seed {task.world.seed} gives another {field}"
    if rebuilt.easier is not None:
        below = certify_candidate(rebuilt.easier)
        if not isinstance(below, CorpusTask):
            easier = rebuilt.easier.task.task_id
            return f"gate {below.gate} refuses {easier}, which it was raised from: {below.evidence[:120]}"
    return _quality_fault(entry, Candidate(task=task, image=entry.image, draft=rebuilt.draft))


def _different_field(ours: Task, theirs: Task) -> str | None:
    a, b = json.loads(task_to_json(ours)), json.loads(task_to_json(theirs))
    return next((name for name in a if canonical_json(a[name]) != canonical_json(b[name])), None)


def _quality_fault(entry: CorpusTask, candidate: Candidate) -> str | None:
    records = run_gates(candidate)
    for ours, recorded in zip(records, entry.task.quality, strict=False):
        if ours != recorded:
            return (
                f"gate {ours.gate} finds {ours.value:g} ({ours.evidence[:80]}), recorded {recorded.value:g}"
            )
        if not ours.passed:
            return f"gate {ours.gate} refuses it: {ours.evidence[:120]}"
    if [record.gate for record in entry.task.quality] != list(GATES):
        return f"its quality lacks gates: it has {', '.join(record.gate for record in entry.task.quality)}"
    return None


def check_shard(root: Path, shard: Shard) -> list[Fault]:
    """Every fault of one shard."""
    try:
        for name, sha in shard.files.items():
            read_checked(root, name, sha)
        if shard.kind != "tasks":
            return []
        entries = read_shard(root, shard)
    except ValueError as error:
        return [Fault(where=shard.name, what=str(error))]
    faults = []
    if len(entries) != shard.rows:
        faults.append(
            Fault(where=shard.name, what=f"holds {len(entries)} tasks, corpus.json says {shard.rows}")
        )
    admission = Admission()
    before = ""
    for entry in entries:
        if entry.task.provenance.twin_of not in ("", before):
            faults.append(
                Fault(where=entry.task.task_id, what="does not stand behind the task it is a twin of")
            )
        before = entry.task.task_id
        if (reason := admission.refuse(entry)) is not None:
            faults.append(Fault(where=entry.task.task_id, what=f"{reason} refuses it"))
        if (entry.task.domain, entry.task.level) != (shard.domain, shard.level):
            faults.append(
                Fault(where=entry.task.task_id, what=f"lies in a shard of {shard.domain} {shard.level}")
            )
        if (what := check_task(entry)) is not None:
            faults.append(Fault(where=entry.task.task_id, what=what))
    return faults


def check_manifest(root: Path, manifest: Manifest) -> list[Fault]:
    """The faults of what the manifest says about itself and of the files outside the shards."""
    faults = []
    if manifest.config_hash != digest(canonical_json(manifest.config)):
        faults.append(Fault(where="corpus.json", what="config_hash is not the hash of config"))
    for kind, said in (("tasks", manifest.num_tasks), ("demonstrations", manifest.num_demonstrations)):
        rows = sum(shard.rows for shard in manifest.shards if shard.kind == kind)
        if rows != said:
            faults.append(Fault(where="corpus.json", what=f"says {said} {kind}, its shards {rows}"))
    for name, sha in manifest.files.items():
        try:
            read_checked(root, name, sha)
        except ValueError as error:
            faults.append(Fault(where=name, what=str(error)))
    return faults + _card_faults(root, manifest)


def _card_faults(root: Path, manifest: Manifest) -> list[Fault]:
    """How card and checks differ from what the shards give; nothing where a shard cannot be read, which is a
    fault of its own.
    """
    try:
        shards = [shard for shard in manifest.shards if shard.kind == "tasks"]
        tallies = tally(entry for shard in shards for entry in read_shard(root, shard))
        found = checks(tallies)
        card = card_bytes(manifest.config, manifest.shards, tallies, found)
    except (ValueError, KeyError):
        return []
    faults = []
    if manifest.files.get(CARD) != sha256(card).hexdigest():
        faults.append(Fault(where=CARD, what="is not the card that the shards give"))
    if manifest.checks != found:
        faults.append(Fault(where="corpus.json", what="its checks are not what the shards give"))
    faults += [
        Fault(where=check.where, what=f"check {check.name} does not hold: {check.evidence}")
        for check in found
        if not check.passed
    ]
    return faults


def check_shard_item(item: tuple[str, dict[str, Any]]) -> list[Fault]:
    """`check_shard` for a worker: (directory, the shard's fields)."""
    return check_shard(Path(item[0]), Shard(**item[1]))
