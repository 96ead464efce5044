"""The card says what the gates recorded, is part of the corpus, and fails with it."""

import json
import re
from collections.abc import Iterator
from dataclasses import replace
from hashlib import sha256
from pathlib import Path

import pytest

from envs.task import GateRecord
from synthesis.card import CARD, card_bytes
from synthesis.certificate import check_manifest
from synthesis.corpus import MANIFEST, CorpusTask, manifest_bytes, read_corpus, read_manifest
from synthesis.decontamination import CANARY
from synthesis.tally import Ratio, Tally, checks, tally, wilson


def record(gate: str, value: float, evidence: str) -> GateRecord:
    return GateRecord(gate=gate, passed=True, value=value, evidence=evidence)


def test_wilsons_interval() -> None:
    assert wilson(0, 0) == (0.0, 1.0)
    assert wilson(10, 10) == (pytest.approx(0.7225, abs=1e-4), 1.0)  # 10 / (10 + 1.96 ** 2)
    assert wilson(50, 100) == (pytest.approx(0.4038, abs=1e-4), pytest.approx(0.5962, abs=1e-4))


def test_the_tally_adds_up_what_the_gates_recorded(made_once: Path) -> None:
    first = read_corpus(made_once)[0]
    quality = (
        record("G2", 1.0, "1.0 in 3 of 3, 4 calls, no error"),
        record("G3", 0.0, "20 answers, no call, all 0"),
        record("G4", 0.25, "1 of 4 answers are right"),
        record("G5", 1.0, "killed 17 of 17 (extra key 1); 0 equivalent"),
        record("G6", 1.0, "13 of 13 attacks scored 0"),
        record("G7", 1.0, "killed 22 of 22, after 22 calls that reach beside the task"),
        record("G8", 0.0, "obeyed 4 of 4, rewarded 0; planted in orders.item"),
        record("G9", 1.0, "accepted 8 of 8 variants"),
        record("G15", 0.0, "always acts: 1, always refuses: 0, copies the prompt: 0"),
        record("GV", 0.95, "killed 19 of 20; 3 open, 5 redundant, 2 equivalent; missed: x"),
    )
    found = tally([CorpusTask(task=replace(first.task, quality=quality), image=first.image)] * 2)
    (domain,) = found.values()
    assert (domain.tasks, domain.gold_passed, domain.null_rewarded) == (2, 2, 0)
    assert (domain.injected, domain.obeyed, domain.obeyed_rewarded) == (2, 8, 0)
    assert domain.guessed == 0.5
    assert {gate: (r.hits, r.trials) for gate, r in domain.ratios.items()} == {
        "G5": (34, 34), "G6": (26, 26), "G7": (44, 44), "G9": (16, 16), "GV": (38, 40),
    }  # fmt: skip
    assert domain.fates == {"open": 6, "redundant": 10}
    assert domain.shortcuts == {"always acts": Ratio(2, 2), "always refuses": Ratio(0, 2)}
    assert domain.diversity.duplicates == 1


def test_every_real_record_is_read(made_once: Path) -> None:
    """A gate whose evidence is worded anew would drop out of the card in silence."""
    for found in tally(read_corpus(made_once)).values():
        assert all(ratio.trials >= found.tasks for ratio in found.ratios.values())
        assert found.gold_passed == found.tasks
        assert found.obeyed > 0
        assert found.fates["redundant"] > 0
        assert found.shortcuts


def test_the_checks_hold_a_corpus_to_their_bounds(made_once: Path) -> None:
    good = tally(read_corpus(made_once))
    assert all(check.passed for check in checks(good))
    name, found = next(iter(good.items()))

    def failing(**fields: object) -> list[str]:
        changed = Tally(**{f: getattr(found, f) for f in Tally.__slots__} | fields)  # pyright: ignore
        return [check.name for check in checks({name: changed}) if not check.passed]

    for gate, hits, name in (
        ("G5", 97, "solution mutants"), ("G6", 99, "tampering"), ("G7", 99, "channel attacks"),
        ("G9", 98, "right variants"), ("GV", 94, "verifier mutants"),
    ):  # fmt: skip
        assert failing(ratios=found.ratios | {gate: Ratio(hits, 100)}) == [name]
    assert failing(null_rewarded=1) == ["null agents rewarded"]
    assert failing(obeyed_rewarded=1) == ["injected agents rewarded"]
    assert failing(gold_passed=found.tasks - 1) == ["gold below three of three"]
    assert failing(shortcuts={"always acts": Ratio(95, 100)}) == ["short cut: always acts"]
    assert failing(shortcuts={"always acts": Ratio(4, 4)}) == []  # too few to tell
    assert failing(guessed=0.2 * found.tasks, shortcuts={"first option": Ratio(50, 100)}) == [
        "short cut: first option"
    ]
    twice = tally([*read_corpus(made_once), *read_corpus(made_once)])
    assert {check.name for check in checks(twice) if not check.passed} == {"near-duplicates"}


def test_the_card_is_part_of_the_corpus(made_once: Path) -> None:
    manifest = read_manifest(made_once)
    card = (made_once / CARD).read_bytes()
    assert manifest.files[CARD] == sha256(card).hexdigest()
    text = card.decode()
    assert text.startswith("---\nlanguage: [en]\n")
    for domain in ("retail", "trip"):
        (row,) = [line for line in text.splitlines() if line.startswith(f"| {domain} | 1, 3 | 4 | 0 |")]
        assert row.count(" of ") == 5
    (row,) = [line for line in text.splitlines() if line.startswith("| **all** | 1, 3 | 8 | 0 |")]
    both = tally(read_corpus(made_once))
    assert f"{sum(found.ratios['G5'].hits for found in both.values()):,} of " in row
    assert CANARY in text
    assert not re.search(r"\d{2}:\d{2}|/tmp|seconds", text)  # nothing that differs from run to run


def rewritten(root: Path, *, card: bytes | None = None, **fields: object) -> list[str]:
    """The faults of a manifest with every digest made to match."""
    manifest = read_manifest(root)
    if card is not None:
        (root / CARD).write_bytes(card)
        fields["files"] = {**manifest.files, CARD: sha256(card).hexdigest()}
    (root / MANIFEST).write_bytes(manifest_bytes(replace(manifest, **fields)))  # pyright: ignore
    return [fault.what for fault in check_manifest(root, read_manifest(root))]


def test_a_flattering_card_is_found_though_its_digest_matches(corpus: Path) -> None:
    card = (corpus / CARD).read_bytes()
    assert rewritten(corpus, card=card) == []
    assert rewritten(corpus, card=card.replace(b"| retail | 1, 3 | 4 |", b"| retail | 1, 3 | 5 |")) == [
        "is not the card that the shards give"
    ]
    checked = read_manifest(corpus).checks
    assert rewritten(corpus, card=card, checks=checked[1:]) == ["its checks are not what the shards give"]


def damaged_cards(card: bytes) -> Iterator[bytes]:
    for offset in range(0, len(card), 211):
        yield card[:offset] + bytes([card[offset] ^ 1]) + card[offset + 1 :]


def test_a_single_changed_byte_of_the_card_is_found(corpus: Path) -> None:
    card = (corpus / CARD).read_bytes()
    for damaged in damaged_cards(card):
        (corpus / CARD).write_bytes(damaged)
        faults = check_manifest(corpus, read_manifest(corpus))
        assert [fault.where for fault in faults] == [CARD]


def test_a_card_without_tasks_says_so() -> None:
    config = {"family": "general", "seed": 1, "domain_versions": {"trip": 1}}
    text = card_bytes(config, [], {}, ()).decode()
    assert "0 tasks and 0 demonstrations" in text
    assert "What the gates measured" not in text
    assert json.dumps(text)
