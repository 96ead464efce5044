"""DeepSeekMoE: a sigmoid router with group limits and bias-steered balance, routed experts, a shared expert.

The correction bias steers which experts are chosen and nothing else: gate weights come from the unbiased
scores, and no gradient reaches the bias. Router arithmetic is float32 throughout.
"""

import re
from collections.abc import Mapping

import torch
from torch import Tensor, distributed, nn
from torch.nn import functional

from policies.model.config import ModelConfig
from policies.model.swiglu import grouped_swiglu

_ON_DISK = re.compile(r"(?P<stem>.*\.mlp\.experts)\.(?P<expert>\d+)\.(?P<part>gate|up|down)_proj\.weight")

LIVE = -1
"""In forced routes: let the router choose."""


class MLP(nn.Module):
    """down(silu(gate(x)) * up(x))."""

    def __init__(self, hidden_size: int, intermediate_size: int) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(hidden_size, intermediate_size, bias=False)
        self.up_proj = nn.Linear(hidden_size, intermediate_size, bias=False)
        self.down_proj = nn.Linear(intermediate_size, hidden_size, bias=False)

    def forward(self, hidden_ND: Tensor) -> Tensor:
        # The modules themselves, not their weights, so that an adapter put around them takes part.
        return self.down_proj(functional.silu(self.gate_proj(hidden_ND)) * self.up_proj(hidden_ND))


class Router(nn.Module):
    """Chooses K of E experts for a token and weighs them."""

    e_score_correction_bias: Tensor
    load: Tensor

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.weight = nn.Parameter(torch.empty(config.n_routed_experts, config.hidden_size))
        self.register_buffer("e_score_correction_bias", torch.zeros(config.n_routed_experts))
        # Tokens that chose each expert since the last balance step; not part of a checkpoint.
        self.register_buffer("load", torch.zeros(config.n_routed_experts), persistent=False)

    def forward(self, hidden_ND: Tensor, forced_NK: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Gate weights [N, K] float32 and expert ids [N, K] int64.

        Args:
            forced_NK: ids to use instead of the router's own choice; LIVE falls back to it.
        """
        scores_NE = functional.linear(hidden_ND.float(), self.weight.float()).sigmoid()
        experts_NK = self.choose_or_take(scores_NE.detach(), forced_NK)
        return self.weigh(scores_NE, experts_NK), experts_NK

    @torch.no_grad()
    def count(self, experts_NK: Tensor) -> None:
        """Add to `load` the tokens that chose each expert."""
        self.load += torch.bincount(experts_NK.flatten(), minlength=len(self.load))

    def choose_or_take(self, scores_NE: Tensor, forced_NK: Tensor | None) -> Tensor:
        """The forced ids, and the router's choice where they are LIVE: [N, K] int64."""
        experts_NK = self.choose(scores_NE)
        if forced_NK is None:
            return experts_NK
        return torch.where(forced_NK < 0, experts_NK, forced_NK.to(experts_NK.dtype))

    def choose(self, scores_NE: Tensor) -> Tensor:
        """The ids of the best K by biased score, within the best groups: [N, K] int64."""
        config = self.config
        choice_NE = scores_NE + self.e_score_correction_bias
        if config.topk_group < config.n_group:
            groups_NGE = choice_NE.view(-1, config.n_group, config.n_routed_experts // config.n_group)
            group_scores_NG = groups_NGE.topk(2, dim=-1).values.sum(-1)
            kept = group_scores_NG.topk(config.topk_group, dim=-1).indices
            dropped_NG = torch.ones_like(group_scores_NG, dtype=torch.bool).scatter_(1, kept, False)
            choice_NE = groups_NGE.masked_fill(dropped_NG[..., None], float("-inf")).flatten(1)
        return choice_NE.topk(config.num_experts_per_tok, dim=-1).indices

    def weigh(self, scores_NE: Tensor, experts_NK: Tensor) -> Tensor:
        gates_NK = scores_NE.gather(1, experts_NK)
        if self.config.norm_topk_prob:
            gates_NK = gates_NK / (gates_NK.sum(-1, keepdim=True) + 1e-20)
        return gates_NK * self.config.routed_scaling_factor


class RoutedExperts(nn.Module):
    """All experts' weights, stacked as transformers keeps them in memory."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        num_experts, width = config.n_routed_experts, config.moe_intermediate_size
        self.gate_up_proj = nn.Parameter(torch.empty(num_experts, 2 * width, config.hidden_size))
        self.down_proj = nn.Parameter(torch.empty(num_experts, config.hidden_size, width))

    def forward(self, hidden_ND: Tensor, experts_NK: Tensor, gates_NK: Tensor) -> Tensor:
        return grouped_swiglu(hidden_ND, experts_NK, gates_NK, self.gate_up_proj, self.down_proj)


class MoE(nn.Module):
    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.experts = RoutedExperts(config)
        self.gate = Router(config)
        self.shared_experts = MLP(config.hidden_size, config.moe_intermediate_size * config.n_shared_experts)

    def forward(self, hidden_ND: Tensor, forced_NK: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """The layer's output [N, D] and the experts used [N, K]."""
        gates_NK, experts_NK = self.gate(hidden_ND, forced_NK)
        routed_ND = self.experts(hidden_ND, experts_NK, gates_NK)
        return routed_ND + self.shared_experts(hidden_ND), experts_NK


def routers(model: nn.Module) -> list[Router]:
    """The model's routers, first layer first."""
    return [module for module in model.modules() if isinstance(module, Router)]


def expert_loads(model: nn.Module) -> Tensor:
    """[layers, E]: the share of choices that each expert took since the last `update_correction_bias`.

    Where several learners share the work, of the choices of all; they must ask together.
    """
    loads_LE = torch.stack([router.load for router in routers(model)])
    if distributed.is_available() and distributed.is_initialized():
        distributed.all_reduce(loads_LE)
    return loads_LE / loads_LE.sum(-1, keepdim=True).clamp(min=1)


@torch.no_grad()
def update_correction_bias(model: nn.Module, step_size: float) -> Tensor:
    """Lower the bias of experts above the mean load, raise it below; returns the shares it acted on.

    Call after an optimizer step, each learner at once. The loads counted in training forwards since the last
    call are spent.
    """
    loads_LE = expert_loads(model)
    for router, load in zip(routers(model), loads_LE, strict=True):
        if load.any():
            router.e_score_correction_bias += step_size * torch.sign(load.mean() - load)
        router.load.zero_()
    return loads_LE


def fuse_experts(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Per-expert tensors as on disk to the stacked ones in memory; stacked ones pass through.

    Raises ValueError when an expert lacks a matrix that others have.
    """
    fused: dict[str, Tensor] = {}
    experts: dict[str, dict[tuple[int, str], Tensor]] = {}
    for name, value in tensors.items():
        match = _ON_DISK.fullmatch(name)
        if match is None:
            fused[name] = value
        else:
            experts.setdefault(match["stem"], {})[int(match["expert"]), match["part"]] = value
    for stem, parts in experts.items():
        count = max(expert for expert, _ in parts) + 1
        kinds = {kind for _, kind in parts}
        missing = [
            f"{stem}.{e}.{kind}_proj.weight" for e in range(count) for kind in kinds if (e, kind) not in parts
        ]
        if missing or len(kinds & {"gate", "up"}) == 1:
            raise ValueError(f"experts are incomplete: {', '.join(missing) or stem + ' lacks gate or up'}")
        if "gate" in kinds:
            gate_up = [torch.cat((parts[e, "gate"], parts[e, "up"])) for e in range(count)]
            fused[f"{stem}.gate_up_proj"] = torch.stack(gate_up)
        if "down" in kinds:
            fused[f"{stem}.down_proj"] = torch.stack([parts[e, "down"] for e in range(count)])
    return fused


def split_experts(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The stacked experts in memory to per-expert tensors, as transformers writes them."""
    split: dict[str, Tensor] = {}
    for name, value in state.items():
        stem, _, part = name.rpartition(".")
        if not stem.endswith(".mlp.experts"):
            split[name] = value.contiguous()
            continue
        for expert, matrix in enumerate(value):
            names = ("gate", "up") if part == "gate_up_proj" else ("down",)
            for half, piece in zip(names, matrix.chunk(len(names)), strict=True):
                split[f"{stem}.{expert}.{half}_proj.weight"] = piece.clone()
    return split
