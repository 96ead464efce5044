"""A whole run in miniature, which tests start, stop and start again."""

from typing import Any

from rl.config import TrainConfig
from rl.run import Data
from rl.trajectory import PlayableTask
from rl.transcript import Demonstration
from synthesis.demonstrations import demonstrate_once
from synthesis.general import DOMAINS, make_candidate


def playable(seeds: range, level: int, domain: str = "retail") -> list[PlayableTask]:
    found: list[PlayableTask] = []
    for seed in seeds:
        candidate = make_candidate(DOMAINS[domain], level, seed)
        assert candidate is not None
        found.append(PlayableTask(task=candidate.task, image=candidate.image))
    return found


def demonstrations(slip_rate: float, domain: str = "retail") -> list[Demonstration]:
    rows: list[Demonstration] = []
    for seed in range(1000, 1060):
        draft = DOMAINS[domain].draft(1, seed)
        made = demonstrate_once(DOMAINS[domain], 1, seed, slip_rate=slip_rate, toolset=domain)
        assert draft is not None
        assert made is not None
        rows.append(Demonstration(messages=made.messages, tools=draft.tools, reward=made.reward))
    return rows


def make_data() -> Data:
    return Data(
        tasks=playable(range(8), 1),
        heldout=[*playable(range(100, 104), 1), *playable(range(200, 202), 4)],
        clean=demonstrations(0.0),
        mixed=demonstrations(0.5),
        unseen_levels=frozenset({("retail", 4)}),
    )


def make_config(
    *, rl: dict[str, Any] | None = None, rollout: dict[str, Any] | None = None, clean_steps: int = 4
) -> TrainConfig:
    fields: dict[str, Any] = {
        "corpus": "unused",
        "heldout": "unused",
        "model": {"sizes": {"hidden_size": 32, "num_hidden_layers": 2, "index_topk": 16}},
        "cold_start": {
            "clean_steps": clean_steps, "warm_up_steps": 2, "sparse_steps": 2,
            "tokens_per_batch": 600, "checkpoint_every": 3,
        },
        "rl": {
            "steps": 3, "groups_per_step": 2, "groups_trained": 2, "group_size": 4, "rows_per_micro_batch": 4,
            "learning_rate": 1e-3, "levels": [1], "checkpoint_every": 1,
            "loss": {"kl_weight": 0.01, "off_policy_delta": 0.5},
        } | (rl or {}),
        "rollout": {"workers": 1, "slots": 16, "max_length": 128, "max_new_tokens": 8} | (rollout or {}),
        "eval": {"samples": 1},
    }  # fmt: skip
    return TrainConfig.model_validate(fields)
