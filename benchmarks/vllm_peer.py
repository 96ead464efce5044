"""vLLM on the CPU as a peer of our engine: a process of its own that serves a model's weights densely.

vLLM's CPU build refuses DeepSeek-V3.2's sparse attention, so the weights go to it as DeepSeek-V3, without the
indexer. It runs in a child process, which reads one request a line and answers with one JSON object a line.
"""

# pyright: reportMissingImports=false

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from policies.model.checkpoint import WEIGHTS, save_model
from policies.model.decoder import WorldsmithForCausalLM
from policies.vllm_packages import HOW_TO_INSTALL, add_vllm, has_vllm

_OURS_ALONE = (
    "token_selector",
    "selector_seed",
    "index_",
    "lsh_",
    "layer_types",
    "mlp_layer_types",
    "head_dim",
)
CACHE_BYTES = 1 << 30


def save_dense(model: WorldsmithForCausalLM, directory: Path) -> None:
    """As a DeepSeek-V3 directory."""
    save_model(model, directory)
    config = json.loads((directory / "config.json").read_text(encoding="utf-8"))
    kept = {key: value for key, value in config.items() if not key.startswith(_OURS_ALONE)}
    kept |= {
        "architectures": ["DeepseekV3ForCausalLM"],
        "model_type": "deepseek_v3",
        "topk_method": "noaux_tc",
        "scoring_func": "sigmoid",
        "moe_layer_freq": 1,
    }
    (directory / "config.json").write_text(json.dumps(kept), encoding="utf-8")
    tensors = load_file(directory / WEIGHTS)
    own = {name: value for name, value in tensors.items() if ".indexer." not in name}
    save_file(own, directory / WEIGHTS, metadata={"format": "pt"})


@torch.no_grad()
def dense_logps(model: WorldsmithForCausalLM, ids_T: Tensor) -> list[float]:
    """Of each token after the first, nats."""
    out = model.eval()(ids_T[None, :-1], targets=ids_T[None, 1:])
    return out.target_logps[0].tolist()


class VllmPeer:
    """Used as a context manager. Raises ValueError when vLLM is not installed."""

    def __init__(self, model: WorldsmithForCausalLM, *, rows: int, length: int, threads: int) -> None:
        if not has_vllm():
            raise ValueError(HOW_TO_INSTALL)
        self._folder = tempfile.TemporaryDirectory(prefix="worldsmith-vllm-peer-")
        directory = Path(self._folder.name) / "model"
        save_dense(model, directory)
        dtype = str(model.dtype).removeprefix("torch.")
        command = [
            sys.executable,
            "-m",
            "benchmarks.vllm_peer",
            str(directory),
            dtype,
            str(rows),
            str(length),
        ]
        environment = os.environ | {
            "VLLM_MLA_DISABLE": "1",  # its kernel for latents knows those of 512 + 64 alone
            "VLLM_PLUGINS": "",
            "VLLM_NO_USAGE_STATS": "1",
            "VLLM_LOGGING_LEVEL": "ERROR",
            "VLLM_CPU_OMP_THREADS_BIND": "nobind",
            "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
            "OMP_NUM_THREADS": str(threads),
            "HF_HUB_OFFLINE": "1",
        }
        self._child = subprocess.Popen(
            command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def __enter__(self) -> Self:
        self._answer()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._child.stdin is not None
        self._child.stdin.close()
        try:
            self._child.wait(timeout=30)
        except subprocess.TimeoutExpired:
            self._child.kill()
            self._child.wait()
        self._folder.cleanup()

    def generate(self, prompts_BT: Tensor, num_new: int) -> None:
        """So many sampled tokens for each prompt."""
        told = self._ask({"prompts": prompts_BT.tolist(), "new": num_new})
        assert told["tokens"] == len(prompts_BT) * num_new

    def score(self, ids_T: Tensor) -> list[float]:
        """Log-probabilities of each token after the first, nats."""
        return self._ask({"score": ids_T.tolist()})["logps"]

    def _ask(self, request: dict[str, Any]) -> dict[str, Any]:
        assert self._child.stdin is not None
        self._child.stdin.write(json.dumps(request) + "\n")
        self._child.stdin.flush()
        return self._answer()

    def _answer(self) -> dict[str, Any]:
        """The next line that is an answer: libraries may print lines of their own."""
        assert self._child.stdout is not None
        for line in self._child.stdout:
            if line.startswith('{"peer": true'):
                return json.loads(line)
        raise RuntimeError(f"vLLM's process ended with {self._child.wait()}; its messages are above")


def serve(directory: str, dtype: str, rows: int, length: int) -> None:
    from vllm import LLM, SamplingParams

    engine = LLM(
        model=directory,
        dtype=dtype,
        skip_tokenizer_init=True,
        generation_config="vllm",
        max_model_len=length + 1,
        max_num_seqs=rows,
        kv_cache_memory_bytes=CACHE_BYTES,
        enable_prefix_caching=False,
        enforce_eager=True,
        # vLLM's CPU rotary kernel leaves heads of a three-dimensional query unrotated.
        compilation_config={"custom_ops": ["all", "-rotary_embedding"]},
    )
    _tell({})
    for line in sys.stdin:
        request = json.loads(line)
        if "score" in request:
            params = SamplingParams(max_tokens=1, temperature=0.0, prompt_logprobs=0, detokenize=False)
            (output,) = engine.generate({"prompt_token_ids": request["score"]}, params, use_tqdm=False)
            pairs = zip(output.prompt_logprobs[1:], request["score"][1:], strict=True)
            _tell({"logps": [row[token].logprob for row, token in pairs]})
            continue
        started = time.perf_counter()
        params = SamplingParams(max_tokens=request["new"], ignore_eos=True, detokenize=False)
        prompts = [{"prompt_token_ids": ids} for ids in request["prompts"]]
        outputs = engine.generate(prompts, params, use_tqdm=False)
        tokens = sum(len(output.outputs[0].token_ids) for output in outputs)
        _tell({"tokens": tokens, "seconds": time.perf_counter() - started})


def _tell(answer: dict[str, Any]) -> None:
    print(json.dumps({"peer": True} | answer), flush=True)


if __name__ == "__main__":
    add_vllm()
    serve(sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))
