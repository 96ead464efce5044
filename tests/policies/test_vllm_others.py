"""A Hugging Face causal model that is not ours, served by vLLM as it is: SmolLM2-135M-Instruct."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import ray
import torch
from transformers import AutoModelForCausalLM

from envs.child_processes import share_packages
from policies.engine import Sampling
from policies.replicas import ReplicaPool, vllm_config
from policies.tokenizer import load_codec
from policies.vllm_packages import vllm_folder

pytestmark = [pytest.mark.integration, pytest.mark.timeout(600)]
SCRIPT = Path(__file__).parents[1] / "smollm.py"


@pytest.fixture(scope="module")
def smollm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("smollm")
    packages = str(vllm_folder())
    subprocess.run(
        [sys.executable, SCRIPT, out], env={**os.environ, "PYTHONPATH": packages}, check=True, timeout=300
    )
    return out


def test_it_answers_and_its_log_probabilities_are_transformers(smollm: Path) -> None:
    codec = load_codec(smollm)
    text = "<|im_start|>user\nWhat is the capital of France?<|im_end|>\n<|im_start|>assistant\n"
    share_packages()
    ray.init(num_cpus=4, include_dashboard=False, log_to_driver=False)
    config = vllm_config(str(smollm), slots=4, max_length=256, threads=2)
    assert not config.ours
    pool = ReplicaPool(config, num_replicas=1, stop_token_ids=codec.stop_ids)
    try:
        session = pool.open(codec.encode(text), seed=0, sampling=Sampling(temperature=0.0, max_new_tokens=24))
        turns = []
        while not turns:
            turns = pool.step()
        record = pool.close(session)
    finally:
        pool.shutdown()
        ray.shutdown()
    assert "Paris" in codec.decode(turns[0].token_ids)
    assert turns[0].stop_reason == "stop_token"
    model = AutoModelForCausalLM.from_pretrained(smollm, dtype=torch.float32)
    ids = torch.tensor([record.token_ids])
    with torch.no_grad():
        logps = model(ids).logits[0, :-1].log_softmax(-1).gather(1, ids[0, 1:, None]).squeeze(1)
    sampled = torch.tensor(record.sampled_mask[1:])
    assert (logps - torch.tensor(record.logps[1:]))[sampled].abs().max() < 1e-3


def test_eval_plays_it_from_the_command_line(smollm: Path, tmp_path: Path) -> None:
    worldsmith = Path(sys.executable).with_name("worldsmith")
    synth = ["synth", "--family", "general", "--domain", "retail", "--count", "4", "--seed", "1"]
    subprocess.run([worldsmith, *synth, "--out", tmp_path / "corpus"], check=True, timeout=300)
    play = ["eval", "--tasks", tmp_path / "corpus", "--policy", f"vllm:{smollm}", "--limit", "1"]
    done = subprocess.run(
        [worldsmith, *play, "--out", tmp_path / "run", "--json"],
        check=True,
        timeout=500,
        capture_output=True,
        text=True,
    )
    assert '"episodes": 1' in done.stdout.splitlines()[-1]
