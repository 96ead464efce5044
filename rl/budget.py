"""Compute spent, in FLOPs, counted the same way for cold start and reinforcement learning."""

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


def training_flops(model: WorldsmithForCausalLM, num_tokens: int) -> int:
    """Forward and backward: 6 a parameter and token. Attention's own products are left out, on both sides
    alike.
    """
    return 6 * active_parameters(model) * num_tokens


def generation_flops(model: WorldsmithForCausalLM, num_tokens: int) -> int:
    """One forward: 2 a parameter and token."""
    return 2 * active_parameters(model) * num_tokens
