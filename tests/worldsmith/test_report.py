import json
import shutil
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from worldsmith import cli
from worldsmith import report_sections as sections
from worldsmith.report import draw_page, write_report
from worldsmith.run_directory import read_run
from worldsmith.view import write_view

HOSTILE = "</pre></style><script>alert(1)</script><img src=x onerror=alert(1)>'\"{{ 7*7 }}"
WriteRun = Callable[..., Path]


class Tags(HTMLParser):
    """Which tags a page holds and which addresses they load."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.handlers: list[str] = []
        self.addresses: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.handlers += [name for name, _ in attrs if name.startswith("on")]
        self.addresses += [value or "" for name, value in attrs if name in ("src", "href")]


def poisoned(value: Any) -> Any:
    """The same structure with every text in it, and a key beside them, replaced by hostile text."""
    if isinstance(value, str):
        return HOSTILE
    if isinstance(value, dict):
        return {key: poisoned(one) for key, one in value.items()} | {HOSTILE: 1}
    return [poisoned(one) for one in value] if isinstance(value, list) else value


def test_the_report_of_a_finished_run_shows_its_results(write_run: WriteRun) -> None:
    page = write_report(write_run()).read_text()
    assert "43.0%" in page  # before
    assert "71.0%" in page  # after
    assert "+28.0 points" in page
    assert "95 % intervals do not overlap" in page
    assert "never shown" in page
    assert "of mixed quality" in page
    assert "38.7 % of the cold start" in page  # 1.2e15 / 3.1e15
    assert 'http-equiv="refresh"' not in page
    tags = Tags(page)
    assert tags.tags.count("svg") == 2 + 8  # two charts and eight small curves
    assert tags.addresses == []  # nothing from outside


def test_an_unfinished_run_reloads_itself(write_run: WriteRun) -> None:
    page = write_report(write_run(finished=None, stage="rl")).read_text()
    assert '<meta http-equiv="refresh" content="5">' in page
    assert "page rewrites itself" in page


def test_every_text_of_a_run_is_escaped(write_run: WriteRun) -> None:
    run = write_run()
    clean = Tags(write_report(run).read_text())
    info = poisoned(json.loads((run / "run.json").read_text()))
    (run / "run.json").write_text(json.dumps(info))
    for file in run.rglob("*.jsonl"):
        keep = ("kind", "when", "policy")  # which tell what a line is; the rest is hostile
        lines = [json.loads(line) for line in file.read_text().splitlines()]
        lines = [poisoned(line) | {key: line[key] for key in keep if key in line} for line in lines]
        file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    page = write_report(run).read_text()
    tags = Tags(page)
    assert "alert(1)" in page
    assert "{{ 7*7 }}" in page
    assert set(tags.tags) <= set(clean.tags)
    assert tags.handlers == []
    view = Tags(write_view(run).read_text())
    assert view.tags.count("script") == 1  # the page's own
    assert view.handlers == []


def test_a_run_that_has_just_begun_has_a_report(tmp_path: Path) -> None:
    page = write_report(tmp_path).read_text()
    assert "Not measured yet" in page


@pytest.mark.parametrize("kept", [1, 3, 20, 600, 604, 650])
def test_a_run_has_a_report_wherever_it_stands(write_run: WriteRun, kept: int) -> None:
    run = write_run(finished=None)
    lines = (run / "metrics.jsonl").read_text().splitlines(keepends=True)
    (run / "metrics.jsonl").write_text("".join(lines[:kept]) + '{"kind": "rl", "st')  # cut in the middle
    assert "1 line(s) of the run" in write_report(run).read_text()


@pytest.mark.parametrize("wrong", [None, "text", [], {}, True, float("nan"), -1, 10**400])
def test_a_field_of_the_wrong_type_does_not_break_the_report(write_run: WriteRun, wrong: object) -> None:
    run = write_run()
    for file in [run / "metrics.jsonl", run / "trajectories" / "after.jsonl"]:
        first = {
            key: value for line in file.read_text().splitlines() for key, value in json.loads(line).items()
        }
        lines = [first | {key: wrong} for key in first]
        file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    info = json.loads((run / "run.json").read_text())
    for key in info:
        (run / "run.json").write_text(json.dumps(info | {key: wrong}))
        assert "Worldsmith" in write_report(run).read_text()


def test_no_trajectory_no_notes_no_config(write_run: WriteRun) -> None:
    run = write_run(notes=[], config=None, versions=None, stage_log=[])
    shutil.rmtree(run / "trajectories")
    page = write_report(run).read_text()
    assert "Three trajectories" not in page


def test_a_resumed_step_counts_once_and_as_written_last(write_run: WriteRun) -> None:
    lines = [{"kind": "rl", "step": step, "pass_rate": rate} for step, rate in ((1, 0.1), (2, 0.2), (2, 0.4))]
    assert sections.series(read_run(write_run(lines)).rl, "pass_rate") == [(1, 0.1), (2, 0.4)]


def test_the_time_split_puts_the_parts_of_rl_in_its_place(write_run: WriteRun) -> None:
    shares = sections.time_split(read_run(write_run()))
    assert [share.name for share in shares] == [
        "synthesis",
        "cold start",
        "RL: generation",
        "RL: environment",
        "RL: training",
        "RL: other",
        "evaluation",
    ]
    assert sum(share.percent for share in shares) == pytest.approx(100)
    # 160 steps of 1.4 s, of 71 + 212 + 461 + 49 s in all
    assert shares[2].percent == pytest.approx(100 * 160 * 1.4 / 793)


def test_a_loss_shows_as_a_loss(write_run: WriteRun) -> None:
    line = {"kind": "eval", "policy": "local", "interval": [0.1, 0.3], "episodes": 50}
    run = write_run(
        [line | {"when": "before", "pass_rate": 0.25}, line | {"when": "after", "pass_rate": 0.2}]
    )
    page = write_report(run).read_text()
    assert "gain down" in page
    assert "-5.0 points" in page
    assert "intervals overlap" in page


def test_intervals_overlap_though_the_new_rate_lies_beyond_the_old_interval(write_run: WriteRun) -> None:
    line = {"kind": "eval", "policy": "local", "episodes": 50}
    before = line | {"when": "before", "pass_rate": 0.25, "interval": [0.15, 0.37]}
    after = line | {"when": "after", "pass_rate": 0.45, "interval": [0.36, 0.54]}
    assert sections.headline(read_run(write_run([before, after])))["apart"] is False


def test_a_scripted_policy_is_never_the_headline(write_run: WriteRun) -> None:
    lines = [{"kind": "eval", "when": "after", "policy": "oracle", "pass_rate": 1.0, "interval": [1, 1]}]
    headline = sections.headline(read_run(write_run(lines)))
    assert headline["after"] is None
    assert [name for name, _ in headline["baselines"]] == ["oracle"]


def test_a_directory_that_is_none_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["report", str(tmp_path / "absent")]) == cli.USAGE
    assert capsys.readouterr().err.count("\n") == 1
    assert cli.main(["view", str(tmp_path / "absent")]) == cli.USAGE


def test_without_a_browser_a_picture_is_refused_in_one_line(
    write_run: WriteRun, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    code = cli.main(["report", str(write_run()), "--png", str(tmp_path / "x.png")])
    assert code == cli.INFRASTRUCTURE
    assert "apt-get install chromium" in capsys.readouterr().err


@pytest.mark.browser
def test_the_picture_ends_where_the_page_does(write_run: WriteRun, tmp_path: Path) -> None:
    from PIL import Image

    picture = tmp_path / "report.png"
    draw_page(write_report(write_run()), picture)
    with Image.open(picture) as image:
        assert image.width == 1200
        assert 1500 < image.height < 5000
    draw_page(write_report(write_run()), picture, height=700)
    with Image.open(picture) as image:
        assert image.height == 700
