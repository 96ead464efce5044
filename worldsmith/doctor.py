"""Find out what this machine can do: box tiers by attack, Docker, vLLM, GPU, disk; say what to install.

A guarantee that could not be shown counts as absent. Exits with 0 when an isolating tier holds everything, 1
when none does or a running one lets an attack through, 2 on bad usage, 3 when reaping fails.
"""

import importlib.metadata
import json
import os
import platform
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from envs.sandbox import cgroups, docker_engine, leases, namespaces
from envs.sandbox.contract import Capabilities, Limits, Sandbox, SandboxError
from envs.sandbox.probes import ATTACKS, probe
from envs.sandbox.trusted_process import trusted_process_box
from policies.vllm_packages import HOW_TO_INSTALL, has_vllm, vllm_version
from worldsmith.arguments import CommandParser

COMMAND = "worldsmith doctor"
MIN_FREE_GB = 10
ISOLATING = ("docker", "namespaces")


@dataclass(frozen=True, kw_only=True, slots=True)
class Tier:
    """One tier on this machine: what its probes showed, or why there was nothing to probe."""

    name: str
    capabilities: Capabilities | None
    fault: str = ""

    @property
    def is_sound(self) -> bool:
        return self.capabilities is not None and not self.capabilities.missing


def main(argv: list[str]) -> int:
    parser = CommandParser("doctor", __doc__)
    parser.add_argument("--json", action="store_true", help="one JSON object on the last line of stdout")
    parser.add_argument(
        "--reap", action="store_true", help="only remove boxes whose run is dead or whose lease is over"
    )
    try:
        options = parser.parse_args(argv)
    except SystemExit as error:
        return int(error.code or 0)
    if options.reap:
        return _reap(as_json=options.json)
    tiers = probe_tiers(_say)
    machine = describe_machine()
    advice = advise(tiers, machine)
    if options.json:
        print(json.dumps(_report(tiers, machine, advice)))
    else:
        print(_table(tiers, machine, advice))
    return 0 if _verdict(tiers) else 1


def probe_tiers(say: Callable[[str], None]) -> list[Tier]:
    """Every tier that starts, attacked; the strongest first."""
    launcher = namespaces.default_launcher()
    tiers: list[tuple[str, str, str | None, Callable[[Limits], Sandbox]]] = [
        (
            "docker",
            docker_engine.engine_version() or "",
            docker_engine.why_unavailable(),
            docker_engine.docker_box,
        ),
        (
            "namespaces",
            f"{launcher}, Linux {platform.release()}",
            namespaces.why_unavailable(),
            namespaces.namespaces_box,
        ),
        ("process", "none", None, lambda limits: trusted_process_box(limits, allow_unsafe=True)),
    ]
    found = []
    for name, engine, fault, make_box in tiers:
        if fault is not None:
            found.append(Tier(name=name, capabilities=None, fault=fault))
            continue
        say(f"attacking a box of tier {name}")
        try:
            found.append(Tier(name=name, capabilities=probe(make_box, tier=name, engine=engine)))
        except SandboxError as error:
            found.append(Tier(name=name, capabilities=None, fault=str(error)))
    return found


def describe_machine() -> dict[str, Any]:
    """What else the commands need to know; every fact is looked up, nothing heavy is imported."""
    disk = shutil.disk_usage(Path.cwd())
    return {
        "python": platform.python_version(),
        "torch": _version("torch"),
        "vllm": vllm_version(),
        "vllm_importable": has_vllm(),
        "docker_engine": docker_engine.engine_version(),
        "gpus": _gpus(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_gb": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9, 1),
        "disk_free_gb": round(disk.free / 1e9, 1),
    }


def advise(tiers: list[Tier], machine: dict[str, Any]) -> list[str]:
    """What to install or mend, one line each."""
    advice = [f"tier {tier.name}: {tier.fault}" for tier in tiers if tier.fault]
    for tier in tiers:
        if tier.name in ISOLATING and tier.capabilities is not None and tier.capabilities.missing:
            missing = ", ".join(tier.capabilities.missing)
            advice.append(
                f"tier {tier.name} does not hold: {missing}; see docs/sandboxes.md before you rely on it"
            )
    if machine["torch"] is None:
        advice.append("torch is not installed: run make environment")
    if not machine["vllm_importable"]:
        advice.append(f"{HOW_TO_INSTALL}; only rollout.engine: vllm and the policies vllm:DIR need it")
    if machine["disk_free_gb"] < MIN_FREE_GB:
        advice.append(
            f"only {machine['disk_free_gb']} GB free here: free {MIN_FREE_GB} GB before a training run"
        )
    return advice


def _verdict(tiers: list[Tier]) -> bool:
    running = [tier for tier in tiers if tier.name in ISOLATING and tier.capabilities is not None]
    return bool(running) and all(tier.is_sound for tier in running)


def _report(tiers: list[Tier], machine: dict[str, Any], advice: list[str]) -> dict[str, Any]:
    report: dict[str, Any] = {"tiers": {}, **machine, "advice": advice, "ok": _verdict(tiers)}
    for tier in tiers:
        facts = tier.capabilities
        report["tiers"][tier.name] = {
            "available": facts is not None,
            "fault": tier.fault or None,
            "engine": facts.engine if facts else None,
            "digest": facts.digest if facts else None,
            "held": dict(facts.held) if facts else {},
            "evidence": dict(facts.evidence) if facts else {},
        }
    return report


def _table(tiers: list[Tier], machine: dict[str, Any], advice: list[str]) -> str:
    width = max(len(name) for name in ATTACKS)
    lines = ["", f"{'guarantee':{width}}  " + "  ".join(f"{tier.name:10}" for tier in tiers)]
    for name in ATTACKS:
        cells = [
            "-" if tier.capabilities is None else "held" if tier.capabilities.holds(name) else "NO"
            for tier in tiers
        ]
        lines.append(f"{name:{width}}  " + "  ".join(f"{cell:10}" for cell in cells))
    digests = [tier.capabilities.digest[:10] if tier.capabilities else "-" for tier in tiers]
    lines += [f"{'digest':{width}}  " + "  ".join(f"{digest:10}" for digest in digests), ""]
    lines += [
        f"{name:{width}}  {value if value not in (None, []) else 'none'}" for name, value in machine.items()
    ]
    lines += ["", *(advice or ["nothing to install"])]
    return "\n".join(lines)


def _reap(*, as_json: bool) -> int:
    removed = leases.reap_files() + cgroups.remove_left()
    try:
        removed += docker_engine.reap()
    except SandboxError as error:
        if shutil.which("dockerd"):
            print(f"{COMMAND} --reap: {error}", file=sys.stderr)
            return 3
        _say("no Docker engine is installed, so there are no containers to remove")
    if as_json:
        print(json.dumps({"removed": removed}))
    else:
        print(f"removed {len(removed)} left boxes" + "".join(f"\n  {name}" for name in removed))
    return 0


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _gpus() -> list[str]:
    if shutil.which("nvidia-smi") is None:
        return []
    try:
        argv = ["nvidia-smi", "--query-gpu=name,memory.total", "--format=csv,noheader"]
        done = subprocess.run(argv, capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return []
    return done.stdout.strip().splitlines() if done.returncode == 0 else []


def _say(line: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {line}", file=sys.stderr)
