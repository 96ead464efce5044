#!/usr/bin/env bash
# The tests that need Docker, a browser, several processes or much time. Installs the Docker engine and Chromium from Debian's
# packages when they are missing, starts the engine when none runs, builds the base images, and adds vLLM beside .venv.
set -euo pipefail
cd "$(dirname "$0")/.."

if ! command -v chromium >/dev/null; then
    echo "worldsmith: installing Chromium from Debian's packages" >&2
    apt-get update -qq
    DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends chromium fonts-liberation >/dev/null
fi

.ci/docker.sh
.venv/bin/worldsmith images build
# A peer's environment, in which its own checks judge our boxes; made once, outside the checkout.
.venv/bin/python tests/conformance/peers.py inspect-ai >/dev/null
.venv/bin/python .ci/vllm_cpu.py

# pytest exits with 5 when it ran no test; that fails here as any other code does.
.venv/bin/python -m pytest -m "(docker or integration or browser or slow) and not gpu" "$@"
