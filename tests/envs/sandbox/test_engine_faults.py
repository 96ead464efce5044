"""A Docker engine that is restarted, fails or loses connections: never this machine's own.

The engine is a private dockerd with its own folders, socket and network namespace. Between it and the tests
stands a proxy that can fail in the ways that engines do.
"""

import os
import shutil
import signal
import socket
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from pathlib import Path

import docker.errors
import pytest

from envs.sandbox import docker_engine
from envs.sandbox.contract import SandboxError, SandboxLostError, SandboxUnavailableError
from envs.sandbox.images import BASE_IMAGE, connect, preflight
from envs.sandbox.pool import BoxPool, PoolConfig
from envs.sandbox.start_gate import StartGate

pytestmark = [
    pytest.mark.docker,
    # The Docker SDK leaves sockets to the garbage collector where an engine dies in the middle of a request.
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.timeout(600),
    pytest.mark.skipif(
        os.geteuid() != 0 or not shutil.which("dockerd"), reason="a private engine needs root and dockerd"
    ),
]


class PrivateEngine:
    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.socket = folder / "engine.sock"
        self.process: subprocess.Popen[bytes] | None = None

    def start(self, *, live_restore: bool = False) -> None:
        argv = ["unshare", "--net", "dockerd", "--bridge", "none", "--iptables=false", "--ip-forward=false"]
        argv += ["--data-root", str(self.folder / "data"), "--exec-root", str(self.folder / "exec")]
        argv += ["--pidfile", str(self.folder / "pid"), "--host", f"unix://{self.socket}"]
        argv += ["--live-restore"] * live_restore
        for _ in range(10):
            with (self.folder / "log").open("ab") as log:
                self.process = subprocess.Popen(argv, stdout=log, stderr=log, start_new_session=True)
            if eventually(lambda: self.answers() or self.has_ended(), 120) and not self.has_ended():
                return
            # On a busy machine its containerd may need longer than the 15 s that it waits for it.
        pytest.fail(f"no private engine: {(self.folder / 'log').read_text()[-600:]}")

    def has_ended(self) -> bool:
        return self.process is None or self.process.poll() is not None

    def answers(self) -> bool:
        # By hand, as the SDK leaves sockets open where nobody answers.
        with suppress(OSError), socket.socket(socket.AF_UNIX) as knock:
            knock.settimeout(5)
            knock.connect(str(self.socket))
            knock.sendall(b"GET /_ping HTTP/1.0\r\n\r\n")
            return b"200 OK" in knock.recv(4096)
        return False

    def client(self) -> docker.DockerClient:
        return docker.DockerClient(base_url=f"unix://{self.socket}", timeout=300)

    def stop(self, number: int) -> None:
        assert self.process is not None
        self.process.send_signal(number)
        self.process.wait(60)

    def containers(self) -> list[str]:
        with closing(self.client()) as client:
            return [str(item.id) for item in client.containers.list(all=True, ignore_removed=True)]

    def remove(self) -> None:
        if not self.has_ended():
            with closing(self.client()) as client:
                for name in self.containers():
                    with suppress(docker.errors.APIError):
                        client.containers.get(name).remove(force=True)
            self.stop(signal.SIGTERM)
        mounts = [line.split()[1] for line in Path("/proc/mounts").read_text().splitlines()]
        for mount in reversed([mount for mount in mounts if mount.startswith(f"{self.folder}/")]):
            subprocess.run(["umount", "-l", mount], check=False)
        shutil.rmtree(self.folder, ignore_errors=True)


class Proxy(threading.Thread):
    """Passes connections on to an engine, or fails as `mode` says: `500`, or `swallow` (an exec's stdin)."""

    def __init__(self, path: Path, engine: Path) -> None:
        super().__init__(daemon=True)
        self.mode = "pass"
        self.num_connections = 0
        self._engine = engine
        self._open: list[socket.socket] = []
        self._server = socket.socket(socket.AF_UNIX)
        self._server.bind(str(path))
        self._server.listen(64)

    def run(self) -> None:
        while True:
            try:
                client, _ = self._server.accept()
            except OSError:
                return
            self.num_connections += 1
            threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        self._open.append(client)
        if self.mode == "500":
            with suppress(OSError), client:
                if client.recv(65536):
                    client.sendall(b"HTTP/1.1 500 Internal Server Error\r\nContent-Length: 4\r\n\r\nbusy")
            return
        engine = socket.socket(socket.AF_UNIX)
        self._open.append(engine)
        with client, engine:
            engine.connect(str(self._engine))
            back = threading.Thread(target=self._copy, args=(engine, client), daemon=True)
            back.start()
            self._copy(client, engine, can_swallow=True)
            back.join()

    def _copy(self, source: socket.socket, target: socket.socket, *, can_swallow: bool = False) -> None:
        swallows = False
        with suppress(OSError):
            while data := source.recv(65536):
                if not swallows:
                    target.sendall(data)
                if can_swallow and self.mode == "swallow" and b"/exec/" in data and b"/start" in data:
                    swallows, self.mode = True, "pass"
            target.shutdown(socket.SHUT_WR)

    def cut(self) -> None:
        """Breaks every connection that is open."""
        for connection in self._open:
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
        self._open.clear()

    def close(self) -> None:
        self._server.shutdown(socket.SHUT_RDWR)
        self._server.close()
        self.cut()


def eventually(condition: Callable[[], object], timeout_s: float = 90.0) -> bool:
    deadline = time.monotonic() + timeout_s
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.1)
    return bool(condition())


@pytest.fixture(scope="module")
def engine() -> Iterator[PrivateEngine]:
    with closing(connect()) as own:
        image = own.images.get(BASE_IMAGE)
        private = PrivateEngine(Path(tempfile.mkdtemp(prefix="worldsmith-engine-", dir="/tmp")))
        try:
            private.start()
            with closing(private.client()) as client:
                client.images.load(b"".join(image.save(named=BASE_IMAGE)))
            yield private
        finally:
            private.remove()


@pytest.fixture
def proxy(engine: PrivateEngine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Proxy]:
    folder = Path(tempfile.mkdtemp(prefix="worldsmith-proxy-", dir="/tmp"))  # a socket's path must be short
    proxy = Proxy(folder / "sock", engine.socket)
    proxy.start()
    monkeypatch.setenv("DOCKER_HOST", f"unix://{folder}/sock")
    yield proxy
    proxy.close()
    shutil.rmtree(folder)


@pytest.mark.parametrize(
    ("number", "live_restore"),
    [(signal.SIGTERM, False), (signal.SIGKILL, False), (signal.SIGTERM, True), (signal.SIGKILL, True)],
)
def test_a_box_is_lost_when_its_engine_restarts_and_nothing_of_it_stays(
    engine: PrivateEngine, monkeypatch: pytest.MonkeyPatch, number: int, live_restore: bool
) -> None:
    monkeypatch.setenv("DOCKER_HOST", f"unix://{engine.socket}")
    engine.stop(signal.SIGTERM)
    engine.start(live_restore=live_restore)
    restart = threading.Timer(0.5, lambda: (engine.stop(number), engine.start(live_restore=live_restore)))
    with closing(BoxPool(docker_engine.docker_box, PoolConfig(warm=0))) as pool:
        box = pool.acquire()
        assert len(engine.containers()) == 1
        restart.start()
        with pytest.raises(SandboxLostError):
            # Not a result: a command that kills its executor gets one, an engine that dies does not.
            box.exec(["sleep", "300"], timeout_s=400)
        restart.join()
        box.close()
        with closing(pool.acquire()) as second:
            assert second.exec(["echo", "next"]).stdout == b"next\n"
    assert eventually(lambda: engine.containers() == []), engine.containers()


def test_connections_that_break_lose_the_box_and_are_no_doing_of_its_command(
    engine: PrivateEngine, proxy: Proxy
) -> None:
    with closing(docker_engine.docker_box()) as box:
        box.start()
        threading.Timer(0.5, proxy.cut).start()
        with pytest.raises(SandboxLostError):
            box.exec(["sleep", "300"], timeout_s=400)
    assert eventually(lambda: engine.containers() == [])


def test_input_that_never_arrives_is_a_failed_start_and_the_next_box_works(
    engine: PrivateEngine, proxy: Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("envs.sandbox.executor_client.START_TIMEOUT_S", 15.0)
    with closing(BoxPool(docker_engine.docker_box, PoolConfig(warm=0))) as pool:
        proxy.mode = "swallow"
        with closing(pool.acquire(timeout_s=300)) as box:
            assert box.exec(["echo", "right"]).stdout == b"right\n"
        assert pool.counts.failed_starts == 1
        assert "stopped answering" in pool.counts.last_fault
    assert eventually(lambda: engine.containers() == [])


def test_an_engine_that_fails_is_left_alone_while_running_boxes_go_on(
    engine: PrivateEngine, proxy: Proxy
) -> None:
    gate = StartGate(max_failures=3, pause_s=1.0)
    with closing(BoxPool(docker_engine.docker_box, PoolConfig(warm=0), gate)) as pool:
        running = pool.acquire()
        proxy.mode = "500"
        for _ in range(3):
            with pytest.raises(SandboxError) as caught:
                pool.acquire()
            assert "\n" not in str(caught.value)
        knocks = proxy.num_connections
        with pytest.raises(SandboxUnavailableError, match="after 3 failed starts in a row"):
            pool.acquire()
        assert proxy.num_connections == knocks
        assert running.exec(["echo", "goes on"]).stdout == b"goes on\n"
        proxy.mode = "pass"
        assert eventually(lambda: acquired(pool))
        assert not gate.is_open
        running.close()
    assert eventually(lambda: engine.containers() == [])


def acquired(pool: BoxPool) -> bool:
    with suppress(SandboxUnavailableError):
        pool.acquire().close()
        return True
    return False


def test_missing_images_are_all_named_before_anything_starts(engine: PrivateEngine, proxy: Proxy) -> None:
    with (
        closing(connect()) as client,
        pytest.raises(SandboxUnavailableError, match="missing images: no/such:1, no/other:2; run"),
    ):
        preflight(client, ["no/such:1", BASE_IMAGE, "no/other:2"])
    with pytest.raises(SandboxUnavailableError, match="missing images: no/such:1"):
        docker_engine.docker_box(image="no/such:1").start()
    assert engine.containers() == []
