"""vLLM's encoder of DeepSeek-V3.2 conversations, asked by lines of JSON.

`vllm_encoder.py FILE`: each line of standard input is {"messages", "thinking", "drop"}, each of standard
output {"text"}, or {"fault"} with what the encoder raised.
"""

import importlib.util
import json
import sys


def main() -> None:
    spec = importlib.util.spec_from_file_location("encoder", sys.argv[1])
    assert spec is not None
    assert spec.loader is not None
    encoder = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(encoder)
    for line in sys.stdin:
        asked = json.loads(line)
        mode = "thinking" if asked["thinking"] else "chat"
        try:
            text = encoder.encode_messages(asked["messages"], mode, drop_thinking=asked["drop"])
        except Exception as error:  # whatever it raises is its answer
            print(json.dumps({"fault": f"{type(error).__name__}: {error}"}))  # noqa: T201
        else:
            print(json.dumps({"text": text}))  # noqa: T201


if __name__ == "__main__":
    main()
