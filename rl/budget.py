"""Compute spent, in FLOPs, counted the same way for every stage, and RL's share of it.

Six operations a parameter and token for forward and backward, two for a forward. Attention's own products are
left out everywhere alike, and so are evaluations, which train nothing.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from policies.model.config import ModelConfig
from policies.model.decoder import WorldsmithForCausalLM


def active_parameters(model: WorldsmithForCausalLM) -> int:
    """Parameters that one token passes through: all but the experts that it is not routed to and the
    embedding.
    """
    config: ModelConfig = model.config
    total = sum(parameter.numel() for parameter in model.parameters())
    routed = sum(p.numel() for name, p in model.named_parameters() if ".experts." in name)
    used = routed * config.num_experts_per_tok // config.n_routed_experts
    return total - routed + used - model.model.embed_tokens.weight.numel()


def training_flops(active: int, num_tokens: int) -> int:
    """Forward and backward of tokens that pass through `active` parameters each."""
    return 6 * active * num_tokens


def generation_flops(active: int, num_tokens: int) -> int:
    """One forward."""
    return 2 * active * num_tokens


@dataclass(frozen=True, kw_only=True, slots=True)
class Compute:
    """FLOPs by what they were spent on; `+` adds up stages.

    pretraining: the cold start, which is all the pre-training that these policies have.
    distillation: specialists' episodes for the one policy to learn from, and its learning from them.
    rl: episodes and updates of reinforcement learning, specialists' and mixed.
    """

    pretraining: int = 0
    distillation: int = 0
    rl: int = 0

    def __add__(self, other: "Compute") -> "Compute":
        return Compute(
            pretraining=self.pretraining + other.pretraining,
            distillation=self.distillation + other.distillation,
            rl=self.rl + other.rl,
        )

    @property
    def rl_share(self) -> float | None:
        """RL's compute over pre-training's; None without any of the latter."""
        return self.rl / self.pretraining if self.pretraining else None

    def as_fields(self) -> dict[str, Any]:
        post_training = self.rl + self.distillation
        return {
            "pretraining_flops": self.pretraining,
            "distillation_flops": self.distillation,
            "rl_flops": self.rl,
            "rl_share": self.rl_share,
            "post_training_share": post_training / self.pretraining if self.pretraining else None,
        }


def step_compute(active: int, *, played: int, trained: int, with_reference: bool) -> Compute:
    """One step of RL: tokens played are generated, tokens trained on pass forward and backward, and forward
    once more through the policy that a KL is measured to.
    """
    flops = generation_flops(active, played) + training_flops(active, trained)
    return Compute(rl=flops + (generation_flops(active, trained) if with_reference else 0))


def compute_of(
    metrics: Iterable[dict[str, Any]], active: int, *, from_start: bool, with_reference: bool
) -> Compute:
    """What a run's metrics say that it spent.

    from_start: it began with another run's policy, so that its supervised steps are no pre-training.
    """
    supervised = 0
    spent = Compute()
    for record in metrics:
        kind = record["kind"]
        if kind == "cold_start":
            supervised = max(supervised, record["tokens"])
        elif kind == "distill":
            spent += Compute(distillation=generation_flops(active, record["tokens"]))
        elif kind == "rl":
            played = record["tokens"]
            # Runs of older versions do not tell; then all that was played counts, the most it can be.
            trained = record.get("trained_tokens", played)
            spent += step_compute(active, played=played, trained=trained, with_reference=with_reference)
    flops = training_flops(active, supervised)
    return spent + (Compute(distillation=flops) if from_start else Compute(pretraining=flops))
