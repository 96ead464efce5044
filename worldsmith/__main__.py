"""`python -m worldsmith`, and what the command `worldsmith` starts."""

import sys

from worldsmith.cli import main


def run() -> None:
    sys.exit(main(sys.argv[1:]))


if __name__ == "__main__":
    run()
