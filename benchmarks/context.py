"""Measure how sparse attention grows with the context, beside dense attention of the same weights.

One decoder in DeepSeek-V3.2's proportions (absorbed attention 3.4 times the work of MHA a pair, the indexer a
tenth of MHA), index_topk 512, fp32 or, with --dtype, bf16. Prefill: one prompt, read in both modes of sparse
attention and densely; decoding: 4 sequences, one token each. Time and growth of peak memory, each in a
process of its own, dense and sparse in turn; the last line of --json is one JSON object, --plot draws it with
what the arithmetic predicts.

Run as a module: `python -m benchmarks.context`.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch

from policies.engine import Engine, Sampling
from policies.model.cache import allocate_cache
from policies.model.config import ModelConfig, tiny_config
from policies.model.decode import FusedDecoder, NewTokens, gathered_prefill_from
from policies.model.decoder import WorldsmithForCausalLM

LENGTHS = (1024, 2048, 4096, 8192, 16384, 32768)
TOP_K = 512
NUM_DECODING = 4
VOCAB = 1024
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
LONG_ENOUGH = 2.0
"""Seconds."""


def make_config(selector: str) -> ModelConfig:
    return tiny_config(
        VOCAB,
        token_selector=selector,
        hidden_size=256,
        num_hidden_layers=2,
        num_attention_heads=16,
        num_key_value_heads=16,
        qk_nope_head_dim=32,
        qk_rope_head_dim=16,
        v_head_dim=32,
        kv_lora_rank=128,
        q_lora_rank=128,
        index_n_heads=4,
        index_head_dim=32,
        index_topk=TOP_K,
        max_position_embeddings=LENGTHS[-1] + 1,
    )


def pair_macs(config: ModelConfig) -> dict[str, int]:
    """Multiply-adds for a query and a key in a layer."""
    heads, rope = config.num_attention_heads, config.qk_rope_head_dim
    return {
        "mha": heads * (config.qk_nope_head_dim + rope + config.v_head_dim),
        "mqa": heads * (2 * config.kv_lora_rank + rope),
        "indexer": config.index_n_heads * config.index_head_dim,
    }


def make_model(selector: str, dtype: torch.dtype) -> WorldsmithForCausalLM:
    torch.manual_seed(0)
    model = WorldsmithForCausalLM(make_config(selector)).eval()
    torch.nn.Module.to(model, dtype)
    return model


def prefill(selector: str, mode: str, length: int, dtype: torch.dtype) -> Callable[[], None]:
    """Reads one prompt to its first sampled token."""
    model = make_model(selector, dtype)
    prompt = torch.randint(0, VOCAB, (length,), generator=torch.Generator().manual_seed(1)).tolist()
    gathered = {"gathered": 0, "masked": length, "chosen": gathered_prefill_from(model.config) or length}[
        mode
    ]

    def run() -> None:
        engine = Engine(model, num_slots=1, max_length=length + 1, stop_token_ids=[])
        engine.gathered_from = gathered
        engine.open(prompt, seed=0, sampling=Sampling(max_new_tokens=1))
        while not engine.step():
            pass

    return run


def decode(selector: str, length: int, dtype: torch.dtype) -> Callable[[], None]:
    """One token for each of a few sequences whose caches hold `length` tokens."""
    fused = FusedDecoder(make_model(selector, dtype))
    cache = allocate_cache(fused.config, NUM_DECODING, length + 1, fused.dtype)
    cache.latents.normal_()
    cache.index_keys.normal_()
    slots = torch.arange(NUM_DECODING)
    tokens = NewTokens(
        ids=slots,
        slots=slots,
        positions=torch.full((NUM_DECODING,), length),
        num_cached=length + 1,
        fewest=length + 1,
    )

    def run() -> None:
        with torch.inference_mode():
            fused.forward(tokens, cache, slots)

    return run


def peak_kib() -> int:
    status = Path("/proc/self/status").read_text()
    return int(next(line for line in status.splitlines() if line.startswith("VmHWM")).split()[1])


def measure(run: Callable[[], None], seconds: float) -> dict[str, float]:
    """Median seconds over repeats that take about so long, and the growth of the peak resident size.

    A first run is a warm-up, unless it takes so long that warmth makes no difference.
    """
    Path("/proc/self/clear_refs").write_text("5")
    before = peak_kib()
    times = [_seconds(run)]
    if times[0] < LONG_ENOUGH:
        times = [_seconds(run)]
        while sum(times) < seconds:
            times.append(_seconds(run))
    return {"seconds": statistics.median(times), "peak_mib": round((peak_kib() - before) / 1024, 1)}


def _seconds(run: Callable[[], None]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def series() -> dict[str, tuple[str, ...]]:
    return {
        "decode dense": ("decode", "dense"),
        "decode sparse": ("decode", "lightning"),
        "prefill dense": ("prefill", "dense", "masked"),
        "prefill sparse, masked MHA": ("prefill", "lightning", "masked"),
        "prefill sparse, gathered": ("prefill", "lightning", "gathered"),
    }


def measure_one(name: str, length: int, seconds: float, dtype: torch.dtype) -> dict[str, float]:
    """In this process."""
    kind, *how = series()[name]
    if kind == "decode":
        return measure(decode(how[0], length, dtype), seconds)
    return measure(prefill(how[0], how[1], length, dtype), seconds)


def predicted(config: ModelConfig) -> dict[str, Callable[[int], float]]:
    """Multiply-adds of attention and indexer a layer, of a decoded token or of a whole prompt."""
    work = pair_macs(config)

    def pairs(length: int) -> int:
        """Query and key pairs of a prompt in which a query sees at most k keys."""
        full = min(length, TOP_K)
        return full * (full + 1) // 2 + max(0, length - TOP_K) * TOP_K

    return {
        "decode dense": lambda n: n * work["mqa"],
        "decode sparse": lambda n: min(n, TOP_K) * work["mqa"] + n * work["indexer"],
        "prefill dense": lambda n: n * n / 2 * work["mha"],
        "prefill sparse, masked MHA": lambda n: n * n / 2 * (work["mha"] + work["indexer"]),
        "prefill sparse, gathered": lambda n: pairs(n) * work["mqa"] + n * n / 2 * work["indexer"],
    }


def plot(report: dict, path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, 3, figsize=(13, 4.2), layout="constrained")
    expected = predicted(make_config("lightning"))
    colours = dict(zip(series(), ("C0", "C1", "C0", "C2", "C1"), strict=True))
    for name, rows in report["series"].items():
        lengths = [row["length"] for row in rows]
        axis = axes[0] if name.startswith("decode") else axes[1]
        label = name.split(" ", 1)[1]
        axis.plot(lengths, [1e3 * row["seconds"] for row in rows], "o-", color=colours[name], label=label)
        # The arithmetic has no unit of time: it is drawn through the dense curve's last point.
        dense = report["series"][name.split()[0] + " dense"][-1]
        scale = dense["seconds"] / expected[name.split()[0] + " dense"](dense["length"])
        axis.plot(
            lengths, [1e3 * scale * expected[name](n) for n in lengths], "--", color=colours[name], alpha=0.6
        )
        axes[2].plot(
            lengths,
            [max(row["peak_mib"], 0.1) for row in rows],
            "s--" if name.startswith("decode") else "o-",
            color=colours[name],
            label=name,
        )
    titles = (
        f"decode, {NUM_DECODING} sequences: ms a step",
        "prefill: ms a prompt",
        "growth of peak memory, MiB",
    )
    for axis, title in zip(axes, titles, strict=True):
        axis.set(title=title, xscale="log", yscale="log", xlabel="tokens of context")
        axis.set_xticks(LENGTHS, [f"{n // 1024}k" for n in LENGTHS])
        axis.minorticks_off()
        axis.legend(fontsize=8)
    figure.suptitle("measured (solid) and multiply-adds (dashed)")
    figure.savefig(path)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--seconds", type=float, default=1.0, help="repeat each for about so long (default: 1)"
    )
    parser.add_argument("--shortest", type=int, default=0, help="leave out shorter contexts")
    parser.add_argument("--longest", type=int, default=LENGTHS[-1], help="leave out longer contexts")
    parser.add_argument("--only", choices=("decode", "prefill"), help="measure one part")
    parser.add_argument("--dtype", choices=tuple(DTYPES), default="fp32", help="precision (default: fp32)")
    parser.add_argument(
        "--merge",
        type=Path,
        nargs="*",
        default=[],
        metavar="FILE",
        help="add what earlier runs with --json wrote",
    )
    parser.add_argument("--plot", type=Path, metavar="FILE", help="draw the curves (.svg or .png)")
    parser.add_argument("--json", action="store_true", help="end with one JSON object on standard output")
    parser.add_argument(
        "--one", nargs=2, metavar=("SERIES", "LENGTH"), help="measure one point in this process"
    )
    args = parser.parse_args(argv)
    if args.one:
        torch.set_num_threads(os.cpu_count() or 1)
        print(json.dumps(measure_one(args.one[0], int(args.one[1]), args.seconds, DTYPES[args.dtype])))
        return 0
    report: dict = {
        "dtype": args.dtype,
        "index_topk": TOP_K,
        "pair_macs": pair_macs(make_config("lightning")),
        "series": {},
    }
    report["gathered_prefill_from"] = gathered_prefill_from(make_config("lightning"))
    names = [name for name in series() if not args.only or name.startswith(args.only)]
    for length in [n for n in LENGTHS if args.shortest <= n <= args.longest]:
        for name in names:
            command = [sys.executable, "-m", "benchmarks.context", "--one", name, str(length)]
            command += ["--seconds", str(args.seconds), "--dtype", args.dtype]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode:
                print(done.stderr[-2000:], file=sys.stderr)
                return 1
            row = {"length": length, **json.loads(done.stdout.splitlines()[-1])}
            report["series"].setdefault(name, []).append(row)
            print(f"{name}, {length}: {row}", file=sys.stderr, flush=True)
    for earlier in args.merge:
        found = json.loads(earlier.read_text().splitlines()[-1])["series"]
        for name, rows in found.items():
            report["series"][name] = sorted(
                [*rows, *report["series"].get(name, [])], key=lambda row: row["length"]
            )
    if args.plot:
        plot(report, args.plot)
    print(json.dumps(report, indent=None if args.json else 2))
    return 0


if __name__ == "__main__":
    sys.exit(main())
