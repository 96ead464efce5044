#!/usr/bin/env bash
# Finds a Python of version 3.11 or later and makes .venv with it. WORLDSMITH_PYTHON names another one.
set -euo pipefail
cd "$(dirname "$0")/.."

for python in ${WORLDSMITH_PYTHON:-python3 python3.11 python3.12 python3.13 python3.14}; do
    if "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
        exec "$python" .ci/environment.py "$@"
    fi
done
echo "worldsmith: Python 3.11 or later is needed, and ${WORLDSMITH_PYTHON:-python3} is not; install it," \
    "or name one in WORLDSMITH_PYTHON" >&2
exit 3
