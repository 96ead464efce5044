"""Train a small sparse-attention model with each selector and compare what it can then do.

One model a task and seed learns with dense attention, then its indexer from what that attention looks at, all
else frozen (but the routers' balance); from there each selector goes on alone for equally many tokens,
`lightning` and `lsh` with the indexer's KL over what they choose. `oracle` is not trained: it is the model
before that stage under the best choice there is. Then held-out rows are read at several lengths: accuracy and
loss at the targets, and the share of the model's own dense attention that falls on the chosen places.

Run as a module: `python -m benchmarks.selectors --out DIR`. Run again, it goes on where it was stopped. The
last line of --json is one JSON object; --plot draws it.
"""

import argparse
import json
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.selector_exams import examine, macs, sum_up
from benchmarks.selector_report import plot, table
from benchmarks.selector_tasks import Retrieval, Task, Text
from benchmarks.settings import check_settings
from envs.files import write_whole
from policies.model.checkpoint import load_model, save_model
from policies.model.config import ModelConfig, tiny_config
from policies.model.decoder import WorldsmithForCausalLM
from rl.cold_start import Batch, StepMetrics, learning_rate_at, make_optimizers, train_on
from worldsmith.progress import Progress

TRAINED = ("dense", "lightning", "lsh", "window", "random")
LEARNED = ("lightning", "lsh")
"""They choose by the indexer, which goes on learning with them."""
WARM_UP_RATE = 1e-2
"""Of the indexer alone; falls to a tenth."""
INDEXER_RATE = 1e-3
"""In the sparse stage, constant."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Part:
    """So many steps on so many rows of a length."""

    length: int
    rows: int
    steps: int
    ask_again: bool = False
    """Retrieval: half of a text are questions."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Recipe:
    sizes: dict[str, Any]
    indexer: dict[str, int]
    """Its sizes from the warm-up on. As in DeepSeek-V3.2 it is new when the model has learnt densely."""
    dense: tuple[Part, ...]
    warm_up: tuple[Part, ...]
    sparse: tuple[Part, ...]
    exams: tuple[tuple[int, int], ...]
    """Length and rows."""
    learning_rate: float = 3e-3
    muon_learning_rate: float = 8e-3
    sparse_rate: float = 0.3
    """The sparse stage begins at this share of both rates."""


SIZES: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "moe_intermediate_size": 64,
    "num_hidden_layers": 2,
    "first_k_dense_replace": 1,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "qk_nope_head_dim": 24,
    "qk_rope_head_dim": 8,
    "v_head_dim": 16,
    "kv_lora_rank": 48,
    "q_lora_rank": 64,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "index_n_heads": 4,
    "index_head_dim": 32,
    "index_topk": 64,
    "max_position_embeddings": 16_384,
    "initializer_range": 0.1,
}
RECIPES = {
    "retrieval": Recipe(
        sizes=SIZES,
        indexer={"index_n_heads": 8, "index_head_dim": 32},
        dense=(
            Part(length=64, rows=64, steps=300),
            Part(length=256, rows=16, steps=200),
            Part(length=1024, rows=4, steps=300),
            Part(length=4096, rows=1, steps=120),
            Part(length=8192, rows=1, steps=24),
        ),
        warm_up=(
            Part(length=64, rows=64, steps=400, ask_again=True),
            Part(length=256, rows=16, steps=600, ask_again=True),
            Part(length=1024, rows=4, steps=300, ask_again=True),
            Part(length=4096, rows=1, steps=100, ask_again=True),
            Part(length=8192, rows=1, steps=6, ask_again=True),
        ),
        sparse=(
            Part(length=1024, rows=4, steps=30, ask_again=True),
            Part(length=4096, rows=1, steps=30, ask_again=True),
            Part(length=8192, rows=1, steps=16, ask_again=True),
        ),
        exams=((1024, 8), (4096, 12), (8192, 6)),
    ),
    "text": Recipe(
        sizes=SIZES
        | {
            "hidden_size": 96,
            "intermediate_size": 256,
            "moe_intermediate_size": 96,
            "qk_nope_head_dim": 16,
            "qk_rope_head_dim": 16,
            "initializer_range": 0.02,
        },
        indexer={"index_n_heads": 4, "index_head_dim": 32},
        dense=(
            Part(length=256, rows=16, steps=2000),
            Part(length=1024, rows=4, steps=150),
            Part(length=2048, rows=2, steps=60),
            Part(length=4096, rows=1, steps=40),
        ),
        warm_up=(
            Part(length=256, rows=16, steps=150),
            Part(length=1024, rows=4, steps=60),
            Part(length=2048, rows=2, steps=30),
            Part(length=4096, rows=1, steps=20),
        ),
        sparse=(Part(length=2048, rows=2, steps=20), Part(length=4096, rows=1, steps=30)),
        exams=((4096, 6),),
    ),
}


def quick(recipe: Recipe) -> Recipe:
    """Checks the script, and compares nothing."""
    tiny = (Part(length=128, rows=2, steps=2),)
    sizes = recipe.sizes | {"index_topk": 16}
    return replace(recipe, sizes=sizes, dense=tiny, warm_up=tiny, sparse=tiny, exams=((256, 1),))


def make_task(name: str) -> Task:
    return Retrieval() if name == "retrieval" else Text()


def batches(task: Task, parts: tuple[Part, ...], rng: np.random.Generator) -> Iterator[Batch]:
    for part in parts:
        for _ in range(part.steps):
            yield task.train_batch(part.rows, part.length, rng, ask_again=part.ask_again)


def with_indexer(model: WorldsmithForCausalLM, sizes: dict[str, int]) -> WorldsmithForCausalLM:
    """The same model with a new indexer."""
    config = ModelConfig.from_dict(model.config.to_dict() | sizes)
    changed = WorldsmithForCausalLM(config)
    kept = {name: values for name, values in model.state_dict().items() if ".indexer." not in name}
    missing, surplus = changed.load_state_dict(kept, strict=False)
    assert surplus == [] == [name for name in missing if ".indexer." not in name]
    return changed


def train(
    model: WorldsmithForCausalLM,
    source: Iterator[Batch],
    steps: int,
    recipe: Recipe,
    *,
    share: float,
    indexer: str,
) -> Iterator[StepMetrics]:
    """Steps whose rates begin at `share` of the recipe's and fall to a tenth of that, the indexer's in the
    warm-up alone.

    indexer: how it learns, "not", in its "warm-up" or in the "sparse" stage.
    """
    warm_up = indexer == "warm-up"
    optimizers = make_optimizers(
        model,
        learning_rate=recipe.learning_rate,
        muon_learning_rate=recipe.muon_learning_rate,
        indexer_learning_rate=WARM_UP_RATE if warm_up else INDEXER_RATE,
    )
    for group in (group for optimizer in optimizers for group in optimizer.param_groups):
        group["constant"] = group.get("constant", False) and not warm_up
    return train_on(
        model,
        optimizers,
        source,
        steps=range(steps),
        scale=lambda step: learning_rate_at(step, steps, share),
        indexer_every=0 if indexer == "not" else 1,
    )


@dataclass(kw_only=True)
class Study:
    """One task of one seed."""

    task: Task
    recipe: Recipe
    seed: int
    out: Path
    progress: Progress

    @property
    def name(self) -> str:
        return f"{self.task.name}-{self.seed}"

    def config(self) -> ModelConfig:
        return tiny_config(self.task.vocab_size, **self.recipe.sizes, token_selector="dense")

    def work(self) -> dict[str, int]:
        """Of each stage, in thousands of tokens, attention's pairs counted as the tokens they cost."""
        trained = {
            "pre-training": 3 * _cost(self.recipe.dense),
            "warm-up": 2 * _cost(self.recipe.warm_up),
        }
        exam = sum(rows * _tokens(length) for length, rows in self.recipe.exams)
        sparse = 3 * _cost(self.recipe.sparse)
        return trained | {
            name: 2 * exam + (0 if name == "oracle" else sparse) for name in (*TRAINED, "oracle")
        }

    def run(self, selectors: list[str]) -> None:
        self._start()
        for name in selectors:
            path = self.out / f"{self.name}-{name}.json"
            if path.exists():
                self._skip(name)
            else:
                started = time.process_time()
                result = self._compare(name) | {"seconds": round(time.process_time() - started)}
                write_whole(path, json.dumps(result).encode())

    def _skip(self, stage: str) -> None:
        """An earlier run did it."""
        self.progress.resume_at(self.progress.done + self.work()[stage])

    def _start(self) -> None:
        """The model that all selectors begin with."""
        if not (self.out / f"{self.name}-dense-model").exists():
            torch.manual_seed(self.seed)
            model = WorldsmithForCausalLM(self.config())
            self._train(model, "pre-training", self.recipe.dense, share=1.0, indexer="not")
            save_model(model, self.out / f"{self.name}-dense-model")
        else:
            self._skip("pre-training")
        if not (self.out / f"{self.name}-model").exists():
            torch.manual_seed(self.seed)
            model = with_indexer(load_model(self.out / f"{self.name}-dense-model"), self.recipe.indexer)
            for name, parameter in model.named_parameters():
                parameter.requires_grad_(".indexer." in name)
            self._train(model, "warm-up", self.recipe.warm_up, share=1.0, indexer="warm-up")
            save_model(model, self.out / f"{self.name}-model")
        else:
            self._skip("warm-up")

    def _compare(self, selector: str) -> dict[str, Any]:
        model = load_model(self.out / f"{self.name}-model")
        model.config.token_selector = selector
        taken: list[StepMetrics] = []
        if selector in TRAINED:
            indexer = "sparse" if selector in LEARNED else "not"
            share = self.recipe.sparse_rate
            taken = self._train(model, selector, self.recipe.sparse, share=share, indexer=indexer)
        found: dict[int, list[dict[str, Any]]] = {}
        for length, row in examine(model, self.task, self.recipe.exams):
            found.setdefault(length, []).append(row)
            self.progress.advance(2 * _tokens(length), note=f"{self.name} {selector}: {length} tokens")
        return {
            "task": self.task.name,
            "seed": self.seed,
            "selector": selector,
            "train_loss": lately(taken) if taken else None,
            "macs": {length: macs(model.config, length) for length, _ in self.recipe.exams},
            "exams": {length: sum_up(rows) for length, rows in found.items()},
        }

    def _train(
        self,
        model: WorldsmithForCausalLM,
        stage: str,
        parts: tuple[Part, ...],
        *,
        share: float,
        indexer: str,
    ) -> list[StepMetrics]:
        # The sparse stage has the same batches for every selector.
        rng = np.random.default_rng([self.seed, {"pre-training": 0, "warm-up": 1}.get(stage, 2)])
        sizes = [part for part in parts for _ in range(part.steps)]
        source = batches(self.task, parts, rng)
        taken: list[StepMetrics] = []
        steps = train(model, source, len(sizes), self.recipe, share=share, indexer=indexer)
        for part, metrics in zip(sizes, steps, strict=True):
            taken.append(metrics)
            factor = 2 if stage == "warm-up" else 3
            loss, divergence = lately(taken)
            note = f"{self.name} {stage}: {part.length} tokens, loss {loss:.3f}, indexer's {divergence:.3f}"
            self.progress.advance(factor * part.rows * _tokens(part.length), note=note)
        return taken


def lately(taken: list[StepMetrics]) -> tuple[float, float]:
    """Means over the last steps of the loss and the indexer's, nats; 0 where it did not learn."""
    last = taken[-10:]
    divergences = [m.indexer_loss for m in last if m.indexer_loss == m.indexer_loss]
    return float(np.mean([m.loss for m in last])), float(np.mean(divergences)) if divergences else 0.0


def _tokens(length: int) -> int:
    """What a row costs, in tokens without attention."""
    return length + length * length // 2048


def _cost(parts: tuple[Part, ...]) -> int:
    return sum(part.steps * part.rows * _tokens(part.length) for part in parts)


def read_results(out: Path) -> list[dict[str, Any]]:
    return [json.loads(path.read_text(encoding="utf-8")) for path in sorted(out.glob("*-*-*.json"))]


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="models and results")
    parser.add_argument("--tasks", nargs="+", choices=tuple(RECIPES), default=list(RECIPES))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    names = (*TRAINED, "oracle")
    parser.add_argument("--selectors", nargs="+", choices=names, default=list(names))
    parser.add_argument("--threads", type=int, default=1, help="torch threads (default: 1)")
    parser.add_argument(
        "--quick", action="store_true", help="a few steps: checks the script, compares nothing"
    )
    parser.add_argument("--plot", type=Path, metavar="FILE", help="draw what DIR holds (.svg or .png)")
    parser.add_argument("--json", action="store_true", help="end with one JSON object on standard output")
    args = parser.parse_args(argv)
    torch.set_num_threads(args.threads)
    recipes = {name: quick(RECIPES[name]) if args.quick else RECIPES[name] for name in args.tasks}
    for name, recipe in recipes.items():
        check_settings(args.out / f"{name}-recipe.json", asdict(recipe))
    with Progress("selectors", total=None) as progress:
        tasks = {name: make_task(name) for name in args.tasks}
        studies = [
            Study(task=tasks[name], recipe=recipes[name], seed=seed, out=args.out, progress=progress)
            for seed in args.seeds
            for name in args.tasks
        ]
        progress.total = sum(
            work
            for study in studies
            for stage, work in study.work().items()
            if stage in ("pre-training", "warm-up") or stage in args.selectors
        )
        for study in studies:
            study.run(args.selectors)
    results = read_results(args.out)
    if args.plot:
        plot(results, args.plot)
    print(json.dumps({"results": results}) if args.json else table(results))
    return 0


if __name__ == "__main__":
    sys.exit(main())
