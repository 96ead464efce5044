"""What a replica asks of vLLM's worker process beyond vLLM's own calls (`worker_extension_cls`).

Each is called by name through `collective_rpc`; what they return is plain data.
"""

from pathlib import Path
from typing import Any

from safetensors import safe_open

from policies.vllm_records import Recorder
from policies.weights import checksum

CACHE_NAME = "attn"


class WorkerCalls:
    """Mixed into vLLM's worker, whose `model_runner` holds the model."""

    model_runner: Any

    def worldsmith_record(self, record_selected: bool) -> bool:
        """Begin to keep what the model chooses. False: this model's choices cannot be seen."""
        model = self.model_runner.model
        if not hasattr(model, "recorder"):
            return False
        model.recorder = Recorder(
            self.model_runner,
            num_rows=len(model.caches[0].rows),
            num_experts=model.config.n_routed_experts,
            record_selected=record_selected,
        )
        return True

    def worldsmith_take_records(self, names: list[str]) -> list[Any]:
        """For each request (bytes, dtype, shape) of its routes and of its selected places; None for none."""
        recorder: Recorder = self.model_runner.model.recorder
        taken = [recorder.take(name) for name in names]
        return [None if parts is None else [_packed(part) for part in parts] for parts in taken]

    def worldsmith_load(self, path: str) -> dict[str, str]:
        """Take the weights of a safetensors file; checksums by name of what the model then holds.

        A model that is not ours renames and joins tensors as it takes them; then they are of what arrived.
        """
        with safe_open(Path(path), framework="pt") as file:
            state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        model = self.model_runner.model
        if hasattr(model, "policy"):
            model.take(state)
            state = model.policy.state_dict()
        else:
            model.load_weights(state.items())
        return {name: checksum(tensor.detach().cpu().numpy()) for name, tensor in state.items()}


def _packed(part: Any) -> Any:
    return None if part is None else [part.tobytes(), str(part.dtype), list(part.shape)]
