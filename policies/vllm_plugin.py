"""Our model in vLLM: the entry point `vllm.general_plugins` that each of its processes calls as it starts."""

import ctypes
import multiprocessing
import signal

ARCHITECTURE = "WorldsmithForCausalLM"
_PR_SET_PDEATHSIG = 1


def register() -> None:
    """Makes the architecture known; the module is imported when a model of it is built."""
    from vllm import ModelRegistry  # pyright: ignore[reportMissingImports]

    ModelRegistry.register_model(ARCHITECTURE, "policies.vllm_model:ServedPolicy")
    if multiprocessing.parent_process() is not None:
        # An engine whose replica was killed must not go on alone: vLLM itself does not see that death.
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
