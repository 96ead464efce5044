"""A made-up run on disk, as a finished demo leaves one; its numbers come from formulas, not from a policy."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

LEVELS = {"trip/1": (0.61, 0.86), "trip/2": (0.38, 0.71), "trip/3": (0.17, 0.42), "retail/1": (0.55, 0.88)}


def rate(share: float, episodes: int) -> dict[str, Any]:
    half = 1.96 * math.sqrt(share * (1 - share) / episodes)
    return {"pass_rate": share, "interval": [share - half, min(1.0, share + half)], "episodes": episodes}


def evaluation(when: str, which: int, share: float) -> dict[str, Any]:
    levels = {name: rate(pair[which], 80) | {"unseen": name == "trip/3"} for name, pair in LEVELS.items()}
    domains = {"trip": rate((0.39, 0.66)[which], 240), "retail": rate((0.55, 0.88)[which], 80)}
    head = {"kind": "eval", "when": when, "policy": "local", "greedy_pass_rate": share + 0.06}
    return head | rate(share, 320) | {"by_level": levels, "by_domain": domains}


def metrics() -> list[dict[str, Any]]:
    lines: list[dict[str, Any]] = [
        {
            "kind": "cold_start",
            "step": step,
            "loss": 5.5 * math.exp(-step / 60) + 0.22 + 0.03 * math.sin(step),
        }
        for step in range(600)
    ]
    lines += [{"kind": "eval", "when": "before", "policy": name} | rate(share, 320) for name, share in
              (("null", 0.0), ("random", 0.03125), ("oracle", 1.0))]  # fmt: skip
    lines.append(evaluation("before", 0, 0.43))
    for step in range(1, 161):
        share = 0.43 + 0.3 * (1 - math.exp(-step / 60)) + 0.07 * math.sin(step * 1.7)
        lines.append(
            {
                "kind": "rl",
                "step": step,
                "pass_rate": share,
                "signal_share": 0.7 - step / 500,
                "kl": step / 4000,
            }
            | {"entropy": 0.5 - step / 900, "ratio_mean": 1 + 0.01 * math.sin(step), "clip_share": 0.02}
            | {
                "masked_share": 0.004,
                "grad_norm": 0.6 + 0.1 * math.cos(step),
                "response_tokens_mean": 150 - step / 8,
            }
            | {"seconds_generation": 1.4, "seconds_environment": 0.3, "seconds_training": 1.1}
            | {"causes": {"answered": 118, "turns": 6, "format": 4}}
        )
    lines.append({**evaluation("step-80", 0, 0.62), "by_level": {}, "by_domain": {}})
    lines.append(evaluation("after", 1, 0.71))
    lines.append({"kind": "compute", "cold_start_flops": 3.1e15, "rl_flops": 1.2e15, "share": 0.39})
    return lines


def trajectory(when: str, reward: float, task_id: str, words: str) -> dict[str, Any]:
    call = {"name": "list_hotels", "arguments": {"city": "Varna", "max_price": 140}}
    messages = [
        {"role": "system", "content": "You plan trips. Use the tools, then answer with JSON rows."},
        {"role": "user", "content": "Two nights in Varna, at most 300 a night; with a hotel over 120, lunch"
         " for 20 at most."},
        {"role": "assistant", "content": "", "tool_calls": [call]},
        {"role": "tool", "content": "Sea Star, 118, rating 4.4\nOld Pier, 131, rating 4.6"},
        {"role": "assistant", "content": words},
    ]  # fmt: skip
    head = {"task_id": task_id, "family": "general", "domain": "trip", "level": 2, "sample": 0}
    verdict = {"goal": reward == 1.0, "frame": True, "policy": True, "answer": reward == 1.0}
    return head | {
        "reward": reward,
        "cause": "answered",
        "when": when,
        "messages": messages,
        "verdict": verdict,
    }


RUN_INFO = {
    "version": 1,
    "command": "worldsmith demo",
    "started": "2026-01-05T10:00:00+00:00",
    "finished": "2026-01-05T10:13:20+00:00",
    "stage": "done",
    "config": {"cold_start": {"steps": 600, "batch": 32}, "rl": {"steps": 160, "group": 8}},
    "versions": {"torch": "2.13.0", "trl": "1.16.0", "worldsmith": "0.1.0"},
    "machine": {"cores": 2, "memory_gib": 24, "gpu": "none"},
    "tier": "process",
    "seeds": {"run": 0, "tasks": 1},
    "counts": {"train_tasks": 3000, "heldout_tasks": 320, "demonstrations": 6000},
    "stage_log": [
        {"stage": "synthesis", "started": 0, "seconds": 71.0, "note": "3,320 certified of 3,914"},
        {"stage": "cold_start", "started": 71, "seconds": 212.0, "note": ""},
        {"stage": "rl", "started": 290, "seconds": 461.0, "note": "160 steps"},
        {"stage": "evaluation", "started": 751, "seconds": 49.0, "note": None},
    ],
    "notes": [
        "The demonstrations are of mixed quality: 55 % are the gold, the others come from faulty agents."
    ],
}


@pytest.fixture
def write_run(tmp_path: Path) -> Callable[..., Path]:
    """Writes a finished run, some of its fields in run.json replaced, and gives its directory."""

    def write(lines: list[dict[str, Any]] | None = None, **info: Any) -> Path:
        run = tmp_path / "run"
        (run / "trajectories").mkdir(parents=True, exist_ok=True)
        (run / "run.json").write_text(json.dumps(RUN_INFO | info))
        text = "".join(json.dumps(line) + "\n" for line in (metrics() if lines is None else lines))
        (run / "metrics.jsonl").write_text(text)
        before = [trajectory("before", 0.0, f"trip-2-{i}", '[{"hotel": "Old Pier"}]') for i in range(3)]
        after = [
            trajectory("after", float(i != 2), f"trip-2-{i}", '[{"hotel": "Sea Star"}]') for i in range(3)
        ]
        for name, records in (("before", before), ("after", after)):
            rows = "".join(json.dumps(record) + "\n" for record in records)
            (run / "trajectories" / f"{name}.jsonl").write_text(rows)
        return run

    return write
