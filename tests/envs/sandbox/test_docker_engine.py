import subprocess
import sys
import time
from contextlib import closing, suppress

import docker.errors
import pytest

from envs.sandbox import docker_engine
from envs.sandbox.contract import Limits, SandboxStartError, SandboxUnavailableError
from envs.sandbox.docker_engine import EXPIRES_LABEL as EXPIRES
from envs.sandbox.docker_engine import OWNER_LABEL as OWNER
from envs.sandbox.images import BASE_IMAGE
from envs.sandbox.leases import Owner

SHORT_LEASE = """
import sys, time
from envs.sandbox.docker_engine import docker_box
box = docker_box()
box.start()
print(box.name, flush=True)
time.sleep(60)
"""


def boxes() -> set[str]:
    client = docker_engine.connect()
    try:
        found = client.containers.list(all=True, filters={"label": docker_engine.LABEL}, ignore_removed=True)
        return {container.labels[docker_engine.LABEL] for container in found}
    finally:
        client.close()


def test_every_wall_is_asked_of_the_engine() -> None:
    options = docker_engine.container_options(Limits(memory_mb=100, pids=20, tmp_mb=10), lease_s=60)
    assert options["mem_limit"] == options["memswap_limit"] == 100 << 20
    assert options["cap_drop"] == ["ALL"]
    assert options["security_opt"] == ["no-new-privileges"]
    assert (options["network_mode"], options["pids_limit"], options["read_only"], options["init"]) == (
        "none",
        20,
        True,
        True,
    )
    assert options["user"] == "65533:65533"
    assert "size=10m" in options["tmpfs"]["/work"]
    assert "privileged" not in options
    assert "volumes" not in options
    more = docker_engine.container_options(Limits(), lease_s=60, folders=("/app",))
    assert more["tmpfs"]["/app"] == more["tmpfs"]["/work"]


@pytest.mark.docker
def test_a_box_whose_owner_was_killed_ends_by_itself_and_another_one_lives() -> None:
    owner = subprocess.Popen([sys.executable, "-c", SHORT_LEASE], stdout=subprocess.PIPE, text=True)
    assert owner.stdout is not None
    with owner, closing(docker_engine.docker_box()) as living:
        orphan = owner.stdout.readline().strip()
        living.start()
        assert {orphan, living.name} <= boxes()
        owner.kill()
        owner.wait()
        deadline = time.monotonic() + 40
        while orphan in boxes() and time.monotonic() < deadline:
            time.sleep(0.1)
        assert boxes() & {orphan, living.name} == {living.name}
        assert living.exec(["true"]).exit_code == 0


@pytest.mark.docker
def test_reaping_removes_boxes_of_dead_owners_or_ended_leases_and_nothing_else() -> None:
    gone = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    dead = str(Owner.of(gone.pid))
    gone.communicate(b"\n")
    me, later = str(Owner.current()), str(int(time.time()) + 600)
    labels = {
        "dead": {docker_engine.LABEL: "dead", OWNER: dead, EXPIRES: later},
        "late": {docker_engine.LABEL: "late", OWNER: me, EXPIRES: str(int(time.time()) - 5)},
        "mine": {docker_engine.LABEL: "mine", OWNER: me, EXPIRES: later},
        "elsewhere": {docker_engine.LABEL: "elsewhere", OWNER: "another-boot:1:1", EXPIRES: later},
        "stranger": {OWNER: dead, EXPIRES: "0"},
    }
    client = docker_engine.connect()
    made = {}
    try:
        for name, label in labels.items():
            # They wait on nobody, as a box would whose engine had lost the lease pipe.
            made[name] = client.containers.run(
                BASE_IMAGE, ["sleep", "600"], labels=label, detach=True, network_mode="none", init=True
            )
        assert sorted(docker_engine.reap()) == ["dead", "late"]
        left = {container.id for container in client.containers.list(all=True)}
        assert {name for name, container in made.items() if container.id in left} == {
            *("mine", "elsewhere", "stranger")
        }
    finally:
        for container in made.values():
            with suppress(docker.errors.APIError):
                container.remove(force=True)
        client.close()


@pytest.mark.docker
def test_a_box_ends_itself_when_its_lease_is_over() -> None:
    with closing(docker_engine.docker_box(lease_s=6)) as box:  # long enough to start on a busy machine
        box.start()
        name = box.name
        assert name in boxes()
        deadline = time.monotonic() + 40
        while name in boxes() and time.monotonic() < deadline:
            time.sleep(0.2)
        assert name not in boxes()


@pytest.mark.docker
def test_a_missing_image_and_an_unknown_runtime_start_nothing() -> None:
    with pytest.raises(
        SandboxUnavailableError, match=r"missing images: no/such:1; run: worldsmith images build"
    ):
        docker_engine.docker_box(image="no/such:1").start()
    with pytest.raises(SandboxStartError, match="no-such-runtime"):
        docker_engine.docker_box(runtime="no-such-runtime").start()
    assert boxes() == set()


@pytest.mark.docker
def test_a_command_that_stops_or_kills_its_executor_is_an_observation_and_not_a_lost_box(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("envs.sandbox.executor_client.SLACK_S", 1.5)
    with closing(docker_engine.docker_box()) as box:
        box.start()
        for script in ("kill -9 -1", "kill -STOP -1"):
            result = box.exec(["sh", "-c", script], timeout_s=0.5)
            assert result.exit_code == 137
            assert b"killed or stopped" in result.stderr
            assert box.exec(["echo", "next"]).stdout == b"next\n"
