"""inspect-ai's checks of a sandbox, on our boxes; run by the pytest of inspect-ai's environment, not by ours.

The box's kind is in BOX_KIND: `docker`, or `namespaces` with a launcher after a colon. Each check has a box
of its own, as an episode has.
"""

import os
from collections.abc import Iterator
from contextlib import closing

import pytest
from inspect_ai.util import SandboxUserUnsupportedError
from inspect_ai.util._sandbox.self_check import *  # noqa: F403
from inspect_box import BoxEnvironment

from envs.sandbox.contract import Limits, Sandbox

pytestmark = pytest.mark.anyio
# Payloads of 50 MiB lie in the box's memory once as a file and once in the command that reads it.
LIMITS = Limits(memory_mb=512, tmp_mb=128)
EXPECTED_FAILURES = {
    "test_exec_as_user": "makes a user and becomes root: a box has no root and no second user, by design",
}


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
def sandbox_env(request: pytest.FixtureRequest) -> Iterator[BoxEnvironment]:
    reason = EXPECTED_FAILURES.get(request.node.originalname)
    if reason is not None:
        request.applymarker(pytest.mark.xfail(strict=True, raises=SandboxUserUnsupportedError, reason=reason))
    with closing(make_box(os.environ["BOX_KIND"])) as box:
        box.start()
        yield BoxEnvironment(box)


def make_box(kind: str) -> Sandbox:
    tier, _, launcher = kind.partition(":")
    if tier == "docker":
        from envs.sandbox.docker_engine import docker_box

        return docker_box(LIMITS)
    from envs.sandbox.namespaces import namespaces_box

    return namespaces_box(LIMITS, launcher=launcher)
