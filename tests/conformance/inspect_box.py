"""Our boxes as inspect-ai's sandboxes, in inspect-ai's own environment: what differs is put in its words.

A timeout is an exception there and a result here; a program that cannot be run is an exception there and exit
code 126 here; a box has one user and no root, so another user is refused.
"""

from typing import Literal, overload

import anyio.to_thread
from inspect_ai.util import (
    ExecResult,
    OutputLimitExceededError,
    SandboxEnvironment,
    SandboxEnvironmentLimits,
    SandboxUserUnsupportedError,
)

from envs.sandbox import contract

NO_TIMEOUT_S = 86_400.0


class BoxEnvironment(SandboxEnvironment):
    """One started box. It is closed by whoever started it."""

    def __init__(self, box: contract.Sandbox) -> None:
        super().__init__()
        self._box = box

    async def exec(  # noqa: PLR0913  # inspect-ai's signature
        self,
        cmd: list[str],
        input: str | bytes | None = None,
        cwd: str | None = None,
        env: dict[str, str] | None = None,
        user: str | None = None,
        timeout: int | None = None,
        timeout_retry: bool = True,
        concurrency: bool = True,
    ) -> ExecResult[str]:
        if user is not None:
            raise SandboxUserUnsupportedError(f"a box has one unprivileged user, not {user}")
        stdin = input.encode() if isinstance(input, str) else input or b""
        result = await anyio.to_thread.run_sync(
            lambda: self._box.exec(
                cmd,
                stdin=stdin,
                cwd=cwd,
                env=env,
                timeout_s=NO_TIMEOUT_S if timeout is None else float(timeout),
                output_cap_bytes=SandboxEnvironmentLimits.MAX_EXEC_OUTPUT_SIZE,
            )
        )
        if result.timed_out:
            raise TimeoutError(f"{cmd[0]} took longer than {timeout} s")
        if result.truncated_bytes or result.flooded:
            limit = SandboxEnvironmentLimits.MAX_EXEC_OUTPUT_SIZE_STR
            raise OutputLimitExceededError(limit, result.stdout.decode("utf-8", "replace"))
        if result.exit_code == 126 and result.stderr.startswith(b"cannot run "):
            raise PermissionError(result.stderr.decode("utf-8", "replace").strip())
        return ExecResult(
            success=result.exit_code == 0,
            returncode=result.exit_code,
            stdout=result.stdout.decode(),
            stderr=result.stderr.decode(),
        )

    async def write_file(self, file: str, contents: str | bytes) -> None:
        data = contents.encode() if isinstance(contents, str) else contents
        await anyio.to_thread.run_sync(self._box.write_file, file, data)

    @overload
    async def read_file(self, file: str, text: Literal[True] = True) -> str: ...

    @overload
    async def read_file(self, file: str, text: Literal[False]) -> bytes: ...

    async def read_file(self, file: str, text: bool = True) -> str | bytes:
        limit = SandboxEnvironmentLimits.MAX_READ_FILE_SIZE
        try:
            data = await anyio.to_thread.run_sync(lambda: self._box.read_file(file, max_bytes=limit))
        except contract.FileTooLargeError:
            raise OutputLimitExceededError(SandboxEnvironmentLimits.MAX_READ_FILE_SIZE_STR, None) from None
        return data.decode() if text else data

    @classmethod
    async def sample_cleanup(cls, task_name, config, environments, interrupted) -> None:
        for environment in environments.values():
            environment.as_type(cls)._box.close()
