"""Measure boxes against the engine's own ways, alternately, in one run: latencies, throughput, memory.

Every ratio has its two sides taken in turn, so that other work on the machine hits both; medians and 95th
percentiles over the rounds. Needs a Docker engine with the base image, and runc for one of the ratios; what
is missing is left out and said. The last line of --json is one JSON object.
"""

import argparse
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import Any

import docker.errors

from envs.sandbox import docker_engine, namespaces
from envs.sandbox.contract import Limits, Sandbox
from envs.sandbox.docker_stream import Door
from envs.sandbox.executor_client import ExecutorClient, PipeTransport, bootstrap_argv
from envs.sandbox.images import BASE_IMAGE, connect
from envs.sandbox.pool import BoxPool, PoolConfig

TARGETS = {
    "docker exec / our exec": (">=", 25.0),
    "throughput of 10 boxes: ours / docker exec": (">=", 15.0),
    "warm acquire / docker run": ("<=", 0.03),
    "verified reset / remove+create+start": ("<=", 0.1),
    "hardened create+start / plain": ("<=", 1.1),
    "namespaces start / runc run": ("<=", 0.6),
    "idle box, MiB": ("<=", 8.0),
}
PLAIN: dict[str, Any] = {
    "command": ["sleep", "600"],
    "network_mode": "none",
    "labels": {"worldsmith.bench": "1"},
}
PAUSE_S = 0.05
SETTLE_S = 3.0
Way = Callable[[], None]


def seconds(way: Way) -> float:
    start = time.perf_counter()
    way()
    return time.perf_counter() - start


def alternate(ways: dict[str, Way], rounds: int, *, calls: int = 1) -> dict[str, list[float]]:
    """Seconds of each way, one after the other, `rounds` times, after one round that does not count.

    Before each is a pause: an engine goes on clearing up after it has answered, which is no time of the next.
    `calls`: how often in a row a way is called in a round, each timed.
    """
    times: dict[str, list[float]] = {name: [] for name in ways}
    for number in range(rounds + 1):
        for name, way in ways.items():
            time.sleep(PAUSE_S)
            took_s = [seconds(way) for _ in range(calls)]
            if number:
                times[name] += took_s
    return times


def summary(times_s: list[float]) -> dict[str, float]:
    ordered = sorted(times_s)
    return {
        "median_ms": round(1000 * statistics.median(ordered), 3),
        "p95_ms": round(1000 * ordered[min(len(ordered) - 1, round(0.95 * len(ordered)))], 3),
        "n": len(ordered),
    }


def ratio(times: dict[str, list[float]], over: str, under: str) -> float:
    return round(statistics.median(times[over]) / statistics.median(times[under]), 4)


class Engine:
    """The engine's own ways to do what a box does, all through its API."""

    def __init__(self) -> None:
        self.client = connect()

    def close(self) -> None:
        self.client.close()

    def start(self, options: dict[str, Any]) -> str:
        container = self.client.containers.create(BASE_IMAGE, **options)
        container.start()
        return str(container.id)

    def remove(self, name: str) -> None:
        self.client.api.remove_container(name, force=True)

    def exec_true(self, name: str) -> None:
        created = self.client.api.exec_create(name, ["true"])
        self.client.api.exec_start(created["Id"])

    def run_true(self) -> None:
        """What `docker run --rm --network none IMAGE true` asks of the engine, without the client program."""
        name = self.start(PLAIN | {"command": ["true"]})
        self.client.api.wait(name)
        self.remove(name)

    @contextmanager
    def container(self) -> Iterator[str]:
        name = self.start(PLAIN)
        try:
            yield name
        finally:
            self.remove(name)


def measure_exec(engine: Engine, rounds: int) -> dict[str, Any]:
    with closing(docker_engine.docker_box()) as box, engine.container() as name:
        box.start()
        ways: dict[str, Way] = {
            "our exec": lambda: check(box),
            "docker exec": lambda: engine.exec_true(name),
        }
        with closing(namespaces.namespaces_box()) as second:
            second.start()
            ways["our exec, namespaces"] = lambda: check(second)
            # The target is held to calls one by one in turn. In a row neither waits for a sleeping core to
            # wake, nor ours for what the engine goes on clearing up: told beside it.
            times = alternate(ways, 2 * rounds)
            in_a_row = alternate(ways, rounds // 2, calls=10)
    named = times | {f"{name}, ten in a row": values for name, values in in_a_row.items()}
    return {
        "times": {name: summary(values) for name, values in named.items()},
        "ratios": {"docker exec / our exec": ratio(times, "docker exec", "our exec")},
    }


def check(box: Sandbox) -> None:
    if box.exec(["true"]).exit_code != 0:
        raise SystemExit("a box could not run `true`: nothing was measured")


def measure_throughput(engine: Engine, rounds: int) -> dict[str, Any]:
    """Commands a second in ten boxes at once, for half a second each time."""
    ours, theirs = [], []
    with ExitStack() as stack:
        boxes = [stack.enter_context(closing(docker_engine.docker_box())) for _ in range(10)]
        for box in boxes:
            box.start()
        names = [stack.enter_context(engine.container()) for _ in range(10)]
        clients = [stack.enter_context(closing(Engine())) for _ in range(10)]
        pairs = list(zip(clients, names, strict=True))
        for _ in range(max(3, rounds // 4)):
            ours.append(per_second([lambda box=box: check(box) for box in boxes]))
            theirs.append(per_second([lambda c=c, n=n: c.exec_true(n) for c, n in pairs]))
    return {
        "per_second": {
            "ours": round(statistics.median(ours), 1),
            "docker exec": round(statistics.median(theirs), 1),
            "n": len(ours),
        },
        "ratios": {
            "throughput of 10 boxes: ours / docker exec": round(
                statistics.median(ours) / statistics.median(theirs), 2
            )
        },
    }


def per_second(ways: list[Way], for_s: float = 0.5) -> float:
    counts = [0] * len(ways)
    begun = time.perf_counter()

    def work(number: int) -> None:
        while time.perf_counter() - begun < for_s:
            ways[number]()
            counts[number] += 1

    threads = [threading.Thread(target=work, args=(number,)) for number in range(len(ways))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return sum(counts) / (time.perf_counter() - begun)


def measure_life(engine: Engine, rounds: int) -> dict[str, Any]:
    """Acquire, reset, and what a new container costs instead."""
    hardened = {k: v for k, v in docker_engine.container_options(Limits(), 600).items() if k != "auto_remove"}
    made: list[str] = []
    with (
        closing(BoxPool(docker_engine.docker_box, PoolConfig(warm=2))) as pool,
        closing(docker_engine.docker_box()) as box,
        closing(Door()) as door,
    ):
        hardened["mounts"] = [door.mount]
        pool.warm_up()
        box.start()
        if not box.mark_pristine():
            raise SystemExit(f"a box cannot be reset: {box.why_not_pristine}")
        held: list[Sandbox] = []
        ways: dict[str, Way] = {
            "warm acquire": lambda: held.append(pool.acquire()),
            "release": lambda: held.pop().close(),
            "a file for the reset": lambda: box.write_file("a/b/c", bytes(10_000)),
            "verified reset": box.reset,
            "docker run": engine.run_true,
            "plain create+start": lambda: made.append(engine.start(PLAIN)),
            "plain remove": lambda: engine.remove(made.pop()),
            "hardened create+start": lambda: made.append(engine.start(hardened)),
            "hardened remove": lambda: engine.remove(made.pop()),
        }
        times = alternate(ways, rounds)
    both = zip(times["hardened remove"], times["hardened create+start"], strict=True)
    times["remove+create+start"] = [sum(pair) for pair in both]
    return {
        "times": {name: summary(values) for name, values in times.items()},
        "ratios": {
            "warm acquire / docker run": ratio(times, "warm acquire", "docker run"),
            "verified reset / remove+create+start": ratio(times, "verified reset", "remove+create+start"),
            "hardened create+start / plain": ratio(times, "hardened create+start", "plain create+start"),
        },
    }


def measure_namespaces(engine: Engine, rounds: int) -> dict[str, Any]:
    """The same executor until it answers: in a namespaces box, and in `runc run` of an equal bundle."""
    started: list[Sandbox] = []

    def start() -> None:
        box = namespaces.namespaces_box()
        box.start()
        started.append(box)

    ways: dict[str, Way] = {"namespaces start": start, "namespaces close": lambda: started.pop().close()}
    with ExitStack() as stack:
        if shutil.which("runc") is not None and os.geteuid() == 0:
            bundle = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="worldsmith-runc-")))
            make_bundle(engine, bundle)
            running: list[tuple[subprocess.Popen[bytes], ExecutorClient]] = []
            ways["runc run"] = lambda: running.append(run_bundle(bundle))
            ways["runc end"] = lambda: end_bundle(*running.pop())
        times = alternate(ways, 2 * rounds)
    found: dict[str, Any] = {"times": {name: summary(values) for name, values in times.items()}, "ratios": {}}
    if "runc run" in times:
        found["ratios"]["namespaces start / runc run"] = ratio(times, "namespaces start", "runc run")
    return found


def run_bundle(bundle: Path) -> tuple[subprocess.Popen[bytes], ExecutorClient]:
    argv = ["runc", "--root", str(bundle / "state"), "run", "--bundle", str(bundle), "worldsmith-bench"]
    process = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    client = ExecutorClient(PipeTransport.of(process), limits=Limits(), work_dir="/tmp", box="runc")
    client.start()
    return process, client


def end_bundle(process: subprocess.Popen[bytes], client: ExecutorClient) -> None:
    client.close()
    process.wait(30)


def make_bundle(engine: Engine, bundle: Path) -> None:
    """The base image, no capability, a read-only root, the executor as process 1: as an OCI bundle."""
    root = bundle / "rootfs"
    root.mkdir()
    name = str(engine.client.containers.create(BASE_IMAGE, ["true"]).id)
    try:
        archive = bundle / "image.tar"
        with archive.open("wb") as file:
            for piece in engine.client.api.export(name):
                file.write(piece)
        # Our own image, made from Debian's packages; never a file system that a box has written to.
        subprocess.run(["tar", "-C", str(root), "-xf", str(archive)], check=True)
    finally:
        engine.remove(name)
    subprocess.run(["runc", "spec", "--bundle", str(bundle)], check=True)
    spec = json.loads((bundle / "config.json").read_text())
    argv = bootstrap_argv("/usr/bin/python3", "init")
    spec["process"] |= {"terminal": False, "args": argv, "user": {"uid": 65534, "gid": 65534}}
    spec["process"]["capabilities"] = {}
    (bundle / "config.json").write_text(json.dumps(spec))


def measure_memory(rounds: int, num_boxes: int = 20) -> dict[str, Any]:
    """What this machine has less available with so many idle boxes, a box; the median of a few times."""
    used_mib = []
    with closing(docker_engine.docker_box()) as first:
        first.start()
        for _ in range(max(3, rounds // 7)):
            with ExitStack() as stack:
                time.sleep(SETTLE_S)  # the kernel frees what ended boxes held little by little
                before_kib = available_kib()
                for _ in range(num_boxes):
                    box = stack.enter_context(closing(docker_engine.docker_box()))
                    box.start()
                time.sleep(SETTLE_S)
                used_mib.append((before_kib - available_kib()) / 1024 / num_boxes)
    return {
        "ratios": {"idle box, MiB": round(statistics.median(used_mib), 2)},
        "num_boxes": num_boxes,
        "each": [round(value, 2) for value in used_mib],
    }


def available_kib() -> int:
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1])
    raise SystemExit("this kernel does not say how much memory is available")


PARTS: dict[str, Callable[[Engine, int], dict[str, Any]]] = {
    "exec": measure_exec,
    "throughput": measure_throughput,
    "life": measure_life,
    "namespaces": measure_namespaces,
    "memory": lambda engine, rounds: measure_memory(rounds),
}


def describe_machine() -> dict[str, Any]:
    model = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
    return {
        "cpu": model[0].partition(": ")[2] if model else platform.machine(),
        "cores": len(os.sched_getaffinity(0)),
        "kernel": platform.release(),
        "load_before": round(os.getloadavg()[0], 2),
        "engine": docker_engine.engine_version(),
        "launcher": namespaces.default_launcher(),
    }


def verdicts(ratios: dict[str, float]) -> dict[str, bool]:
    """Which targets are met; a ratio that was not measured is not met and not listed."""
    met = {}
    for name, value in ratios.items():
        sign, target = TARGETS[name]
        met[name] = value >= target if sign == ">=" else value <= target
    return met


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=20, help="measurements of each way (default: 20)")
    parser.add_argument("--only", choices=tuple(PARTS), help="measure one part")
    parser.add_argument("--json", action="store_true", help="end with one JSON object on standard output")
    options = parser.parse_args(argv)
    if options.rounds < 2:
        parser.error("--rounds must be at least 2")
    fault = docker_engine.why_unavailable()
    if fault is not None:
        print(f"benchmarks/boxes.py: {fault}", file=sys.stderr)
        return 3
    report: dict[str, Any] = {"machine": describe_machine(), "ratios": {}}
    with closing(Engine()) as engine:
        for name in [options.only] if options.only else PARTS:
            print(f"{time.strftime('%H:%M:%S')} measuring {name}", file=sys.stderr)
            try:
                report[name] = PARTS[name](engine, options.rounds)
            except docker.errors.DockerException as error:
                print(f"benchmarks/boxes.py: the engine fails: {str(error)[:200]}", file=sys.stderr)
                return 3
            report["ratios"] |= report[name].pop("ratios")
    report["met"] = verdicts(report["ratios"])
    report["machine"]["load_after"] = round(os.getloadavg()[0], 2)
    if options.json:
        print(json.dumps(report))
        return 0
    print(
        json.dumps({name: value for name, value in report.items() if name not in ("ratios", "met")}, indent=2)
    )
    for name, value in report["ratios"].items():
        sign, target = TARGETS[name]
        print(
            f"{name:44} {value:9.3f}  target {sign} {target:g}  {'met' if report['met'][name] else 'NOT met'}"
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
