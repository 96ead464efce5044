"""Writes a page to read a run's trajectories: messages, calls, verdicts; filtered by what became of them.

`index.html#WORDS` opens it with only the trajectories that hold these words, as a task's id.
"""

import base64
import hashlib
from pathlib import Path

from markupsafe import Markup

from envs.files import write_whole
from worldsmith.arguments import CommandParser
from worldsmith.report import TEMPLATES, encoded, templates
from worldsmith.run_directory import read_run, read_trajectories
from worldsmith.transcripts import Transcript, transcript


def main(argv: list[str]) -> int:
    parser = CommandParser("view", __doc__)
    parser.add_argument("run", type=Path, metavar="RUN", help="the directory of a run")
    parser.add_argument("--out", type=Path, help="folder of the page (default: RUN/view)")
    parser.add_argument("--limit", type=int, default=500, help="the first LIMIT of every file (default: 500)")
    arguments = parser.parse_args(argv)
    if arguments.limit < 1:
        raise ValueError(f"--limit must be at least 1, got {arguments.limit}")
    print(write_view(arguments.run, arguments.out, limit=arguments.limit))
    return 0


def write_view(run_path: Path, out: Path | None = None, *, limit: int = 500) -> Path:
    """Write the page; returns where."""
    run = read_run(run_path)
    folder = run_path / "view" if out is None else out
    stories = [transcript(record) for record in read_trajectories(run.path, limit_per_file=limit)]
    script = (TEMPLATES / "view.js").read_text()
    # The page lets this script run and no other, whatever a trajectory holds.
    script_hash = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    page = (
        templates()
        .get_template("view.html")
        .render(
            css=Markup((TEMPLATES / "page.css").read_text()),
            script=Markup(script),
            script_hash=script_hash,
            title=str(run.info.get("command") or run.path.name),
            stories=stories,
            filters=filters(stories),
            limit=limit,
            cut=len(stories) >= limit,
        )
    )
    folder.mkdir(parents=True, exist_ok=True)
    write_whole(folder / "index.html", encoded(page))
    return folder / "index.html"


def filters(stories: list[Transcript]) -> list[tuple[str, list[str]]]:
    """What can be chosen, and from which values."""
    outcomes = {"solved" if story.solved else "not solved" for story in stories}
    values: dict[str, set[str]] = {"outcome": outcomes}
    for name in ("when", "domain", "level", "cause"):
        values[name] = {getattr(story, name) for story in stories}
    return [(name, sorted(found)) for name, found in values.items()]
