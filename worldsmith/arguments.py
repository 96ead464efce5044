"""The argument parser of every command: a mistake is one line that names the nearest option, exit code 2."""

import argparse
import difflib
from typing import NoReturn


class CommandParser(argparse.ArgumentParser):
    """`CommandParser("synth", __doc__)`: the module's docstring is the command's help."""

    def __init__(self, command: str, doc: str | None) -> None:
        super().__init__(
            prog=f"worldsmith {command}",
            description=doc,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message}{self._suggestion(message)}; {self.prog} --help shows all\n")

    def _suggestion(self, message: str) -> str:
        unknown = [word.split("=")[0] for word in message.split() if word.startswith("--")]
        if not message.startswith("unrecognized arguments") or not unknown:
            return ""
        return did_you_mean(unknown[0], list(self._option_string_actions))


def did_you_mean(given: str, known: list[str]) -> str:
    """`, did you mean NAME?` for the nearest of the known names, or nothing when none is near."""
    nearest = difflib.get_close_matches(given, known, n=1, cutoff=0.5)
    return f", did you mean {nearest[0]}?" if nearest else ""
