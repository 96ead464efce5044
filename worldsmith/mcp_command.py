"""Serves one task's tools over the Model Context Protocol, on standard input and output.

Example: worldsmith mcp corpora/train --task trip-2-9f2c1a0b3d4e --journal journal.json

For any MCP client, which starts this command itself. The client's policy reads the prompt with --show-prompt;
what it calls goes through the task's own tool server, and at the end the journal and the last state are
written where asked.
"""

import json
from dataclasses import asdict
from pathlib import Path

from envs.mcp_server import serve_task
from synthesis.corpus import CorpusTask, read_corpus
from worldsmith.arguments import CommandParser, did_you_mean


def main(argv: list[str]) -> int:
    parser = CommandParser("mcp", __doc__)
    parser.add_argument("corpus", type=Path, metavar="DIR", help="a corpus, as `worldsmith synth` wrote it")
    parser.add_argument("--task", required=True, metavar="ID", help="the id of one of its tasks")
    parser.add_argument("--journal", type=Path, metavar="FILE", help="where the journal goes at the end")
    parser.add_argument("--snapshot", type=Path, metavar="FILE", help="where the last state goes at the end")
    parser.add_argument(
        "--show-prompt", action="store_true", help="print the task's messages as JSON and serve nothing"
    )
    args = parser.parse_args(argv)
    entry = _find(args.corpus, args.task)
    if args.show_prompt:
        print(json.dumps([asdict(message) for message in entry.task.prompt]))
        return 0
    serve_task(entry.task, entry.image, journal=args.journal, snapshot=args.snapshot)
    return 0


def _find(directory: Path, task_id: str) -> CorpusTask:
    entries = {entry.task.task_id: entry for entry in read_corpus(directory)}
    if task_id not in entries:
        hint = did_you_mean(task_id, list(entries))
        raise ValueError(f"--task: {directory} holds no task {task_id!r}{hint}")
    return entries[task_id]
