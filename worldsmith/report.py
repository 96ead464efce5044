"""Writes a run's report: one page with its curves, tables and a few trajectories, without outside parts.

It works from the run's first minute on, with whatever exists; until the run ends the page reloads itself.
"""

import json
import shutil
import subprocess
import tempfile
import time
from datetime import UTC, datetime
from functools import lru_cache
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from envs.files import write_whole
from worldsmith import pipeline_sections as stages
from worldsmith import report_sections as sections
from worldsmith.arguments import CommandParser
from worldsmith.progress import duration
from worldsmith.run_directory import Record, Run, items, mapping, number, read_run, read_trajectories
from worldsmith.transcripts import three_to_read

TEMPLATES = Path(__file__).parent / "templates"
BROWSERS = ("chromium", "chromium-browser", "google-chrome")
PICTURE_WIDTH, TALLEST_PICTURE = 1200, 8000


def main(argv: list[str]) -> int:
    parser = CommandParser("report", __doc__)
    parser.add_argument("run", type=Path, metavar="RUN", help="the directory of a run")
    parser.add_argument("--out", type=Path, help="the page to write (default: RUN/report.html)")
    parser.add_argument("--png", type=Path, help="also draw the page as a picture; needs Chromium")
    parser.add_argument("--height", type=int, help="cut the picture after HEIGHT pixels (default: none)")
    arguments = parser.parse_args(argv)
    if arguments.height is not None and not 0 < arguments.height <= TALLEST_PICTURE:
        raise ValueError(f"--height must lie in [1, {TALLEST_PICTURE}], got {arguments.height}")
    page = write_report(arguments.run, arguments.out)
    print(page)
    if arguments.png is not None:
        draw_page(page, arguments.png, arguments.height)
        print(arguments.png)
    return 0


def write_report(run_path: Path, out: Path | None = None) -> Path:
    """Write the report of the run as it is now, whole or not at all; returns where."""
    page = run_path / "report.html" if out is None else out
    write_whole(page, encoded(build_page(read_run(run_path), now=time.time())))
    return page


def build_page(run: Run, *, now: float) -> str:
    return pipeline_page(run, now) if stages.is_pipeline(run) else training_page(run, now)


def pipeline_page(run: Run, now: float) -> str:
    return (
        templates()
        .get_template("pipeline.html")
        .render(
            **frame(run, now),
            rates=stages.rates(run),
            differences=stages.differences(run),
            margin=stages.margin(run),
            compute=stages.compute(run),
            compute_about=stages.compute_about(run),
            lessons=stages.lessons(run),
            stages=stages.stage_rows(run),
        )
    )


def frame(run: Run, now: float) -> Record:
    """What every page has."""
    return {
        "css": Markup((TEMPLATES / "page.css").read_text()),
        "run": run,
        "title": as_text(run.info.get("command") or run.path.name),
        "stage": as_text(run.info.get("stage") or "starting"),
        "status": status_line(run, now),
        "facts": facts(run),
        "config": as_text(run.info["config"]) if run.info.get("config") else "",
    }


def training_page(run: Run, now: float) -> str:
    trajectories = read_trajectories(run.path, limit_per_file=400)
    ratio = sections.compute_ratio(run)
    about = "" if ratio is None else f"RL took {100 * ratio:.1f} % of the cold start's compute."
    return (
        templates()
        .get_template("report.html")
        .render(
            **frame(run, now),
            notes=items(run.info, "notes"),
            headline=sections.headline(run),
            counts=named_counts(run),
            learning_curve=sections.learning_curve(run),
            cold_start_curve=sections.cold_start_curve(run),
            by_level=sections.score_rows(run, "by_level"),
            by_domain=sections.score_rows(run, "by_domain"),
            time_split=sections.time_split(run),
            compute_split=sections.compute_split(run),
            compute_about=about,
            causes=sections.causes(run),
            signals=sections.rl_signals(run),
            stories=three_to_read(trajectories),
            stage_log=stage_log(run),
        )
    )


@lru_cache(maxsize=1)
def templates() -> jinja2.Environment:
    """Everything that enters a page is escaped, but what our own code marks as markup."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES), autoescape=True, undefined=jinja2.StrictUndefined
    )
    environment.trim_blocks = environment.lstrip_blocks = True
    environment.filters["percent"] = sections.percent
    return environment


def status_line(run: Run, now: float) -> str:
    started, finished = moment(run.info.get("started")), moment(run.info.get("finished"))
    if started is None:
        return ""
    begun = datetime.fromtimestamp(started, UTC).strftime("%Y-%m-%d %H:%M UTC")
    if finished is not None:
        return f"started {begun}, took {duration(finished - started)}"
    return f"started {begun}, {duration(now - started)} ago; the page rewrites itself"


def moment(value: Any) -> float | None:
    """Seconds since 1970 from a number or an ISO 8601 text; None for anything else."""
    if isinstance(value, str):
        try:
            parsed = datetime.fromisoformat(value)
        except ValueError:
            return None
        return (parsed if parsed.tzinfo else parsed.replace(tzinfo=UTC)).timestamp()
    seconds = number({"seconds": value}, "seconds")
    return seconds if seconds is not None and 0 <= seconds < 1e11 else None


def named_counts(run: Run) -> list[tuple[str, str]]:
    names = {"train_tasks": "training tasks", "heldout_tasks": "held-out tasks"}
    counts = mapping(run.info, "counts")
    return [
        (names.get(name, name.replace("_", " ")), f"{count:,}" if isinstance(count, int) else as_text(count))
        for name, count in counts.items()
    ]


def facts(run: Run) -> list[tuple[str, str]]:
    names = {"tier": "sandbox tier", "seeds": "seeds", "machine": "machine", "versions": "versions"}
    return [(name, as_text(run.info[key])) for key, name in names.items() if run.info.get(key) is not None]


def stage_log(run: Run) -> list[Record]:
    log = []
    for entry in items(run.info, "stage_log"):
        if isinstance(entry, dict):
            spent = number(entry, "seconds")
            took = duration(spent) if spent is not None else "under way"
            log.append({"stage": as_text(entry.get("stage")), "took": took, "note": entry.get("note") or ""})
    return log


def as_text(value: Any) -> str:
    """A flat mapping as `a 1, b 2`; a nested one, as a configuration is, as indented JSON."""
    if isinstance(value, str):
        return value
    if isinstance(value, dict) and not any(isinstance(one, dict | list) for one in value.values()):
        return ", ".join(f"{name} {one}" for name, one in value.items())
    return json.dumps(value, indent=2, ensure_ascii=False)


def encoded(page: str) -> bytes:
    """UTF-8; what no text may hold, as a lone surrogate of a hostile string, becomes a question mark."""
    return page.encode("utf-8", errors="replace")


def draw_page(page: Path, picture: Path, height: int | None = None) -> None:
    """Draw the page without a window, 1200 pixels wide, cut at `height` or where its content ends."""
    browser = next(filter(None, map(shutil.which, BROWSERS)), None)
    if browser is None:
        raise OSError("--png needs Chromium, which is not installed (on Debian: apt-get install chromium)")
    with tempfile.TemporaryDirectory(prefix="worldsmith-picture-") as folder:
        drawn = Path(folder) / "page.png"
        command = [browser, "--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking"]
        command += ["--disable-component-update", "--disable-sync", "--no-first-run", "--hide-scrollbars"]
        command += [f"--user-data-dir={folder}/profile", f"--window-size={PICTURE_WIDTH},{TALLEST_PICTURE}"]
        command += [f"--screenshot={drawn}", page.resolve().as_uri()]
        result = subprocess.run(command, capture_output=True, text=True, timeout=120)
        if not drawn.exists():
            last = result.stderr.strip().splitlines()[-1:]
            raise OSError(f"{browser} drew no picture, exit code {result.returncode}: {''.join(last)}")
        crop_picture(drawn, picture, height)


def crop_picture(drawn: Path, picture: Path, height: int | None) -> None:
    """Leave out the empty page below the content."""
    # Imported here: `worldsmith report` alone needs neither.
    import numpy as np
    from PIL import Image

    image = Image.open(drawn).convert("RGB")
    rows = np.asarray(image)
    # The last row's colour is the page's own; 24 pixels of it stay below the content.
    used = np.flatnonzero((rows != rows[-1, 0]).any(axis=(1, 2)))
    bottom = min(image.height, int(used[-1]) + 24) if used.size else image.height
    image.crop((0, 0, image.width, min(bottom, height or bottom))).save(picture, optimize=True)
