"""Measure our model against transformers' DeepseekV32ForCausalLM, alternately, in one process.

Training: forward, cross-entropy and backward on [16, 512] tokens, sparse attention on in both, beside what
plain matrix products reach. Generation: 64 sequences at once, prompts of 200 tokens, 128 sampled tokens each.
Theirs runs in its fastest implementation, chosen here by a trial. With --dtype bf16 both train under autocast
and generate with 16-bit weights. Batches: the engine alone, 1 to 256 sequences at once, 64 sampled tokens
each. vLLM: generation against vLLM on the CPU (`make vllm-cpu`), which serves the same sizes densely. Medians
over the rounds; the last line of --json is one JSON object.

Run as a module: `python -m benchmarks.model`.
"""

import argparse
import functools
import json
import os
import platform
import statistics
import sys
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass

import torch
import transformers
from torch import Tensor
from torch.nn import functional
from torch.utils.flop_counter import FlopCounterMode
from transformers import DeepseekV32Config, DeepseekV32ForCausalLM

from benchmarks.vllm_peer import VllmPeer, dense_logps
from policies.engine import Engine, Sampling
from policies.model.config import ModelConfig, tiny_config
from policies.model.decoder import WorldsmithForCausalLM

VOCAB = 1024
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
Clock = Callable[[], float]


@dataclass(frozen=True, kw_only=True)
class Setting:
    rounds: int
    quick: bool
    clock: Clock
    dtype: torch.dtype


def seconds(run: Callable[[], None], clock: Clock) -> float:
    start = clock()
    run()
    return clock() - start


def make_pair(config: ModelConfig) -> tuple[WorldsmithForCausalLM, DeepseekV32ForCausalLM]:
    """Two networks with the same weights."""
    torch.manual_seed(0)
    ours = WorldsmithForCausalLM(config)
    return ours, as_transformers(ours)


def as_transformers(ours: WorldsmithForCausalLM) -> DeepseekV32ForCausalLM:
    theirs = DeepseekV32ForCausalLM(DeepseekV32Config(**ours.config.to_dict()))
    theirs.load_state_dict(ours.state_dict())
    return theirs


def train_step(model: torch.nn.Module, ids: Tensor, dtype: torch.dtype, **options: object) -> None:
    """One forward and backward of next-token cross-entropy; ours scores targets, as our trainers do."""
    model.train()
    model.zero_grad()
    with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
        loss = _loss(model, ids, **options)
    loss.backward()


def _loss(model: torch.nn.Module, ids: Tensor, **options: object) -> Tensor:
    if isinstance(model, WorldsmithForCausalLM):
        targets = functional.pad(ids[:, 1:], (0, 1), value=-1)
        out = model(ids, targets=targets, **options)  # pyright: ignore[reportArgumentType]
        loss = -out.target_logps.sum() / targets[:, 1:].numel()
        return loss + out.indexer_loss if options.get("indexer_loss") else loss
    logits = model(ids, use_cache=False).logits
    return functional.cross_entropy(logits[:, :-1].flatten(0, 1).float(), ids[:, 1:].flatten())


def matrix_limit(dtype: torch.dtype, clock: Clock) -> float:
    """FLOPs a second of one large product, the best of a few."""
    size = 2048
    left, right = (torch.randn(size, size).to(dtype) for _ in range(2))

    def multiply() -> None:
        torch.mm(left, right)

    return 2 * size**3 / min(seconds(multiply, clock) for _ in range(8))


def products_of(run: Callable[[], None]) -> int:
    """FLOPs of the matrix products that it takes."""
    with FlopCounterMode(display=False) as counter:
        run()
    return counter.get_total_flops()


def padded_step(model: WorldsmithForCausalLM, ids: Tensor, mask: Tensor) -> None:
    model.train()
    model.zero_grad()
    targets = functional.pad(ids.masked_fill(mask == 0, -1)[:, 1:], (0, 1), value=-1)
    out = model(ids, mask, targets=targets)
    (-out.target_logps.sum() / int((targets >= 0).sum())).backward()


def generate_ours(model: WorldsmithForCausalLM, prompts: Tensor, num_new: int) -> None:
    model.eval()
    length = prompts.shape[1] + num_new
    engine = Engine(model, num_slots=len(prompts), max_length=length + 1, stop_token_ids=[])
    for row, prompt in enumerate(prompts.tolist()):
        engine.open(prompt, seed=row, sampling=Sampling(max_new_tokens=num_new))
    ended = 0
    while ended < len(prompts):
        ended += len(engine.step())


def generate_theirs(model: DeepseekV32ForCausalLM, prompts: Tensor, num_new: int) -> None:
    model.eval()
    with torch.inference_mode():
        out = model.generate(  # pyright: ignore[reportAttributeAccessIssue]
            prompts,
            attention_mask=torch.ones_like(prompts),
            do_sample=True,
            top_k=0,
            max_new_tokens=num_new,
            min_new_tokens=num_new,
            use_cache=True,
            pad_token_id=0,
        )
    assert out.shape[1] == prompts.shape[1] + num_new


def fastest_of_theirs(theirs: DeepseekV32ForCausalLM, run: Callable[[], None], clock: Clock) -> str:
    """Leave transformers' model in the implementation that `run` is quickest with."""
    times = {}
    for attention, experts in (("sdpa", "grouped_mm"), ("sdpa", "eager"), ("eager", "grouped_mm")):
        theirs.set_attn_implementation(attention)
        theirs.set_experts_implementation(experts)
        run()
        times[attention, experts] = seconds(run, clock)
        print(f"theirs with {attention}, {experts}: {times[attention, experts]:.2f} s", file=sys.stderr)
    best = min(times, key=lambda pair: times[pair])
    theirs.set_attn_implementation(best[0])
    theirs.set_experts_implementation(best[1])
    return "+".join(best)


def alternate(runs: dict[str, Callable[[], None]], rounds: int, clock: Clock) -> dict[str, float]:
    """Median seconds of each, taken in turn so that a busy moment hits all of them."""
    taken: dict[str, list[float]] = {name: [] for name in runs}
    for name, run in runs.items():
        run()
        print(f"warmed up: {name}", file=sys.stderr)
    for _ in range(rounds):
        for name, run in runs.items():
            taken[name].append(seconds(run, clock))
    return {name: statistics.median(values) for name, values in taken.items()}


def measure_training(how: Setting) -> dict[str, object]:
    shape = (4, 256) if how.quick else (16, 512)
    config = tiny_config(VOCAB, index_topk=shape[1] // 4)
    ours, theirs = make_pair(config)
    ids = torch.randint(0, VOCAB, shape)
    implementation = fastest_of_theirs(theirs, lambda: train_step(theirs, ids, how.dtype), how.clock)
    medians = alternate(
        {
            "theirs": lambda: train_step(theirs, ids, how.dtype),
            "ours": lambda: train_step(ours, ids, how.dtype),
            "ours_with_sparse_kl": lambda: train_step(ours, ids, how.dtype, indexer_loss="sparse"),
        },
        how.rounds,
        how.clock,
    )
    limit = matrix_limit(how.dtype, how.clock)
    products = products_of(lambda: train_step(ours, ids, how.dtype))
    return {
        "shape": list(shape),
        "index_topk": config.index_topk,
        "their_implementation": implementation,
        "tokens_per_s": {name: round(ids.numel() / value) for name, value in medians.items()},
        "ratio": round(medians["theirs"] / medians["ours"], 2),
        "ratio_with_sparse_kl": round(medians["theirs"] / medians["ours_with_sparse_kl"], 2),
        "matrix_limit_gflops": round(limit / 1e9, 1),
        "products_gflop_a_step": round(products / 1e9, 2),
        "share_of_matrix_limit": round(products / medians["ours"] / limit, 3),
    }


def measure_generation(how: Setting) -> dict[str, object]:
    rows, prompt, new = (8, 40, 16) if how.quick else (64, 200, 128)
    config = tiny_config(VOCAB, index_topk=32 if how.quick else 128)
    ours, theirs = make_pair(config)
    for model in (ours, theirs):
        torch.nn.Module.to(model, how.dtype)
    prompts = torch.randint(0, VOCAB, (rows, prompt))
    trial = min(new, 8)
    implementation = fastest_of_theirs(theirs, lambda: generate_theirs(theirs, prompts, trial), how.clock)
    medians = alternate(
        {
            "theirs": lambda: generate_theirs(theirs, prompts, new),
            "ours": lambda: generate_ours(ours, prompts, new),
        },
        how.rounds,
        how.clock,
    )
    return {
        "rows": rows,
        "prompt": prompt,
        "new_tokens": new,
        "index_topk": config.index_topk,
        "their_implementation": implementation,
        "tokens_per_s": {name: round(rows * new / value) for name, value in medians.items()},
        "ratio": round(medians["theirs"] / medians["ours"], 2),
    }


def measure_vllm(how: Setting, threads: int) -> dict[str, object]:
    """vLLM serves densely, heads of 64 (it knows no 48); ours the same sizes, densely and sparsely."""
    rows, prompt, new = (8, 40, 16) if how.quick else (64, 200, 128)
    models = {}
    for selector in ("dense", "lightning"):
        torch.manual_seed(0)
        config = tiny_config(VOCAB, qk_nope_head_dim=48, index_topk=128, token_selector=selector)
        models[selector] = WorldsmithForCausalLM(config)
        torch.nn.Module.to(models[selector], how.dtype)
    prompts = torch.randint(0, VOCAB, (rows, prompt))
    with VllmPeer(models["dense"], rows=rows, length=prompt + new, threads=threads) as peer:
        off = max(
            abs(a - b)
            for a, b in zip(peer.score(prompts[0]), dense_logps(models["dense"], prompts[0]), strict=True)
        )
        medians = alternate(
            {
                "vllm": lambda: peer.generate(prompts, new),
                "ours_dense": lambda: generate_ours(models["dense"], prompts, new),
                "ours_sparse": lambda: generate_ours(models["lightning"], prompts, new),
            },
            how.rounds,
            how.clock,
        )
    return {
        "rows": rows,
        "prompt": prompt,
        "new_tokens": new,
        "largest_difference_of_log_probabilities": off,
        "tokens_per_s": {name: round(rows * new / value) for name, value in medians.items()},
        "ratio": round(medians["vllm"] / medians["ours_sparse"], 2),
        "ratio_dense": round(medians["vllm"] / medians["ours_dense"], 2),
    }


def measure_batches(how: Setting) -> list[dict[str, object]]:
    """The engine's throughput by the number of sequences at once; the cache beside what is planned."""
    prompt, new = (40, 8) if how.quick else (200, 64)
    config = tiny_config(VOCAB, index_topk=32 if how.quick else 128)
    torch.manual_seed(0)
    model = WorldsmithForCausalLM(config)
    torch.nn.Module.to(model, how.dtype)
    length = prompt + new + 1
    # Rotary keys take the room of float32, in 16 bits as two parts; index keys are float32.
    place = config.kv_lora_rank * how.dtype.itemsize + 4 * (config.qk_rope_head_dim + config.index_head_dim)
    rows: list[dict[str, object]] = []
    for count in (1, 2, 4, 8, 16, 32, 64, 128, 256):
        prompts = torch.randint(0, VOCAB, (count, prompt))
        run = functools.partial(generate_ours, model, prompts, new)
        taken = alternate({f"{count} at once": run}, how.rounds, how.clock)[f"{count} at once"]
        engine = Engine(model, num_slots=count, max_length=length, stop_token_ids=[])
        rows.append(
            {
                "sequences": count,
                "tokens_per_s": round(count * new / taken),
                "cache_bytes": engine.cache_bytes,
                "planned_bytes": place * config.num_hidden_layers * count * length,
            }
        )
    return rows


def measure_demo_shape(how: Setting, threads: int) -> dict[str, object]:
    """Rows as the demo trains on them: 64 of 62 to 200 tokens, index_topk 48; tokens are real ones."""
    config = tiny_config(VOCAB, index_topk=48)
    torch.manual_seed(0)
    model = WorldsmithForCausalLM(config)
    ids = torch.randint(0, VOCAB, (64, 200))
    lengths = torch.randint(62, 201, (64,))
    lengths[0] = 200
    mask = (torch.arange(200) < lengths[:, None]).long()
    full = torch.ones_like(ids)
    before = torch.get_num_threads()
    speeds = {}
    for count in sorted({1, threads}):
        torch.set_num_threads(count)
        medians = alternate(
            {"full": lambda: padded_step(model, ids, full), "padded": lambda: padded_step(model, ids, mask)},
            how.rounds,
            how.clock,
        )
        speeds[f"threads_{count}"] = {
            "full_rows": round(ids.numel() / medians["full"]),
            "padded_rows_real_tokens": round(int(mask.sum()) / medians["padded"]),
        }
    torch.set_num_threads(before)
    return {
        "rows": 64,
        "length": 200,
        "mean_length": round(float(lengths.float().mean()), 1),
        "tokens_per_s": speeds,
    }


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--rounds", type=int, default=5, help="measurements of each, taken in turn (default: 5)"
    )
    parser.add_argument(
        "--threads", type=int, default=os.cpu_count() or 1, help="torch threads (default: all)"
    )
    parser.add_argument(
        "--cpu-time",
        action="store_true",
        help="on a busy machine: one thread, its CPU time instead of the wall's",
    )
    parser.add_argument("--quick", action="store_true", help="small shapes: checks the script, not the speed")
    parser.add_argument(
        "--only", choices=("training", "generation", "batches", "demo", "vllm"), help="measure one part"
    )
    parser.add_argument("--dtype", choices=tuple(DTYPES), default="fp32", help="precision (default: fp32)")
    parser.add_argument("--json", action="store_true", help="end with one JSON object on standard output")
    args = parser.parse_args(argv)
    if args.rounds < 1 or args.threads < 1:
        parser.error("--rounds and --threads must be at least 1")
    if args.cpu_time:
        args.threads = 1
    clock = time.process_time if args.cpu_time else time.perf_counter
    torch.set_num_threads(args.threads)
    warnings.filterwarnings("ignore", module="transformers")
    transformers.utils.logging.set_verbosity_error()
    report: dict[str, object] = {
        "machine": {
            "cpu": platform.processor() or platform.machine(),
            "threads": args.threads,
            "clock": "cpu" if args.cpu_time else "wall",
        },
        "dtype": args.dtype,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }
    how = Setting(rounds=args.rounds, quick=args.quick, clock=clock, dtype=DTYPES[args.dtype])
    parts: dict[str, Callable[[], object]] = {
        "training": lambda: measure_training(how),
        "generation": lambda: measure_generation(how),
        "batches": lambda: measure_batches(how),
        "demo": lambda: measure_demo_shape(how, args.threads),
        "vllm": lambda: measure_vllm(how, args.threads),
    }
    for name, measure in parts.items():
        # vLLM is not in every environment: it is measured by its name alone.
        if args.only == name or (args.only is None and name != "vllm"):
            report[name] = measure()
    if args.json:
        print(json.dumps(report))
    else:
        print(json.dumps(report, indent=2))
    return 0


if __name__ == "__main__":
    sys.exit(main())
