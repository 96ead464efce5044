"""Which tier boxes have, chosen once, aloud, and never lowered afterwards."""

import sys
from collections.abc import Callable
from dataclasses import dataclass

from envs.sandbox import docker_engine, namespaces
from envs.sandbox.contract import Limits, Sandbox, SandboxUnavailableError
from envs.sandbox.images import BASE_IMAGE
from envs.sandbox.trusted_process import trusted_process_box

TIERS = ("auto", "docker", "namespaces", "process")


@dataclass(frozen=True, kw_only=True, slots=True)
class ChosenTier:
    """A tier that works on this machine. `make` gives an unstarted box; what fails later is not replaced."""

    tier: str
    why: str
    make: Callable[[], Sandbox]


def say_on_stderr(line: str) -> None:
    sys.stderr.write(line + "\n")


def choose_sandbox(
    tier: str = "auto",
    limits: Limits | None = None,
    *,
    image: str = BASE_IMAGE,
    runtime: str | None = None,
    allow_unsafe: bool = False,
    log: Callable[[str], None] = say_on_stderr,
) -> ChosenTier:
    """Choose a tier, say which and why, and give what makes its boxes.

    Args:
        tier: `auto` takes Docker where an engine answers and has the image, else namespaces, never less.
            One that is named is taken or refused.
        allow_unsafe: Needed for `process`, which isolates nothing.

    Raises:
        SandboxUnavailableError: the tier, or with `auto` each one, does not work here; says the remedy.
        ValueError: there is no such tier.
    """
    limits = limits or Limits()
    if tier not in TIERS:
        raise ValueError(f"unknown tier {tier!r}: expected one of {', '.join(TIERS)}")
    if tier == "process":
        trusted_process_box(limits, allow_unsafe=allow_unsafe)  # refuses at once, not at the first box
        chosen = ChosenTier(
            tier="process",
            why="asked for; it isolates NOTHING",
            make=lambda: trusted_process_box(limits, allow_unsafe=allow_unsafe),
        )
    else:
        chosen = _choose_isolating(tier, limits, image, runtime)
    log(f"boxes: tier {chosen.tier} ({chosen.why})")
    return chosen


def _choose_isolating(tier: str, limits: Limits, image: str, runtime: str | None) -> ChosenTier:
    faults = {}
    why = "asked for"
    if tier in ("auto", "docker"):
        fault = docker_engine.why_unavailable(image)
        if fault is None:
            return ChosenTier(
                tier="docker",
                why="asked for" if tier == "docker" else "an engine answers and has the image",
                make=lambda: docker_engine.docker_box(limits, image=image, runtime=runtime),
            )
        faults["docker"] = fault
        why = f"weaker than docker, which is not usable: {fault}"
    if tier in ("auto", "namespaces"):
        fault = namespaces.why_unavailable()
        if fault is None:
            return ChosenTier(
                tier="namespaces",
                why=f"{namespaces.describe()}; {why}",
                make=lambda: namespaces.namespaces_box(limits),
            )
        faults["namespaces"] = fault
    raise SandboxUnavailableError("; ".join(f"tier {name}: {fault}" for name, fault in faults.items()))
