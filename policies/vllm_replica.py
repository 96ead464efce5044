"""One vLLM engine behind asyncio calls, made to be a Ray actor: token ids in, token ids and what was
recorded of them out.

It holds no session: a request is a prefix and how to go on from it, so that another replica can go on where
this one stopped. What it has sampled since it was last asked goes out in one answer for all requests.
"""

# pyright: reportMissingImports=false

import asyncio
import os
import shutil
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from policies.model.sampling import Sampling
from policies.vllm_packages import add_vllm
from policies.vllm_plugin import ARCHITECTURE
from policies.weights import (
    PublishedWeights,
    WeightsMismatchError,
    check_arrived,
    check_canary,
    check_served,
)

KV_BYTES_AT_LEAST = 64 << 20
BLOCK_SIZE = 16
"""Tokens of a block of our model's cache: prefixes are shared by whole blocks."""


@dataclass(frozen=True, kw_only=True, slots=True)
class VllmConfig:
    """policy: a model directory. slots: requests at once. threads: of the engine's arithmetic.

    ours: whether our plugin serves it; otherwise vLLM's own class for the architecture does.
    vocab_size: None if the directory does not tell. record: whether routes are recorded, and record_selected:
    the places that sparse attention selected.
    """

    policy: str
    ours: bool
    slots: int
    max_length: int
    kv_bytes: int
    vocab_size: int | None = None
    threads: int = 1
    dtype: str = "float32"
    record: bool = True
    record_selected: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class Request:
    """Go on from `token_ids` for at most `max_new_tokens`, or to a stop token."""

    name: str
    token_ids: list[int]
    seed: int
    sampling: Sampling
    max_new_tokens: int
    stop_token_ids: list[int]


@dataclass(frozen=True, kw_only=True, slots=True)
class Sampled:
    """What a request has sampled since the last answer, n tokens; log-probabilities in nats, processed."""

    name: str
    engine_name: str
    token_ids: list[int]
    logps: list[float]
    kept_sets: list[list[int]]
    """Per token, the ids that survived top-p and top-k; empty lists where nothing was cut."""
    version: int
    ended: bool
    routes: np.ndarray | None = None
    """[T, L, K] of all tokens read, the prefix included; with `ended`."""
    selected: np.ndarray | None = None


class VllmReplica:
    """Call `start` once, then the rest at will; calls run in the caller's event loop."""

    def __init__(self, config: VllmConfig) -> None:
        self._config = config
        self._engine: Any = None
        self._records = False
        self._version = 0
        self._running: dict[str, _Running] = {}
        self._news: list[Sampled] = []
        self._has_news = asyncio.Event()
        self._failure: BaseException | None = None
        self._folder = Path(tempfile.mkdtemp(prefix="worldsmith-weights-"))
        self._published: PublishedWeights | None = None

    async def start(self, weights: Sequence[Any] = ()) -> None:
        """Starts the engine, and has it serve the weights, if given: one reference that Ray resolves.

        Raises ValueError without vLLM, WeightsMismatchError as `load`.
        """
        config = self._config
        add_vllm()
        _set_environment(config.threads)
        from vllm.engine.arg_utils import AsyncEngineArgs
        from vllm.v1.engine.async_llm import AsyncLLM

        args: dict[str, Any] = {
            "model": config.policy,
            "skip_tokenizer_init": True,
            "generation_config": "vllm",
            "dtype": config.dtype,
            "max_model_len": config.max_length,
            "max_num_seqs": config.slots,
            "kv_cache_memory_bytes": max(config.kv_bytes, KV_BYTES_AT_LEAST),
            "logprobs_mode": "processed_logprobs",
            "max_logprobs": -1,
            "enforce_eager": True,
            "enable_prefix_caching": True,
            "disable_log_stats": True,
            "worker_extension_cls": "policies.vllm_worker.WorkerCalls",
            # vLLM's CPU rotary kernel leaves heads of a three-dimensional query unrotated.
            "compilation_config": {"custom_ops": ["all", "-rotary_embedding"]},
        }
        if config.ours:
            args["block_size"] = BLOCK_SIZE
            args["hf_overrides"] = {"architectures": [ARCHITECTURE], "model_type": "worldsmith"}
        self._engine = AsyncLLM.from_engine_args(AsyncEngineArgs(**args))
        if config.ours and config.record:
            (self._records,) = await self._engine.collective_rpc(
                "worldsmith_record", args=(config.record_selected,)
            )
        for reference in weights:
            await self.load(await reference)

    async def submit(self, requests: Sequence[Request]) -> None:
        """Begin on requests; `collect` brings what they give."""
        for request in requests:
            self._running[request.name] = running = _Running(request)
            running.task = asyncio.create_task(self._run(running))

    async def collect(self, wait_s: float) -> list[Sampled]:
        """What was sampled since the last call, or nothing after `wait_s` seconds. Raises RuntimeError with
        what the engine died of.
        """
        with suppress(TimeoutError):
            await asyncio.wait_for(self._has_news.wait(), wait_s)
        if self._failure is not None:
            raise RuntimeError(f"vLLM engine: {type(self._failure).__name__}: {self._failure}")
        news, self._news = self._news, []
        self._has_news.clear()
        return await self._with_records(news)

    async def abort(self, names: Sequence[str]) -> None:
        """Stop requests and forget what they sampled."""
        await self._stop([self._running.pop(name) for name in names if name in self._running])
        self._news = [sampled for sampled in self._news if sampled.name not in set(names)]

    async def load(self, published: PublishedWeights) -> int:
        """Takes weights while nothing runs; what was running then goes on from its prefix, read anew.

        Returns the version served. Raises WeightsMismatchError naming the tensor, or the canary; the replica
        then serves, and goes on with, what it served before.
        """
        held = list(self._running.values())
        await self._stop(held)
        try:
            await self._take(published)
            self._published, self._version = published, published.version
        except WeightsMismatchError:
            await self._roll_back()
            raise
        finally:
            for running in held:
                running.task = asyncio.create_task(self._run(running))
        return self._version

    async def score(self, token_ids: Sequence[int]) -> list[float]:
        """Log-probabilities, nats, of each token after the first given those before it; at most
        `max_length` - 1 tokens.
        """
        from vllm import SamplingParams

        token_ids = token_ids[: self._config.max_length - 1]
        params = SamplingParams(max_tokens=1, temperature=0.0, prompt_logprobs=0, detokenize=False)
        prompt = {"prompt_token_ids": list(token_ids)}
        final = None
        async for output in self._engine.generate(prompt, params, f"score-{os.urandom(8).hex()}"):
            final = output
        assert final is not None
        rows = final.prompt_logprobs
        assert rows is not None
        return [row[token].logprob for row, token in zip(rows[1:], token_ids[1:], strict=True)]

    async def version(self) -> int:
        return self._version

    async def process(self) -> int:
        return os.getpid()

    async def close(self) -> None:
        await self._stop(list(self._running.values()))
        if self._engine is not None:
            self._engine.shutdown()
        shutil.rmtree(self._folder, ignore_errors=True)

    async def _run(self, running: "_Running") -> None:
        request = running.request
        try:
            running.round += 1
            prompt = {"prompt_token_ids": [*request.token_ids, *running.sampled]}
            async for output in self._engine.generate(prompt, _sampling_params(running), running.name):
                sampled = _sampled(request, output, self._version)
                running.sampled += sampled.token_ids
                self._news.append(sampled)
                self._has_news.set()
            self._running.pop(request.name, None)
        except asyncio.CancelledError:
            raise
        except Exception as error:
            self._failure = error
            self._has_news.set()

    async def _stop(self, runs: Sequence["_Running"]) -> None:
        tasks = [running.task for running in runs if running.task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        if self._records and runs:
            names = [running.name for running in runs]
            await self._engine.collective_rpc("worldsmith_take_records", args=(names,))

    async def _with_records(self, news: list[Sampled]) -> list[Sampled]:
        names = {sampled.name: sampled.engine_name for sampled in news if sampled.ended}
        if not names or not self._records:
            return news
        asked = list(names.values())
        (packed,) = await self._engine.collective_rpc("worldsmith_take_records", args=(asked,))
        records = dict(zip(names, packed, strict=True))
        return [_with_record(sampled, records.get(sampled.name)) for sampled in news]

    async def _take(self, published: PublishedWeights) -> None:
        """One update of everything, checked where it arrived, in the model, and by what it now computes."""
        check_arrived(published)
        path = self._folder / f"{published.version}.safetensors"
        save_file(dict(published.tensors), path)
        try:
            (served,) = await self._engine.collective_rpc("worldsmith_load", args=(str(path),))
        finally:
            path.unlink()
        check_served(published, served)
        await self._forget_prefixes()
        check_canary(published, await self.score(published.canary.token_ids))

    async def _roll_back(self) -> None:
        if self._published is not None:
            await self._take(self._published)
            return
        path = Path(self._config.policy) / "model.safetensors"
        await self._engine.collective_rpc("worldsmith_load", args=(str(path),))
        await self._forget_prefixes()

    async def _forget_prefixes(self) -> None:
        """Cached latents are of the old weights. Blocks of requests just stopped may take a moment."""
        while not await self._engine.reset_prefix_cache():
            await asyncio.sleep(0.01)


@dataclass(slots=True)
class _Running:
    request: Request
    sampled: list[int] = field(default_factory=list)
    round: int = 0
    """How often it was begun: once more after each update of the weights."""
    task: "asyncio.Task[None] | None" = None

    @property
    def name(self) -> str:
        return f"{self.request.name}.{self.round}"


def _set_environment(threads: int) -> None:
    """Of this process and the engine's, before vLLM is imported."""
    os.environ |= {
        "VLLM_PLUGINS": "worldsmith",
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_LOGGING_LEVEL": "ERROR",
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "VLLM_DISABLE_REQUEST_ID_RANDOMIZATION": "1",
        "OMP_NUM_THREADS": str(threads),
        "HF_HUB_OFFLINE": "1",
    }


def _sampling_params(running: _Running) -> Any:
    """The draws depend on the session's seed and the length of the prefix alone."""
    from vllm import SamplingParams
    from vllm.sampling_params import RequestOutputKind

    request, sampling = running.request, running.request.sampling
    shown = 0
    if sampling.restricts:
        shown = sampling.top_k or -1
    return SamplingParams(
        temperature=sampling.temperature,
        top_p=sampling.top_p,
        top_k=sampling.top_k or -1,
        seed=(request.seed * 1_000_003 + len(request.token_ids) + len(running.sampled)) % 2**63,
        max_tokens=request.max_new_tokens - len(running.sampled),
        stop_token_ids=request.stop_token_ids,
        logprobs=shown,
        flat_logprobs=True,
        detokenize=False,
        output_kind=RequestOutputKind.DELTA,
    )


def _sampled(request: Request, output: Any, version: int) -> Sampled:
    completion = output.outputs[0]
    token_ids = [int(token) for token in completion.token_ids]
    flat = completion.logprobs
    logps: list[float] = []
    kept_sets: list[list[int]] = []
    for place, token in enumerate(token_ids):
        part = slice(flat.start_indices[place], flat.end_indices[place])
        shown = dict(zip(flat.token_ids[part], flat.logprobs[part], strict=True))
        logps.append(shown[token])
        kept = [int(other) for other, logp in shown.items() if logp > float("-inf")]
        kept_sets.append(sorted(kept) if request.sampling.restricts else [])
    return Sampled(
        name=request.name,
        engine_name=output.request_id,
        token_ids=token_ids,
        logps=logps,
        kept_sets=kept_sets,
        version=version,
        ended=bool(output.finished),
    )


def _with_record(sampled: Sampled, packed: Any) -> Sampled:
    if not sampled.ended or packed is None:
        return sampled
    routes, selected = (_unpacked(part) for part in packed)
    return replace(sampled, routes=routes, selected=selected)


def _unpacked(part: Any) -> np.ndarray | None:
    if part is None:
        return None
    data, dtype, shape = part
    return np.frombuffer(data, dtype=dtype).reshape(shape)
