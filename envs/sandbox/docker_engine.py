"""The `docker` tier: one hardened container per box, driven through the Engine API.

Two users share a container: its main process has one, the executor and its commands have another, so that no
command can end the box by killing everything it may. The main process waits for the end of its stdin, which
this process holds: when this one is killed, the engine closes that stdin and the container ends and removes
itself, as it does when the lease is over. All talk is with one long-lived exec (docker_stream.py says by
which way); nothing is copied in or out through the engine.
"""

import contextlib
import os
import secrets
import socket
import time
from collections.abc import Sequence
from typing import Any

import docker
import docker.errors
from docker.models.containers import Container
from docker.types import LogConfig, Ulimit

from envs.sandbox.contract import (
    WORK_DIR,
    Limits,
    SandboxStartError,
    SandboxUnavailableError,
    check_folders,
)
from envs.sandbox.docker_stream import DirectStream, Door, ExecStream, reap_doors
from envs.sandbox.executor_client import bootstrap_argv
from envs.sandbox.executor_sandbox import ExecutorSandbox
from envs.sandbox.images import BASE_IMAGE, ENGINE_ERRORS, connect, preflight
from envs.sandbox.leases import DEFAULT_LEASE_S, Owner, is_over

MAIN_USER, COMMAND_USER = 65533, 65534
LABEL = "worldsmith.box"
OWNER_LABEL = "worldsmith.owner"
EXPIRES_LABEL = "worldsmith.expires"


def docker_box(
    limits: Limits | None = None,
    *,
    image: str = BASE_IMAGE,
    runtime: str | None = None,
    lease_s: int = DEFAULT_LEASE_S,
    folders: Sequence[str] = (),
) -> ExecutorSandbox:
    """A box that is not started yet.

    Args:
        image: Any image with a python3; nothing is added to it.
        runtime: An OCI runtime that the engine knows, such as runsc or kata; default: the engine's.
        lease_s: The box ends itself after so long, whatever became of us.
        folders: More writable folders, empty at the start, such as /app; they hide what the image has there.
    """
    limits = limits or Limits()
    return ExecutorSandbox(DockerCarrier(limits, image, runtime, lease_s, check_folders(folders)), limits)


def why_unavailable(image: str = BASE_IMAGE) -> str | None:
    """None where an engine answers and has the image; else what is missing and its remedy."""
    try:
        client = connect(timeout_s=5)
    except SandboxUnavailableError as error:
        return str(error)
    try:
        preflight(client, [image])
    except SandboxUnavailableError as error:
        return str(error)
    except ENGINE_ERRORS as error:
        return f"the Docker engine fails: {str(error)[:200]}"
    finally:
        client.close()
    return None


def engine_version() -> str | None:
    """The engine's version and default runtime; None where none answers."""
    try:
        client = connect(timeout_s=5)
    except SandboxUnavailableError:
        return None
    try:
        info = client.info()
        return f"{info['ServerVersion']} {info['DefaultRuntime']} cgroup v{info.get('CgroupVersion', '1')}"
    except ENGINE_ERRORS:
        return None
    finally:
        client.close()


def reap() -> list[str]:
    """Remove boxes whose owner is dead or whose lease is over; the names of what was removed."""
    reap_doors()
    client = connect()
    removed = []
    try:
        for container in client.containers.list(all=True, filters={"label": LABEL}, ignore_removed=True):
            labels = container.labels
            if is_over(labels.get(OWNER_LABEL, ""), labels.get(EXPIRES_LABEL, "")):
                with contextlib.suppress(docker.errors.APIError):
                    container.remove(force=True, v=True)
                    removed.append(labels[LABEL])
    except ENGINE_ERRORS as error:
        raise SandboxUnavailableError(f"the Docker engine fails: {str(error)[:200]}") from None
    finally:
        client.close()
    return removed


def container_options(limits: Limits, lease_s: int, folders: Sequence[str] = ()) -> dict[str, Any]:
    """Every wall of a box, as the Engine API takes them. Seccomp stays the engine's default."""
    sized = f"size={limits.tmp_mb}m,nr_inodes={limits.inodes},nosuid,nodev,exec"
    return {
        "command": ["timeout", "-s", "KILL", str(lease_s), "cat", "-"],
        "stdin_open": True,
        "init": True,
        "user": f"{MAIN_USER}:{MAIN_USER}",
        "cap_drop": ["ALL"],
        "security_opt": ["no-new-privileges"],
        "network_mode": "none",
        "ipc_mode": "private",
        "pids_limit": limits.pids,
        "mem_limit": limits.memory_mb << 20,
        "memswap_limit": limits.memory_mb << 20,
        "nano_cpus": int(min(limits.cpu, os.cpu_count() or 1) * 1e9),
        "read_only": True,
        "tmpfs": {
            "/tmp": f"{sized},mode=1777",
            **dict.fromkeys((WORK_DIR, *folders), f"{sized},mode=755,uid={COMMAND_USER},gid={COMMAND_USER}"),
        },
        "shm_size": min(limits.tmp_mb, 64) << 20,
        "ulimits": [
            Ulimit(name="nofile", soft=limits.nofile, hard=limits.nofile),
            Ulimit(name="core", soft=0, hard=0),
            Ulimit(name="msgqueue", soft=0, hard=0),
        ],
        "log_config": LogConfig(type="none"),
        "hostname": "box",
        "working_dir": WORK_DIR,
        "auto_remove": True,
        "labels": {
            LABEL: f"docker-{os.getpid()}-{secrets.token_hex(4)}",
            OWNER_LABEL: str(Owner.current()),
            EXPIRES_LABEL: str(int(time.time()) + lease_s),
        },
    }


class DockerCarrier:
    """Starts a container and one exec in it."""

    tier = "docker"
    work_dir = WORK_DIR

    def __init__(
        self, limits: Limits, image: str, runtime: str | None, lease_s: int, folders: tuple[str, ...] = ()
    ) -> None:
        self._folders = folders
        self._limits = limits
        self._image = image
        self._runtime = runtime
        self._lease_s = lease_s
        self._client: docker.DockerClient | None = None
        self._container: Container | None = None
        self._transport: ExecStream | DirectStream | None = None
        self._door: Door | None = None
        self._lease_pipe: socket.socket | None = None
        self._exec_id = ""

    @property
    def name(self) -> str:
        return self._container.labels[LABEL] if self._container else "docker"

    @property
    def container_id(self) -> str | None:
        return self._container.id if self._container else None

    def start(self) -> ExecStream | DirectStream:
        bury_left()
        self._client = connect()
        try:
            self._container = self._create(self._client)
            lease: Any = {"stdin": 1, "stream": 1}
            self._lease_pipe = _own_socket(self._client.api.attach_socket(self._container.id or "", lease))
            self._container.start()
            stream = self._open_executor(self._client, self._door)
            self._transport = DirectStream(stream, self._door) if self._door else stream
        except docker.errors.ImageNotFound:
            self.stop()
            raise SandboxUnavailableError(
                f"missing images: {self._image}; run: worldsmith images build"
            ) from None
        except ENGINE_ERRORS as error:
            self.stop()
            raise SandboxStartError(f"tier docker: {str(error)[:300]}") from None
        return self._transport

    def _create(self, client: docker.DockerClient) -> Container:
        """A container with a door to this process, where it can be had; other runtimes' seldom lead here."""
        options = container_options(self._limits, self._lease_s, self._folders)
        if self._runtime is not None:
            options["runtime"] = self._runtime
        elif client.api.base_url.startswith("http+docker://"):
            with contextlib.suppress(OSError):
                self._door = Door()
        if self._door is None:
            return client.containers.create(self._image, **options)
        try:
            return client.containers.create(self._image, **options, mounts=[self._door.mount])
        except docker.errors.APIError as error:
            if "bind" not in str(error):
                raise
            self._door.close()  # the engine sees other files than this process does
            self._door = None
            return client.containers.create(self._image, **options)

    def _open_executor(self, client: docker.DockerClient, door: Door | None = None) -> ExecStream:
        api = client.api
        created = api.exec_create(
            self.container_id,
            bootstrap_argv("python3", "boxed", *([door.path_in_box] if door else [])),
            stdin=True,
            stdout=True,
            stderr=True,
            user=f"{COMMAND_USER}:{COMMAND_USER}",
            workdir=WORK_DIR,
        )
        self._exec_id = created["Id"]
        stream: Any = api.exec_start(self._exec_id, socket=True)
        return ExecStream(_own_socket(stream))

    def reconnect(self) -> ExecStream | None:
        """A new executor, which first kills the old one, where the container still runs.

        Over stdio, which no command can come to: a door would be open to whoever is there first. Nor can one
        reach the lease pipe: where that is broken too, it was the engine that failed.
        """
        if self._container is None or self._client is None or self._is_lease_broken():
            return None
        try:
            self._container.reload()
            if self._container.status != "running":
                return None
            stream = self._open_executor(self._client)
        except ENGINE_ERRORS:
            return None
        self._transport = stream
        return stream

    def _is_lease_broken(self) -> bool:
        try:
            return self._lease_pipe is None or self._lease_pipe.recv(1, socket.MSG_DONTWAIT) == b""
        except BlockingIOError:
            return False
        except OSError:
            return True

    def _is_engine_gone(self) -> bool:
        """Asked before the SDK is, which leaves a socket open where nobody answers."""
        if not self._is_lease_broken():
            return False
        try:
            connect(timeout_s=5).close()
        except SandboxUnavailableError:
            return True
        return False

    def lease(self) -> None:
        return None  # the container's labels

    def oom_kills(self) -> int:
        return 0  # the executor reads the container's own counter

    def why_lost(self) -> str:
        if self._container is None or self._client is None:
            return ""
        if self._is_engine_gone():
            return "the Docker engine no longer answers"
        try:
            self._container.reload()
            state = self._container.attrs["State"]
            if not state["Running"]:
                memory = ", out of memory" if state.get("OOMKilled") else ""
                return f"its container is {state['Status']} (exit code {state['ExitCode']}{memory})"
            code = self._client.api.exec_inspect(self._exec_id)["ExitCode"] if self._exec_id else None
        except docker.errors.NotFound:
            return "its container is gone"
        except ENGINE_ERRORS:
            return "the Docker engine no longer answers"
        said = self._transport.complaint if self._transport else ""
        return f"its container runs, its executor ended with exit code {code} {said}".rstrip()

    def stop(self) -> None:
        if self._transport is not None:
            self._transport.close()
            self._transport = None
        if self._door is not None:
            self._door.close()
            self._door = None
        if self._container is not None and self._client is not None:
            if self._is_engine_gone():
                _unburied.append(str(self.container_id))
            else:
                _remove(self._client, str(self.container_id))
            self._container = None
        if self._lease_pipe is not None:
            self._lease_pipe.close()
            self._lease_pipe = None
        if self._client is not None:
            self._client.close()
            self._client = None
        bury_left()


_unburied: list[str] = []
"""Containers of this process that could not be removed as their engine did not answer."""


def bury_left() -> None:
    """Remove what an engine could not when it was asked, now that it may answer again. Never raises."""
    if not _unburied:
        return
    with contextlib.suppress(SandboxUnavailableError):
        client = connect(timeout_s=5)
        try:
            for _ in range(len(_unburied)):
                with contextlib.suppress(IndexError):  # another thread may have taken the last one
                    _remove(client, _unburied.pop(0))
        finally:
            client.close()


def _remove(client: docker.DockerClient, container_id: str) -> None:
    try:
        client.api.remove_container(container_id, force=True, v=True)
    except docker.errors.NotFound:
        return
    except docker.errors.APIError as error:
        # "Already in progress": it ends by itself, as its lease pipe says.
        if error.status_code != 409:
            _unburied.append(container_id)
    except ENGINE_ERRORS:
        _unburied.append(container_id)


def _own_socket(stream: Any) -> socket.socket:
    """A descriptor of our own: the SDK's objects may then go as they please."""
    try:
        return socket.socket(fileno=os.dup(stream.fileno()))
    finally:
        stream._response.close()
        stream.close()
