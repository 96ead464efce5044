"""The learner: TRL's GRPOTrainer, fed with finished trajectories, trained by our own loss.

TRL and accelerate keep their work (data loading, accumulation, optimizer, devices, checkpoints).
`rollout_func` hands in the exact token ids that were sampled; three overrides attach what a trajectory knows
beyond them: the replica's log-probabilities as pi_old, its recorded choices, and the loss of `rl.losses`.

A learner may be one of several that share a step's rows (`rl.learners`); each then has its part of the batch,
and what they make of it together is what one would make of the whole.
"""

import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from torch import Tensor
from transformers import PreTrainedTokenizerFast, PrinterCallback, TrainerCallback
from trl.trainer.grpo_config import GRPOConfig
from trl.trainer.grpo_trainer import GRPOTrainer

from policies.model.decoder import WorldsmithForCausalLM
from policies.model.experts import routers, update_correction_bias
from policies.replay import restrict_logits
from rl.advantage import group_advantages
from rl.losses import LossConfig, LossTerms, grpo_loss
from rl.recorded import Keep, Recorded, attach, detach, entropy, recorded, rows_of
from rl.step_means import StepMeans
from rl.trajectory import Trajectory


@dataclass(frozen=True, kw_only=True, slots=True)
class Objective:
    """reference: the policy that the KL is measured to; None where its weight is 0.
    keep: which of a rollout's choices the learner is held to.
    balance_step: how far a step moves the correction bias of an expert that is busier or idler than the mean.
    """

    loss: LossConfig
    reference: WorldsmithForCausalLM | None = None
    keep: Keep = field(default_factory=Keep)
    balance_step: float = 0.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Feed:
    """next_batch: a step's trajectories, of which this learner trains, groups adjacent, once a step.
    after_step: called when the step is done; where it gives True, training ends there.
    """

    next_batch: Callable[[], Sequence[Trajectory]]
    after_step: Callable[[], bool | None]


class Learner(GRPOTrainer):
    """Trains on the feed's trajectories, `rows_per_step` a step over all learners.

    After each step `step_metrics` holds the means of the loss terms over its rows or tokens, all learners',
    and `expert_load_max`, the load of the busiest expert of any layer in multiples of the mean load.
    """

    def __init__(
        self,
        model: WorldsmithForCausalLM,
        *,
        tokenizer: PreTrainedTokenizerFast,
        args: GRPOConfig,
        objective: Objective,
        feed: Feed,
        optimizer: torch.optim.Optimizer,
    ) -> None:
        self._objective = objective
        self._feed = feed
        self._group_size = int(args.num_generations or 1)
        self._batch: Sequence[Trajectory] = ()
        self._active = Recorded()
        self._means = StepMeans()
        self.step_metrics: dict[str, float] = {}
        rows_per_step = args.generation_batch_size
        assert rows_per_step is not None
        tickets = Dataset.from_dict({"prompt": [f"ticket {i}" for i in range(rows_per_step)]})
        with warnings.catch_warnings():
            # The seam is pinned to trl<1.17 and held by a contract test; the warning would say so at every
            # start.
            warnings.filterwarnings("ignore", message="You are using 'rollout_func'")
            super().__init__(
                model=model,
                reward_funcs=_reward_of_row,
                args=args,
                train_dataset=tickets,
                processing_class=tokenizer,
                rollout_func=_rollout,
                optimizers=(optimizer, None),
                callbacks=[AfterStep(self._step_done)],
            )
        if objective.reference is not None:
            objective.reference.to(self.accelerator.device)
        self.remove_callback(PrinterCallback)  # the run has a log and a progress line of its own

    def _step_done(self) -> bool | None:
        self.step_metrics = self._means.over(self.accelerator)
        model = self.accelerator.unwrap_model(self.model)
        if routers(model):
            loads_LE = update_correction_bias(model, self._objective.balance_step)
            self.step_metrics["expert_load_max"] = loads_LE.max().item() * loads_LE.shape[1]
        return self._feed.after_step()

    def pull(self, num_rows: int) -> Sequence[Trajectory]:
        """The next trajectories, which the rest of this step reads too."""
        self._means = StepMeans()
        self._batch = self._feed.next_batch()
        if len(self._batch) != num_rows:
            raise ValueError(f"the learner takes {num_rows} trajectories a step, got {len(self._batch)}")
        return self._batch

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        """Adds to TRL's batch: the replica's log-probabilities as pi_old, its recorded choices, the
        reference's log-probabilities.
        """
        output = super()._generate_and_score_completions(inputs)
        device = output["prompt_ids"].device
        rewards = torch.tensor(
            [math.nan if t.reward is None else t.reward for t in self._batch], device=device
        )
        output["advantages"] = group_advantages(rewards, self._group_size)
        output["old_per_token_logps"] = output["sampling_per_token_logps"]
        widths = output["prompt_ids"].shape[1], output["completion_ids"].shape[1]
        records = recorded(self._batch, *widths, self._objective.keep).map(lambda values: values.to(device))
        attach(output, records)
        if self._objective.reference is not None:
            input_ids = torch.cat([output["prompt_ids"], output["completion_ids"]], dim=1)
            mask = torch.cat([output["prompt_mask"], output["completion_mask"]], dim=1)
            # The reference chooses experts and positions for itself, over the ids that could be sampled.
            with torch.no_grad(), self._held_to(Recorded(kept=records.kept)):
                output["ref_per_token_logps"] = self._get_per_token_logps_and_entropies(
                    self._objective.reference,
                    input_ids,
                    mask,
                    output["completion_ids"].shape[1],
                    batch_size=self._micro_rows,
                )[0]
        return output

    @property
    def _micro_rows(self) -> int:
        return self.args.per_device_train_batch_size

    def _get_per_token_logps_and_entropies(
        self,
        model: Any,
        input_ids: Tensor,
        attention_mask: Tensor,
        logits_to_keep: int,
        batch_size: int | None = None,
        compute_entropy: bool = False,
        **ignored: Any,
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """Log-probabilities [B, T] of the completion, at the sampler's temperature, with the rollout's
        recorded choices forced.
        """
        # The token after each column, from the prompt's last one on.
        targets = torch.nn.functional.pad(
            input_ids.masked_fill(attention_mask == 0, -1)[:, 1:], (0, 1), value=-1
        )
        targets[:, : -logits_to_keep - 1] = -1
        logps: list[Tensor] = []
        entropies: list[Tensor] = []
        for rows in torch.arange(len(input_ids)).split(batch_size or len(input_ids)):
            held = rows_of(self._active, rows)
            score = self._score_all if held.kept is None else self._score_kept
            logp_BS, entropy_BS = score(model, input_ids[rows], attention_mask[rows], targets[rows], held)
            logps.append(logp_BS[:, -logits_to_keep - 1 : -1])
            entropies.append(entropy_BS[:, -logits_to_keep - 1 : -1])
        return torch.cat(logps), torch.cat(entropies) if compute_entropy else None, None

    def _score_all(
        self, model: Any, input_ids: Tensor, attention_mask: Tensor, targets: Tensor, held: Recorded
    ) -> tuple[Tensor, Tensor]:
        """Log-probability and entropy [B, S] of each target over all ids; 0 where there is none."""
        output = model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            targets=targets,
            temperature=self.temperature,
            routes=held.routes,
            selected=held.selected,
        )
        return output.target_logps, output.entropy

    def _score_kept(
        self, model: Any, input_ids: Tensor, attention_mask: Tensor, targets: Tensor, held: Recorded
    ) -> tuple[Tensor, Tensor]:
        """As `_score_all`, over the ids that could be sampled."""
        output = model(
            input_ids=input_ids, attention_mask=attention_mask, routes=held.routes, selected=held.selected
        )
        assert held.kept is not None
        kept = torch.nn.functional.pad(held.kept[:, 1:], (0, 0, 0, 1), value=-1)
        all_logps = restrict_logits(output.logits / self.temperature, kept).log_softmax(dim=-1)
        logps = all_logps.gather(-1, targets.clamp(min=0)[..., None]).squeeze(-1)
        return logps.masked_fill(targets < 0, 0.0), entropy(all_logps.detach())

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Tensor:
        """The loss of `rl.losses` on one micro-batch."""
        input_ids = torch.cat([inputs["prompt_ids"], inputs["completion_ids"]], dim=1)
        attention_mask = torch.cat([inputs["prompt_mask"], inputs["completion_mask"]], dim=1)
        mask_BT = (inputs["completion_mask"] * inputs["tool_mask"]).bool()
        with self._held_to(detach(inputs)):
            logp_BT, entropy_BT, _ = self._get_per_token_logps_and_entropies(
                model, input_ids, attention_mask, inputs["completion_ids"].shape[1], compute_entropy=True
            )
        terms = grpo_loss(
            logp_BT,
            inputs["old_per_token_logps"],
            inputs["advantages"],
            mask_BT,
            self._objective.loss,
            inputs.get("ref_per_token_logps"),
        )
        assert entropy_BT is not None
        self._note(terms, mask_BT, logp_BT.detach() - inputs["old_per_token_logps"], entropy_BT)
        share = self._share_of_step(mask_BT, inputs["num_items_in_batch"])
        return terms.loss * share / self.current_gradient_accumulation_steps

    def _note(self, terms: LossTerms, mask_BT: Tensor, drift_BT: Tensor, entropy_BT: Tensor) -> None:
        """Puts a micro-batch into the step's metrics. drift_BT: log pi_theta - log pi_old."""
        rows, tokens = len(mask_BT), int(mask_BT.sum())
        drift_BT = torch.where(mask_BT, drift_BT, 0.0).abs()
        by_token = self._objective.loss.normalization == "token"
        self._means.add(tokens if by_token else rows, loss=terms.loss.item())
        self._means.add(
            tokens,
            kl=terms.kl.item(),
            ratio_mean=terms.ratio_mean.item(),
            clip_share=terms.clip_share.item(),
            entropy=(entropy_BT * mask_BT).sum().item() / max(1, tokens),
            logp_drift_mean=drift_BT.sum().item() / max(1, tokens),
        )
        self._means.add(rows, masked_share=terms.masked_share.item())
        self._means.add_largest(logp_drift_max=drift_BT.max().item())

    def _share_of_step(self, mask_BT: Tensor, step_tokens: Tensor) -> float:
        """What the micro-batch's loss counts beside the mean of the step's others; 1 where rows count alike.

        The trainer takes the mean over its micro-batches, which have equally many rows, and the mean over
        learners. Where tokens count alike, one that has more of the step's tokens must count more.

        Args:
            step_tokens: of all learners.
        """
        if self._objective.loss.normalization != "token":
            return 1.0
        parts = self.current_gradient_accumulation_steps * self.accelerator.num_processes
        return float(mask_BT.sum() * parts / step_tokens.clamp(min=1))

    @contextmanager
    def _held_to(self, records: Recorded) -> Iterator[None]:
        """Forwards inside use the recorded choices; the backward pass of such a forward does too."""
        self._active = records
        try:
            yield
        finally:
            self._active = Recorded()


class AfterStep(TrainerCallback):
    """Calls `after_step` when the optimizer has moved; training ends where that says so."""

    def __init__(self, after_step: Callable[[], bool | None]) -> None:
        self._after_step = after_step

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self._after_step():
            control.should_training_stop = True


def make_args(  # noqa: PLR0913 (what a run decides of TRL's settings)
    directory: Path,
    *,
    rows_per_step: int,
    rows_per_micro_batch: int,
    group_size: int,
    learning_rate: float,
    num_steps: int,
    temperature: float = 1.0,
    num_learners: int = 1,
) -> GRPOConfig:
    """TRL's settings for a learner on this machine, one of `num_learners` that share a step's rows.

    Raises ValueError when the batch does not divide up.
    """
    rows, left = divmod(rows_per_step, num_learners)
    if left or rows % rows_per_micro_batch or rows % group_size:
        raise ValueError(
            f"rows_per_step / num_learners ({rows_per_step} / {num_learners}) must be a multiple of"
            f" rows_per_micro_batch ({rows_per_micro_batch}) and of group_size ({group_size})"
        )
    several = num_learners > 1
    return GRPOConfig(
        output_dir=str(directory),
        per_device_train_batch_size=rows_per_micro_batch,
        gradient_accumulation_steps=rows // rows_per_micro_batch,
        num_generations=group_size,
        max_completion_length=None,
        learning_rate=learning_rate,
        lr_scheduler_type="constant",
        max_steps=num_steps,
        max_grad_norm=1.0,
        adam_beta1=0.9,
        adam_beta2=0.95,
        weight_decay=0.0,
        beta=0.0,  # the reference and its KL are ours
        loss_type="grpo",
        scale_rewards="none",
        temperature=temperature,
        use_cpu=not torch.cuda.is_available(),
        # Layers that predict ahead take no part. With this, DDP also never rearranges what it sums together:
        # more than two learners round alike after a restart.
        ddp_find_unused_parameters=True if several else None,
        # Each router counts its own learner's tokens.
        ddp_broadcast_buffers=False if several else None,
        bf16=False,
        gradient_checkpointing=False,
        save_strategy="no",
        logging_strategy="no",
        report_to=[],
        disable_tqdm=True,
        dataloader_pin_memory=False,
        remove_unused_columns=False,
        shuffle_dataset=False,
    )


def _reward_of_row(**columns: Any) -> list[float | None]:
    """TRL's reward function: the reward that came with the trajectory; None where it was not measured."""
    return [None if math.isnan(reward) else reward for reward in columns["reward"]]


def _rollout(prompts: list[Any], trainer: GRPOTrainer) -> dict[str, Any]:
    """TRL's rollout_func: the next trajectories as they were sampled, in TRL's columns."""
    assert isinstance(trainer, Learner)
    batch = trainer.pull(len(prompts))
    return {
        "prompt_ids": [list(t.token_ids[: t.num_prompt_tokens]) for t in batch],
        "completion_ids": [list(t.token_ids[t.num_prompt_tokens :]) for t in batch],
        "logprobs": [list(t.logps[t.num_prompt_tokens :]) for t in batch],
        "env_mask": [[int(wrote) for wrote in t.sampled[t.num_prompt_tokens :]] for t in batch],
        "reward": [math.nan if t.reward is None else t.reward for t in batch],
    }
