"""A training run's configuration: YAML in, checked, with the nearest name for a field that does not exist."""

import difflib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, Self, get_args

import yaml
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)
from pydantic_core import to_jsonable_python

from rl.latency import Latency
from rl.losses import KlEstimator, LossConfig, Normalization

Sharding = Literal["auto", "none", "full"]


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _plain(cls, value: Any, info: ValidationInfo) -> Any:
        """What pydantic would make a number of, or what no path can hold."""
        assert info.field_name is not None
        annotation = cls.model_fields[info.field_name].annotation
        numeric = {int, float} & {annotation, *get_args(annotation)}
        if numeric and any(isinstance(x, bool) for x in (value if isinstance(value, list) else [value])):
            raise ValueError("a truth value is no number")
        if isinstance(value, str) and "\0" in value:
            raise ValueError("text may not hold a NUL character")
        return value


class _RepeatedKey(yaml.MarkedYAMLError):
    pass


class _Loader(yaml.SafeLoader):
    """Refuses a key that a mapping has twice; the plain loader takes the last."""

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        # As it was written: once it is constructed, what `<<` took over stands among its keys.
        node = super().compose_mapping_node(anchor)
        seen: set[str] = set()
        for key, _ in node.value:
            name = str(key.value)
            if name in seen:
                raise _RepeatedKey(problem=f"{name} stands twice", problem_mark=key.start_mark)
            seen.add(name)
        return node


class ModelSection(Section):
    """Sizes of the policy, by transformers' `deepseek_v32` keys; what is not named is the tiny model's."""

    sizes: dict[str, bool | int | float | str] = Field(default_factory=dict)
    max_pieces: int = Field(default=2000, ge=0)
    """Tokens that the tokenizer may learn beyond the 256 bytes and the control tokens."""


class ColdStartSection(Section):
    clean_steps: int = Field(ge=0)
    """Steps on clean demonstrations, dense attention."""
    warm_up_steps: int = Field(ge=0)
    """Steps on demonstrations of mixed quality in which the indexer learns from dense attention."""
    sparse_steps: int = Field(ge=0)
    """Steps on demonstrations of mixed quality with sparse attention."""
    tokens_per_batch: int = Field(default=4096, ge=64)
    learning_rate: float = Field(default=3e-3, gt=0)
    """AdamW's, of all that is no matrix of a layer."""
    muon_learning_rate: float = Field(default=8e-3, ge=0)
    """Muon's, of the layers' matrices; 0: AdamW for them too."""
    indexer_learning_rate: float = Field(default=3e-3, gt=0)
    """AdamW's, of the indexer; constant."""
    indexer_every: int = Field(default=2, ge=1)
    """With sparse attention the indexer learns in one step of so many."""
    checkpoint_every: int = Field(default=100, ge=1)

    @property
    def num_steps(self) -> int:
        return self.clean_steps + self.warm_up_steps + self.sparse_steps


class LossSection(Section):
    clip_low: float = 0.2
    clip_high: float = 0.2
    kl_weight: float = 0.0
    kl_estimator: KlEstimator = "unbiased"
    off_policy_delta: float | None = None
    normalization: Normalization = "response"

    @model_validator(mode="after")
    def _can_be(self) -> Self:
        LossConfig(**self.model_dump())
        return self


class RlSection(Section):
    steps: int = Field(ge=0)
    """At most, where `until_share` is given."""
    until_share: float | None = Field(default=None, gt=0)
    """End at the first step at which RL's compute comes to this share of the cold start's."""
    groups_per_step: int = Field(ge=1)
    """Groups played a step."""
    groups_trained: int = Field(ge=1)
    """Groups of them that the learner gets: those with differing rewards first (as DAPO's dynamic
    sampling).
    """
    group_size: int = Field(ge=2)
    rows_per_micro_batch: int = Field(ge=1)
    """Of one learner."""
    learners: int = Field(default=1, ge=1)
    """Processes that share a step's rows under Ray Train; 1: the run's own process learns, without it."""
    sharding: Sharding = "auto"
    """What each of several learners holds: the whole model and its moments (none: DDP), or a share of them
    (full: FSDP2); auto: a share on GPUs, the whole on CPUs.
    """
    balance_step: float = Field(default=0.0, ge=0)
    """How far a step moves the router's bias of an expert that is busier or idler than the mean (gamma of
    DeepSeek-V3, which ends with 0).
    """
    learning_rate: float = Field(gt=0)
    levels: tuple[int, ...] = Field(min_length=1)
    """Levels that are trained on; the others stay unseen."""
    loss: LossSection = LossSection()
    twins: bool = False
    """A task that has a twin in the corpus shares its groups with it: half of the episodes play the twin."""
    twin_bonus: float = Field(default=0.0, ge=0)
    """Added to the rewards of an episode and its twin's where both are right; needs `twins`."""
    reward_order: str = Field(default="true", pattern="^(true|shuffled)$")
    """shuffled: the control; rewards change places inside each group."""
    checkpoint_every: int = Field(default=10, ge=1)

    @model_validator(mode="after")
    def _groups_fit(self) -> Self:
        if self.groups_trained > self.groups_per_step:
            raise ValueError(f"groups_trained must be at most groups_per_step ({self.groups_per_step})")
        if self.twins and self.group_size % 2:
            raise ValueError(f"group_size must be even with twins, got {self.group_size}")
        if self.twin_bonus and not self.twins:
            raise ValueError("twin_bonus needs twins: true")
        if self.groups_trained % self.learners:
            raise ValueError(
                f"learners ({self.learners}) must divide groups_trained ({self.groups_trained}): each has"
                " whole groups"
            )
        if self.sharding == "full" and self.learners == 1:
            raise ValueError("sharding: full needs learners of at least 2")
        if self.rows_per_learner % self.rows_per_micro_batch:
            over = " / learners" if self.learners > 1 else ""
            raise ValueError(
                f"rows_per_micro_batch must divide groups_trained x group_size{over}"
                f" ({self.rows_per_learner})"
            )
        return self

    @property
    def rows_per_learner(self) -> int:
        """Of a step."""
        return self.groups_trained * self.group_size // self.learners


class RolloutSection(Section):
    engine: Literal["in_process", "vllm"] = "in_process"
    """Who serves the policy: the trainer's own module in each worker, or vLLM, each replica a Ray actor."""
    workers: int = Field(default=2, ge=0)
    """Ray actors that play, or vLLM replicas; 0: the learner's own process plays, without Ray."""
    max_staleness: int = Field(default=0, ge=0)
    """Learner steps that a token's weights may lie behind those that train on it; 0: rollouts and learner
    take turns (synchronous).
    """
    dtype: Literal["float32", "bfloat16"] = "float32"
    """What the in-process engine computes in; the learner's weights are float32 either way."""
    in_flight: Literal["keep", "recompute"] = "keep"
    """What running episodes do with their cache when new weights arrive."""
    boxes: int = Field(default=0, ge=0)
    """Episodes at once on a worker, each with a thread for its tools, beside the engine; 0: as many as
    `slots`, their tools between the engine's steps.
    """
    tool_latency: Latency = Latency()
    """Seconds to add to each turn's tools, to rehearse slow ones; needs `boxes`."""
    threads: int = Field(default=1, ge=1)
    slots: int = Field(default=192, ge=1)
    max_length: int = Field(default=384, ge=16)
    """Tokens of a context; an episode that needs more ends."""
    max_new_tokens: int = Field(default=48, ge=1)
    """Tokens of one turn."""
    temperature: float = Field(default=1.0, gt=0)
    """Of sampling, in training and in evaluation."""
    top_p: float = Field(default=1.0, gt=0, le=1)
    """Sample from the smallest set of most likely tokens whose probability reaches this."""
    top_k: int = Field(default=0, ge=0)
    """Sample from so many most likely tokens; 0: all."""
    keep_routing: bool = True
    """The learner uses the experts that the rollout used."""
    keep_selection: bool = False
    """The learner attends to the positions that the rollout's sparse attention selected. In synchronous
    training with a frozen indexer it selects the same ones by itself, without the memory that records take.
    """
    keep_sampling_mask: bool = True
    """With top_p or top_k: the learner's distribution is over the ids that could be sampled."""

    @model_validator(mode="after")
    def _parts_fit(self) -> Self:
        if self.max_staleness and not self.workers:
            raise ValueError("max_staleness above 0 needs workers, of which there are 0")
        if self.tool_latency.median_s and not self.boxes:
            raise ValueError("tool_latency needs boxes, the threads that tools run on")
        if self.engine == "vllm" and (self.max_staleness or self.boxes or not self.workers):
            raise ValueError("engine: vllm needs workers of at least 1, max_staleness 0 and boxes 0")
        if self.engine == "vllm" and self.dtype != "float32":
            raise ValueError("engine: vllm needs dtype float32; bfloat16 is the in-process engine's")
        return self

    @property
    def episodes_at_once(self) -> int:
        """Over all workers."""
        return max(1, self.workers) * (min(self.boxes, self.slots) if self.boxes else self.slots)


class EvalSection(Section):
    samples: int = Field(default=2, ge=1)
    every: int = Field(default=0, ge=0)
    """Evaluate each so many RL steps too; 0: before and after only."""


class TrainConfig(Section):
    seed: int = Field(default=0, ge=0)
    start: str | None = None
    """The directory of a policy to begin with, its tokenizer too; none: a new one."""
    corpus: str
    """Certified tasks, with demonstrations."""
    heldout: str
    """Certified tasks of other seeds, to evaluate on."""
    model: ModelSection = ModelSection()
    cold_start: ColdStartSection
    rl: RlSection
    rollout: RolloutSection = RolloutSection()
    eval: EvalSection = EvalSection()

    @property
    def ray_slots(self) -> int:
        """Processes that Ray starts for rollouts and learners; 0: Ray is not needed."""
        return self.rollout.workers + (self.rl.learners if self.rl.learners > 1 else 0)


class SpecialistsSection(Section):
    steps: int = Field(ge=1)
    """Of each specialist's RL; all else is as in `rl`."""


class DistillSection(Section):
    samples: int = Field(default=2, ge=1)
    """Episodes of each training task of the trained levels, by its group's specialist."""
    kept_per_task: int = Field(default=1, ge=1)
    """Episodes of one task to learn from at most, of those that the verifier passed."""
    steps: int = Field(ge=1)
    """Of supervised learning from them, with sparse attention, from the cold start's policy on."""
    tokens_per_batch: int = Field(default=4096, ge=64)
    learning_rate: float = Field(default=1e-3, gt=0)
    """AdamW's, of all that is no matrix of a layer."""
    muon_learning_rate: float = Field(default=3e-3, ge=0)
    """Muon's, of the layers' matrices; 0: AdamW for them too."""
    checkpoint_every: int = Field(default=50, ge=1)


class PipelineSection(Section):
    cold_start_from: str | None = None
    """A run whose cold start is taken over; it must have had the same `model`, `cold_start` and corpora."""
    groups: dict[str, tuple[str, ...]] = Field(default_factory=dict)
    """Domains by the name of the specialist that learns them; empty: a specialist a domain."""
    specialists: SpecialistsSection
    distill: DistillSection
    margin: float = Field(default=0.05, ge=0, lt=1)
    """How far a group's pass rate may lie under its specialist's after mixed RL."""

    @model_validator(mode="after")
    def _groups_name_folders(self) -> Self:
        for name in self.groups:
            if not name.replace("-", "").replace("_", "").isalnum():
                raise ValueError(f"groups: {name!r} names a folder; letters, digits, - and _ will do")
        return self


class PipelineConfig(TrainConfig):
    """`rl` is the mixed stage's; its `until_share` counts the specialists' RL in."""

    pipeline: PipelineSection

    @model_validator(mode="after")
    def _whole(self) -> Self:
        if self.start is not None:
            raise ValueError("a pipeline begins with a cold start; take one over by pipeline.cold_start_from")
        if self.rl.steps == 0:
            raise ValueError("a pipeline ends with mixed RL; rl.steps must be at least 1")
        return self


def load_config(path: Path, overrides: Sequence[str] = ()) -> TrainConfig:
    """The configuration in `path`, with `a.b=value` overrides: a PipelineConfig where it has a section
    `pipeline`. Raises ValueError with one line on any fault.
    """
    try:
        fields = yaml.load(path.read_text(encoding="utf-8"), Loader=_Loader)
    except OSError as error:
        raise ValueError(f"{path}: {error.strerror}; give a config file, such as configs/demo.yaml") from None
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        mark = getattr(error, "problem_mark", None)
        line = f", line {mark.line + 1}" if mark is not None else ""
        why = f": {error.problem}" if isinstance(error, _RepeatedKey) else ""
        raise ValueError(f"{path}{line}: not readable as YAML{why}") from None
    if not isinstance(fields, dict):
        raise ValueError(f"{path}: a config is a mapping of sections, got {type(fields).__name__}")
    for override in overrides:
        _apply(fields, override)
    return parse_config(fields, where=str(path))


def default_fields(kind: type[BaseModel]) -> dict[str, Any]:
    """What the fields that may be left out are then, as JSON has them; sections that may not, by theirs."""
    found: dict[str, Any] = {}
    for name, field in kind.model_fields.items():
        if not field.is_required():
            found[name] = to_jsonable_python(field.get_default(call_default_factory=True))
        elif isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            found[name] = default_fields(field.annotation)
    return found


def parse_config(fields: dict[str, Any], *, where: str) -> TrainConfig:
    kind = PipelineConfig if "pipeline" in fields else TrainConfig
    try:
        return kind.model_validate(fields)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        name = ".".join(map(str, first["loc"])) or "config"
        if first["type"] == "extra_forbidden":
            raise ValueError(f"{where}: there is no field {name}{_nearest(kind, first['loc'])}") from None
        got = "" if isinstance(first["input"], dict) else f", got {first['input']!r}"
        raise ValueError(f"{where}: {name}: {first['msg'].removeprefix('Value error, ')}{got}") from None


def _apply(fields: dict[str, Any], override: str) -> None:
    name, equals, value = override.partition("=")
    if not equals or not name:
        raise ValueError(f"--set {override}: expected a.b=value")
    *path, last = name.split(".")
    here: Any = fields
    for key in path:
        here = here.setdefault(key, {}) if isinstance(here, dict) else None
    if not isinstance(here, dict):
        raise ValueError(f"--set {override}: {name} is not inside a section")
    try:
        here[last] = yaml.load(value, Loader=_Loader)
    except (yaml.YAMLError, RecursionError):
        raise ValueError(f"--set {override}: {value!r} is not a YAML value") from None


def _nearest(section: type[BaseModel], location: tuple[int | str, ...]) -> str:
    for key in location[:-1]:
        kind = section.model_fields[str(key)].annotation if str(key) in section.model_fields else None
        if not (isinstance(kind, type) and issubclass(kind, BaseModel)):
            return ""
        section = kind
    found = difflib.get_close_matches(str(location[-1]), list(section.model_fields), n=1, cutoff=0.5)
    return f"; did you mean {found[0]}?" if found else f"; there are {', '.join(section.model_fields)}"
