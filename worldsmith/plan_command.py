"""What a model costs before it is trained or served: parameters, cache, work a token, price, training memory.

Example: worldsmith plan --model deepseek-v3.2 --gpus 2048 --expert-parallel 64

Dense attention stands beside sparse. Parameters are counted on a module that is built without memory; `total`
and `active` as DeepSeek states them, without indexers and prediction modules, which have lines of their own.
Prices are dollars per million tokens at one position, from the work of a token and shares of the GPU's peak
that are fitted to DeepSeek's published curve: good for comparing contexts and sizes, not a quotation.
"""

import argparse
import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from policies.model.config import ModelConfig, check_config, read_config, read_config_file, tiny_config
from worldsmith.arguments import CommandParser, did_you_mean
from worldsmith.capacity import (
    Machine,
    TokenWork,
    TrainingPlan,
    WorkModel,
    count_parameters,
    crossing,
    fewest_gpus,
    prices,
    training_memory,
)

FURTHEST = 1 << 20
"""Crossings are looked for up to this position."""


def _deepseek_v32() -> ModelConfig:
    return ModelConfig(num_nextn_predict_layers=1)


def _scaled() -> ModelConfig:
    """The same architecture with more layers, more experts and wider ones: nobody's released model."""
    return ModelConfig(
        num_hidden_layers=72, n_routed_experts=416, moe_intermediate_size=2560, num_nextn_predict_layers=1
    )


MODELS: dict[str, Callable[[], ModelConfig]] = {
    "tiny": lambda: tiny_config(1024),
    "deepseek-v3.2": _deepseek_v32,
    "scaled-1.6t": _scaled,
}


def main(argv: list[str]) -> int:
    parser = _parser()
    args = parser.parse_args(argv)
    try:
        machine = Machine(
            bf16_tflops=args.bf16_tflops,
            fp8_tflops=args.fp8_tflops,
            memory_gb=args.gpu_memory_gb,
            dollars_per_hour=args.dollars_per_gpu_hour,
        )
        contexts = _contexts(args.contexts)
        config = find_config(args.model)
        plan = TrainingPlan(
            gpus=args.gpus, expert_parallel=args.expert_parallel, tokens_per_gpu=args.tokens_per_gpu
        )
        report = make_report(config, machine, contexts, plan)
    except ValueError as error:
        parser.exit(2, f"{parser.prog}: {error}\n")
    report = {"model": args.model} | report
    print(json.dumps(report) if args.json else show(report))
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = CommandParser("plan", __doc__)
    machine, plan = Machine(), TrainingPlan(gpus=1)
    parser.add_argument(
        "--model", required=True, help=f"{', '.join(MODELS)}, a config.json or a model directory"
    )
    parser.add_argument(
        "--contexts",
        default="1024,8192,32768,131072",
        help="positions to tell the price at (default: %(default)s)",
    )
    parser.add_argument("--dollars-per-gpu-hour", type=float, default=machine.dollars_per_hour, metavar="X")
    parser.add_argument("--gpu-memory-gb", type=float, default=machine.memory_gb, metavar="GB")
    parser.add_argument("--bf16-tflops", type=float, default=machine.bf16_tflops, metavar="T")
    parser.add_argument("--fp8-tflops", type=float, default=machine.fp8_tflops, metavar="T")
    parser.add_argument(
        "--gpus", type=int, default=plan.gpus, help="to train on, all of them sharding (default: 1)"
    )
    parser.add_argument(
        "--expert-parallel", type=int, default=1, metavar="N", help="GPUs that share out the experts"
    )
    parser.add_argument("--tokens-per-gpu", type=int, default=plan.tokens_per_gpu, metavar="N")
    parser.add_argument(
        "--json", action="store_true", help="one JSON object on the last line of standard output"
    )
    return parser


def find_config(model: str) -> ModelConfig:
    """A configuration by name, file or directory. Raises ValueError, one line, when there is none."""
    if model in MODELS:
        config = MODELS[model]()
        check_config(config)
        return config
    path = Path(model)
    if path.is_dir():
        return read_config(path)
    if path.is_file():
        return read_config_file(path)
    raise ValueError(
        f"--model {model!r} is neither a file nor a directory nor one of {', '.join(MODELS)}"
        f"{did_you_mean(model, list(MODELS))}"
    )


def _contexts(text: str) -> list[int]:
    try:
        contexts = [int(word) for word in text.split(",")]
    except ValueError:
        contexts = []
    if not contexts or min(contexts) < 0 or max(contexts) > FURTHEST:
        raise ValueError(f"--contexts must be whole numbers from 0 to {FURTHEST}, with commas, got {text!r}")
    return contexts


def make_report(
    config: ModelConfig, machine: Machine, contexts: list[int], plan: TrainingPlan
) -> dict[str, Any]:
    """Everything that is told, as the JSON has it. Raises ValueError for a plan that does not divide up."""
    plan.check(config)
    parameters = count_parameters(config)
    work = WorkModel(config=config, parameters=parameters)
    memory = training_memory(config, parameters, plan)
    return {
        "parameters": asdict(parameters) | {"checkpoint": parameters.checkpoint},
        "cache": {
            "dense_bytes_per_token": work.cache_bytes(sparse=False),
            "sparse_bytes_per_token": work.cache_bytes(sparse=True),
        },
        "contexts": [_at(work, machine, position) for position in contexts],
        "sparse_cheaper_from": {
            "prefill": crossing(
                lambda at: (found := prices(work, machine, at)).prefill_sparse > found.prefill_dense, FURTHEST
            ),
            "decode": crossing(
                lambda at: (found := prices(work, machine, at)).decode_sparse > found.decode_dense, FURTHEST
            ),
        },
        "training": asdict(plan)
        | asdict(memory)
        | {
            "total": memory.total,
            "fits": memory.total <= machine.memory_gb * 1e9,
            "fewest_gpus": fewest_gpus(config, parameters, plan, machine.memory_gb),
        },
    }


def _at(work: WorkModel, machine: Machine, position: int) -> dict[str, Any]:
    def told(token: TokenWork) -> dict[str, int]:
        return {"flops": token.flops, "read_bytes": token.read_bytes}

    return {
        "position": position,
        "cache_bytes": (position + 1) * work.cache_bytes(sparse=True),
        "prefill_dense": told(work.prefill(position, sparse=False)),
        "prefill_sparse": told(work.prefill(position, sparse=True)),
        "decode_dense": told(work.decode(position, sparse=False)),
        "decode_sparse": told(work.decode(position, sparse=True)),
        "dollars_per_million": asdict(prices(work, machine, position)),
    }


def show(report: dict[str, Any]) -> str:
    """The report as tables."""
    counts, cache = report["parameters"], report["cache"]
    lines = [f"{report['model']}", "", "parameters"]
    for name, meaning in (
        ("total", "without indexers and prediction modules"),
        ("active", "of these, what one token is multiplied with"),
        ("indexer", "lightning indexers"),
        ("prediction", "multi-token-prediction modules"),
        ("checkpoint", "all of them"),
    ):
        lines.append(f"  {name:<12}{_amount(counts[name]):>10}  {meaning}")
    lines += [
        "",
        f"cache: {cache['dense_bytes_per_token']:,} bytes a token, with index keys"
        f" {cache['sparse_bytes_per_token']:,}",
        "",
        f"{'one token at':>14}{'FLOPs, dense and sparse':>28}{'cache read':>24}{'$ per million tokens':>26}",
    ]
    for row in report["contexts"]:
        for phase in ("prefill", "decode"):
            dense, sparse = row[f"{phase}_dense"], row[f"{phase}_sparse"]
            dollars = row["dollars_per_million"]
            pairs = (
                (_amount(dense["flops"]), _amount(sparse["flops"])),
                (_amount(dense["read_bytes"]) + "B", _amount(sparse["read_bytes"]) + "B"),
                (f"{dollars[phase + '_dense']:.3g}", f"{dollars[phase + '_sparse']:.3g}"),
            )
            cells = "".join(f"{left:>14}{right:>11}" for left, right in pairs)
            lines.append(f"{row['position']:>8,} {phase:<8}{cells}")
    for phase, place in report["sparse_cheaper_from"].items():
        where = "nowhere" if place is None else f"from position {place:,} on"
        lines.append(f"  sparse attention is the cheaper one in {phase} {where}")
    return "\n".join([*lines, "", *_training_lines(report["training"])])


def _training_lines(training: dict[str, Any]) -> list[str]:
    fewest = training["fewest_gpus"]
    return [
        f"training on {training['gpus']:,} GPUs, experts shared out over {training['expert_parallel']},"
        f" {training['tokens_per_gpu']:,} tokens each, bytes a GPU",
        *(
            f"  {name:<12}{_amount(training[name]):>10}B"
            for name in ("state", "gathered", "activations", "total")
        ),
        f"  {'fits' if training['fits'] else 'does not fit'};"
        + (" no number of GPUs is enough so" if fewest is None else f" at least {fewest:,} GPUs are needed"),
    ]


def _amount(value: float) -> str:
    """Three digits and a unit: 671 G for 671,000,000,000."""
    for unit in ("", "k", "M", "G", "T", "P"):
        if abs(value) < 999.5:
            return f"{value:.3g} {unit}"
        value /= 1000
    return f"{value:.3g} E"
