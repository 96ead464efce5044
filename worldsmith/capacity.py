"""What a model of this architecture costs: parameters, cache, work a token, price, training memory.

Parameters are counted on a module built on the meta device. Work is counted in multiply-adds of matrix
products; one is 2 FLOPs. The price follows from work and a machine's peak by shares of that peak
(`Efficiency`), which are fitted to DeepSeek's published curve (V3.2-Exp report, figure 3, H800 at 2 dollars
an hour). Where its curves bend and cross is not fitted: that follows from the counts.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch

from policies.model.config import ModelConfig
from policies.model.decoder import WorldsmithForCausalLM

_BF16, _FP8 = 2, 1
_FP8_BLOCK, _FP8_SCALE_BYTES = 128, 4
"""An index key is stored as FP8 with one float32 scale a block of so many values."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Parameters:
    """Counts. The first two are as DeepSeek states them: without indexers and prediction modules."""

    total: int
    active: int
    """What one token is multiplied with: the head, not the embedding, only the experts it is routed to."""
    indexer: int
    prediction: int
    """Of the multi-token-prediction modules, without the embedding and head that they share."""
    experts: int
    """Routed experts, in `total`."""

    @property
    def checkpoint(self) -> int:
        return self.total + self.indexer + self.prediction


def count_parameters(config: ModelConfig) -> Parameters:
    """Counted by name."""
    with torch.device("meta"):
        model = WorldsmithForCausalLM(config)
    ahead = tuple(
        f"model.layers.{config.num_hidden_layers + depth}."
        for depth in range(config.num_nextn_predict_layers)
    )
    total = indexer = prediction = experts = 0
    for name, parameter in model.named_parameters():  # tied weights come once
        if name.startswith(ahead):
            prediction += parameter.numel()
        elif ".indexer." in name:
            indexer += parameter.numel()
        else:
            total += parameter.numel()
            experts += parameter.numel() if ".mlp.experts." in name else 0
    used = experts * config.num_experts_per_tok // config.n_routed_experts
    embedding = 0 if config.tie_word_embeddings else config.vocab_size * config.hidden_size
    return Parameters(
        total=total,
        active=total - experts + used - embedding,
        indexer=indexer,
        prediction=prediction,
        experts=experts,
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class TokenWork:
    """Multiply-adds and cache traffic of one token at one position, all layers together."""

    matrices: int
    """Multiply-adds with weights."""
    attention: int
    indexer: int
    """Multiply-adds of attention proper, and of the indexer's scores."""
    read_bytes: int
    """Of the cache, for one token alone: bf16 latents, FP8 index keys. A batch reads weights once for all."""

    @property
    def flops(self) -> int:
        return 2 * (self.matrices + self.attention + self.indexer)


@dataclass(frozen=True, kw_only=True, slots=True)
class WorkModel:
    """The work of a token by its position; sparse or, with the same weights, dense and without an indexer."""

    config: ModelConfig
    parameters: Parameters

    def cache_bytes(self, *, sparse: bool) -> int:
        """Bytes a token leaves in the cache."""
        per_layer = self._latent_bytes() + (self._index_bytes() if sparse else 0)
        return self.config.num_hidden_layers * per_layer

    def prefill(self, position: int, *, sparse: bool) -> TokenWork:
        """Of a prompt's token. Dense attention runs on expanded heads; sparse on latents, or on masked
        expanded heads while those are cheaper, which they are in a short prompt.
        """
        config, seen = self.config, position + 1
        heads = config.num_attention_heads
        expanded = heads * (config.qk_nope_head_dim + config.qk_rope_head_dim + config.v_head_dim) * seen
        if not sparse:
            return self._work(expanded, 0, seen * self._latent_bytes())
        gathered = min(seen, config.index_topk) * self._absorbed()
        read = min(seen, config.index_topk) * self._latent_bytes() + seen * self._index_bytes()
        return self._work(min(expanded, gathered), seen * self._scored(), read)

    def decode(self, position: int, *, sparse: bool) -> TokenWork:
        """Of a generated token: attention over latents, all or the selected ones."""
        seen = position + 1
        if not sparse:
            return self._work(seen * self._absorbed(), 0, seen * self._latent_bytes())
        chosen = min(seen, self.config.index_topk)
        read = chosen * self._latent_bytes() + seen * self._index_bytes()
        return self._work(chosen * self._absorbed(), seen * self._scored(), read)

    def _absorbed(self) -> int:
        config = self.config
        return config.num_attention_heads * (2 * config.kv_lora_rank + config.qk_rope_head_dim)

    def _scored(self) -> int:
        return self.config.index_n_heads * self.config.index_head_dim

    def _latent_bytes(self) -> int:
        return _BF16 * (self.config.kv_lora_rank + self.config.qk_rope_head_dim)

    def _index_bytes(self) -> int:
        dim = self.config.index_head_dim
        return _FP8 * dim + _FP8_SCALE_BYTES * -(-dim // _FP8_BLOCK)

    def _work(self, attention: int, indexer: int, read_bytes: int) -> TokenWork:
        layers = self.config.num_hidden_layers
        matrices = self.parameters.active + (self.parameters.indexer if indexer else 0)
        return TokenWork(
            matrices=matrices,
            attention=layers * attention,
            indexer=layers * indexer,
            read_bytes=layers * read_bytes,
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class Efficiency:
    """Shares of a GPU's peak, and what sparse attention costs beside its products. Fitted, see the module."""

    matrices: float
    """Of the FP8 peak, for products with weights; all that a token costs beside attention is in it."""
    attention: float
    """Of the bf16 peak."""
    gathered: float
    """The same over selected latents."""
    indexer: float
    """Of the FP8 peak."""
    sparse_overhead: float
    """Times the matrices' price: quantising, rotating and choosing, at any position."""


PREFILL = Efficiency(matrices=0.388, attention=0.60, gathered=0.60, indexer=0.394, sparse_overhead=0.124)
DECODE = Efficiency(matrices=0.290, attention=0.60, gathered=0.395, indexer=0.352, sparse_overhead=0.309)


@dataclass(frozen=True, kw_only=True, slots=True)
class Machine:
    """A GPU and its price. The defaults are an H800's."""

    bf16_tflops: float = 989.0
    fp8_tflops: float = 1979.0
    memory_gb: float = 80.0
    """10^9 bytes."""
    dollars_per_hour: float = 2.0

    def __post_init__(self) -> None:
        for name in self.__slots__:
            if not 0 < getattr(self, name) < float("inf"):
                raise ValueError(f"{name} must be a positive number, got {getattr(self, name)}")


def dollars_per_million(work: TokenWork, machine: Machine, efficiency: Efficiency, *, sparse: bool) -> float:
    """The price of a million tokens that each take this work."""
    attention = efficiency.gathered if sparse else efficiency.attention
    fp8, bf16 = machine.fp8_tflops * 1e12, machine.bf16_tflops * 1e12
    matrices_s = 2 * work.matrices / (fp8 * efficiency.matrices)
    if sparse:
        matrices_s *= 1 + efficiency.sparse_overhead
    attention_s = 2 * work.attention / (bf16 * attention)
    indexer_s = 2 * work.indexer / (fp8 * efficiency.indexer)
    return (matrices_s + attention_s + indexer_s) * 1e6 * machine.dollars_per_hour / 3600


@dataclass(frozen=True, kw_only=True, slots=True)
class Prices:
    """Dollars per million tokens at one position."""

    prefill_dense: float
    prefill_sparse: float
    decode_dense: float
    decode_sparse: float


def prices(work: WorkModel, machine: Machine, position: int) -> Prices:
    def price(token: TokenWork, efficiency: Efficiency, *, sparse: bool) -> float:
        return dollars_per_million(token, machine, efficiency, sparse=sparse)

    return Prices(
        prefill_dense=price(work.prefill(position, sparse=False), PREFILL, sparse=False),
        prefill_sparse=price(work.prefill(position, sparse=True), PREFILL, sparse=True),
        decode_dense=price(work.decode(position, sparse=False), DECODE, sparse=False),
        decode_sparse=price(work.decode(position, sparse=True), DECODE, sparse=True),
    )


def crossing(dearer: Callable[[int], bool], limit: int) -> int | None:
    """The first position where `dearer` (true, then false) is false, by bisection; None: beyond `limit`."""
    if dearer(limit):
        return None
    low, high = -1, limit
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if dearer(middle) else (low, middle)
    return high


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainingPlan:
    """How training is spread: FSDP over all GPUs, experts over groups of `expert_parallel` first."""

    gpus: int
    expert_parallel: int = 1
    tokens_per_gpu: int = 4096
    """In one micro-batch."""

    def check(self, config: ModelConfig) -> None:
        for name in self.__slots__:
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.gpus % self.expert_parallel:
            raise ValueError(
                f"gpus ({self.gpus}) must be a multiple of expert_parallel ({self.expert_parallel})"
            )
        if config.n_routed_experts % self.expert_parallel:
            raise ValueError(
                f"expert_parallel ({self.expert_parallel}) must divide the {config.n_routed_experts} experts"
            )


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainingMemory:
    """Bytes on each GPU."""

    state: int
    """Its share of bf16 weights, float32 gradients, master weights and both Adam moments: 18 a parameter."""
    gathered: int
    """A layer in bf16, whole but for the experts that live elsewhere, and the next one, prefetched."""
    activations: int
    """Each layer's input in bf16, kept for checkpointing, and one layer's insides."""

    @property
    def total(self) -> int:
        return self.state + self.gathered + self.activations


STATE_BYTES = 2 + 4 + 4 + 4 + 4


def training_memory(config: ModelConfig, parameters: Parameters, plan: TrainingPlan) -> TrainingMemory:
    """Raises ValueError for a plan that does not divide up."""
    plan.check(config)
    mixtures = max((config.mlp_layer_types or []).count("sparse"), 1)
    experts_of_layer = parameters.experts // mixtures
    rest = parameters.total + parameters.indexer + parameters.prediction - parameters.experts
    rest_of_layer = rest // (config.num_hidden_layers + config.num_nextn_predict_layers)
    layer = rest_of_layer + experts_of_layer // plan.expert_parallel
    inside = (
        config.hidden_size * 6
        + config.num_attention_heads * (2 * (config.qk_nope_head_dim + config.qk_rope_head_dim))
        + config.num_attention_heads * 2 * config.v_head_dim
        + 3 * config.moe_intermediate_size * (config.num_experts_per_tok + config.n_shared_experts)
        + 2 * config.hidden_size * config.num_experts_per_tok
    )
    kept = config.num_hidden_layers * config.hidden_size
    return TrainingMemory(
        state=-(-STATE_BYTES * parameters.checkpoint // plan.gpus),
        gathered=2 * _BF16 * layer,
        activations=_BF16 * plan.tokens_per_gpu * (kept + inside + 2 * config.vocab_size),
    )


def fewest_gpus(
    config: ModelConfig, parameters: Parameters, plan: TrainingPlan, memory_gb: float
) -> int | None:
    """The smallest multiple of `expert_parallel` on which training fits; None where none does."""
    memory = training_memory(config, parameters, replace(plan, gpus=plan.expert_parallel))
    room = int(memory_gb * 1e9) - memory.gathered - memory.activations
    if room <= 0:
        return None
    groups = -(-STATE_BYTES * parameters.checkpoint // (room * plan.expert_parallel))
    return groups * plan.expert_parallel
