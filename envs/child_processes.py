"""What the processes that we start must find: our own packages, from where this process has them."""

import os
from pathlib import Path

CHECKOUT = str(Path(__file__).resolve().parents[1])


def share_packages() -> None:
    """Puts this checkout or installation on the PYTHONPATH that processes started from now on inherit."""
    known = [path for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path]
    if CHECKOUT not in known:
        os.environ["PYTHONPATH"] = os.pathsep.join([CHECKOUT, *known])
