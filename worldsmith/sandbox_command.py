"""Run one command in a fresh box, as an episode would, and show what came back.

The command follows `--`. Its own exit code is shown, not returned: this command exits with 0 when a box
answered, 2 on bad usage, 3 when no box could be had or the box was lost.
"""

import argparse
import json
import sys
from contextlib import closing
from dataclasses import dataclass

from envs.sandbox.choose import TIERS, choose_sandbox
from envs.sandbox.contract import ExecResult, Limits, SandboxError, SandboxLostError, model_view
from worldsmith.arguments import CommandParser

COMMAND = "worldsmith sandbox"


@dataclass(frozen=True, kw_only=True, slots=True)
class Shown:
    """What is told about one command; `cause` is `ok`, `tool_failed`, `start_failed` or `sandbox_lost`."""

    exit_code: int | None
    stdout: str
    stderr: str
    tier: str
    cause: str

    def to_json(self) -> str:
        return json.dumps({name: getattr(self, name) for name in self.__slots__})


def main(argv: list[str]) -> int:
    parser = _parser()
    try:
        options = parser.parse_args(argv)
        command = options.argv[1:] if options.argv[:1] == ["--"] else options.argv
        if not command:
            parser.error(
                "no command; give one after --, for example: worldsmith sandbox -- python3 --version"
            )
        options.limits = _limits(parser, options.memory_mb)
        if not 0 < options.timeout <= 86_400:
            parser.error(f"--timeout must lie in (0, 86400] seconds, got {options.timeout}")
    except SystemExit as error:
        return int(error.code or 0)
    shown = _run(options, command)
    if options.json:
        print(shown.to_json(), flush=True)
    return 3 if shown.exit_code is None else 0


def _parser() -> CommandParser:
    parser = CommandParser("sandbox", __doc__)
    parser.add_argument(
        "--tier", choices=TIERS, default="auto", help="how strongly to isolate (default: auto)"
    )
    parser.add_argument("--timeout", type=float, default=30.0, metavar="S", help="seconds (default: 30)")
    parser.add_argument("--memory-mb", type=int, default=Limits().memory_mb, help="limit (default: 512)")
    parser.add_argument("--runtime", help="OCI runtime of the docker tier, such as runsc")
    parser.add_argument(
        "--allow-unsafe", action="store_true", help="allow tier process, which isolates nothing"
    )
    parser.add_argument("--json", action="store_true", help="one JSON object on the last line of stdout")
    parser.add_argument("argv", nargs=argparse.REMAINDER, metavar="-- ARGV", help="the command")
    return parser


def _limits(parser: CommandParser, memory_mb: int) -> Limits:
    try:
        return Limits(memory_mb=memory_mb)
    except ValueError as error:
        parser.error(f"--memory-mb: {error}")


def _run(options: argparse.Namespace, command: list[str]) -> Shown:
    tier = options.tier
    cause = "start_failed"
    try:
        chosen = choose_sandbox(
            tier,
            options.limits,
            runtime=options.runtime,
            allow_unsafe=options.allow_unsafe,
        )
        tier = chosen.tier
        with closing(chosen.make()) as box:
            box.start()
            result = box.exec(command, timeout_s=options.timeout)
    except SandboxError as error:
        if isinstance(error, SandboxLostError):
            cause = "sandbox_lost"
        print(f"{COMMAND}: {error}", file=sys.stderr)
        return Shown(exit_code=None, stdout="", stderr="", tier=tier, cause=cause)
    if not options.json:
        _show(result, tier)
    return Shown(
        exit_code=result.exit_code,
        stdout=model_view(result.stdout, cut_bytes=result.stdout_cut_bytes, limit_bytes=len(result.stdout)),
        stderr=model_view(result.stderr, cut_bytes=result.stderr_cut_bytes, limit_bytes=len(result.stderr)),
        tier=tier,
        cause="ok" if result.exit_code == 0 else "tool_failed",
    )


def _show(result: ExecResult, tier: str) -> None:
    """Output where it belongs, byte for byte; then one line about it on stderr."""
    for data, stream in ((result.stdout, sys.stdout), (result.stderr, sys.stderr)):
        stream.flush()
        stream.buffer.write(data)
        stream.buffer.flush()
    notes = [f"exit code {result.exit_code}", f"{result.duration_s * 1000:.1f} ms", f"tier {tier}"]
    notes += ["timed out"] * result.timed_out + ["killed for memory"] * result.oom_killed
    notes += ["killed for its output"] * result.flooded
    if result.truncated_bytes:
        notes.append(f"{result.truncated_bytes} bytes of output cut from the middle")
    print("; ".join(notes), file=sys.stderr)
