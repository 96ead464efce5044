"""The page of a pipeline, from made-up stages: it shows what they wrote and nothing breaks it."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.worldsmith.test_report import HOSTILE, Tags, poisoned
from worldsmith import pipeline_sections as sections
from worldsmith.report import write_report
from worldsmith.run_directory import read_run

STAGES = [
    {"name": "cold-start", "kind": "cold start", "domains": ["trip", "retail"]},
    {"name": "specialist-trip", "kind": "specialist", "domains": ["trip"]},
    {"name": "specialist-retail", "kind": "specialist", "domains": ["retail"]},
    {"name": "distilled", "kind": "distilled", "domains": ["trip", "retail"]},
    {"name": "mixed", "kind": "mixed", "domains": ["trip", "retail"]},
]
RATES = {"cold-start": 0.25, "specialist-trip": 0.5, "distilled": 0.45}
FIGURES = {
    "kind": "figures",
    "groups": {
        "trip": {"difference": -0.012, "interval": [-0.041, 0.017], "kept": True, "shown": True},
        "retail": {"difference": -0.02, "interval": [-0.09, 0.05], "kept": True, "shown": False},
    },
    "compute": {
        "pretraining_flops": 4e13, "distillation_flops": 1e13, "rl_flops": 2e13, "rl_share": 0.5,
        "post_training_share": 0.75,
    },
}  # fmt: skip
WritePipeline = Callable[..., Path]


def evaluation(when: str, rate: float, domains: list[str]) -> dict[str, Any]:
    one = {"pass_rate": rate, "interval": [rate - 0.05, rate + 0.05], "episodes": 400}
    return {"kind": "eval", "policy": "policy", "when": when, **one, "by_domain": dict.fromkeys(domains, one)}


@pytest.fixture
def write_pipeline(tmp_path: Path) -> WritePipeline:
    """Writes a pipeline whose stages with a rate are finished, and gives its directory."""

    def write(*, finished: bool = True) -> Path:
        out = tmp_path / "run"
        for stage in STAGES:
            rate = RATES.get(str(stage["name"]))
            if rate is None:
                continue
            folder = out / str(stage["name"])
            folder.mkdir(parents=True)
            (folder / "run.json").write_text(json.dumps({"finished": "2026-01-05T10:13:20+00:00"}))
            domains = list(stage["domains"])
            lines = [
                evaluation(when, rate - (when == "before") * 0.2, domains) for when in ("before", "after")
            ]
            if stage["kind"] != "specialist":
                lines = [evaluation("before", rate, domains)]
            if stage["name"] == "distilled":
                lines.append({"kind": "distill", "step": 0, "specialist": "specialist-trip", "sampled": 100,
                              "kept": 40, "failed": 50, "held_out": 3, "copy": 7})  # fmt: skip
            (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
            (folder / "report.html").write_text("a page")
        info = {
            "command": "pipeline", "stages": STAGES, "margin": 0.05, "stage": "mixed",
            "finished": "2026-01-05T10:13:20+00:00" if finished else None,
            "stage_log": [{"stage": "cold-start", "seconds": 61.0}, {"stage": "mixed", "seconds": None}],
        }  # fmt: skip
        (out / "run.json").write_text(json.dumps(info))
        (out / "metrics.jsonl").write_text(json.dumps(FIGURES) + "\n" if finished else "")
        return out

    return write


def test_the_page_shows_each_stage_s_rate_where_it_was_measured(write_pipeline: WritePipeline) -> None:
    run = read_run(write_pipeline())
    table = dict(sections.rates(run))
    trip = {row.name: row.score.rate if row.score else None for row in table["trip"]}
    assert trip == {"cold-start": 0.25, "specialist-trip": 0.5, "distilled": 0.45}
    retail = {row.name: row.score.rate if row.score else None for row in table["retail"]}
    assert retail == {"cold-start": 0.25, "distilled": 0.45}
    page = write_report(run.path).read_text()
    assert "45.0%" in page
    assert "RL took 50.0 % of the cold start" in page
    assert "RL and distillation 75.0 %" in page
    assert 'http-equiv="refresh"' not in page
    assert Tags(page).addresses == [f"{name}/report.html" for name in RATES]


def test_within_the_margin_and_shown_to_be_are_two_things(write_pipeline: WritePipeline) -> None:
    rows = sections.differences(read_run(write_pipeline()))
    assert [(row.name, row.points, row.interval, row.verdict) for row in rows] == [
        ("trip", "-1.2", "-4.1 to +1.7", "within, all of the interval too"),
        ("retail", "-2.0", "-9.0 to +5.0", "within"),
    ]


def test_stages_are_told_apart_by_how_far_they_are(write_pipeline: WritePipeline) -> None:
    rows = {row.name: (row.state, row.took) for row in sections.stage_rows(read_run(write_pipeline()))}
    assert rows["cold-start"] == ("finished", "1 min 01 s")
    assert rows["mixed"] == ("under way", "")
    assert rows["specialist-retail"] == ("to come", "")


def test_what_became_of_the_specialist_s_episodes_adds_up(write_pipeline: WritePipeline) -> None:
    ((name, shares, about),) = sections.lessons(read_run(write_pipeline()))
    assert (name, about) == ("Episodes of specialist-trip", "100 played")
    assert {share.name: share.percent for share in shares} == {
        "lessons": 40, "failed": 50, "of a held-out task": 3, "copies": 7,
    }  # fmt: skip


def test_an_unfinished_pipeline_reloads_itself(write_pipeline: WritePipeline) -> None:
    page = write_report(write_pipeline(finished=False)).read_text()
    assert '<meta http-equiv="refresh" content="5">' in page
    assert "Mixed RL against" not in page


def test_every_text_of_a_pipeline_is_escaped_and_no_name_leads_elsewhere(
    write_pipeline: WritePipeline,
) -> None:
    out = write_pipeline()
    info = json.loads((out / "run.json").read_text())
    hostile = poisoned(info) | {"stages": [{"name": "../x", "kind": "mixed", "domains": ["a"]}, *STAGES]}
    hostile["stages"][1] = hostile["stages"][1] | {"domains": [HOSTILE], "kind": HOSTILE}
    (out / "run.json").write_text(json.dumps(hostile))
    for file in out.rglob("metrics.jsonl"):
        lines = [json.loads(line) for line in file.read_text().splitlines()]
        lines = [
            poisoned(line) | {k: line[k] for k in ("kind", "when", "step") if k in line} for line in lines
        ]
        file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    page = write_report(out).read_text()
    tags = Tags(page)
    assert "alert(1)" in page
    assert not {"script", "img"} & set(tags.tags)
    assert tags.handlers == []
    assert all(address.split("/")[0] in RATES for address in tags.addresses)


@pytest.mark.parametrize("wrong", [None, "text", [], {}, True, float("nan"), -1, 10**400])
def test_a_field_of_the_wrong_type_does_not_break_the_page(
    write_pipeline: WritePipeline, wrong: object
) -> None:
    out = write_pipeline()
    for file in out.rglob("metrics.jsonl"):
        lines = [json.loads(line) for line in file.read_text().splitlines()]
        broken = [line | {key: wrong} for line in lines for key in line]
        file.write_text("".join(json.dumps(line) + "\n" for line in broken))
    info = json.loads((out / "run.json").read_text())
    for key in info:
        (out / "run.json").write_text(json.dumps(info | {key: wrong}))
        assert "Worldsmith" in write_report(out).read_text()
    (out / "run.json").write_text(json.dumps(info | {"stages": [wrong, {"name": wrong}, *STAGES]}))
    assert "Worldsmith" in write_report(out).read_text()
