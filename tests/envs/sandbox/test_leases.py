import json
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from envs.sandbox import fork_server, leases, namespaces
from envs.sandbox.executor_sandbox import ExecutorSandbox
from envs.sandbox.trusted_process import trusted_process_box


@pytest.fixture(autouse=True)
def own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Lease files of this test alone, so that boxes of others on this machine take no part."""
    folder = tmp_path / "leases"
    monkeypatch.setattr(leases, "lease_folder", lambda: folder)
    return folder


@pytest.fixture
def gone() -> leases.Owner:
    """A process that has lived and is dead."""
    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    owner = leases.Owner.of(process.pid)
    process.communicate(b"\n")
    return owner


@pytest.fixture
def box() -> Iterator[ExecutorSandbox]:
    fault = namespaces.why_unavailable()
    if fault is not None:
        pytest.skip(fault)
    with closing(namespaces.namespaces_box()) as started:
        started.start()
        yield started


def read(folder: Path) -> leases.FileLease:
    (file,) = folder.glob("*.json")
    found = json.loads(file.read_text())
    return leases.FileLease(**found | {"groups": tuple(found["groups"])})


def test_an_owner_is_dead_when_its_process_is_gone_or_is_another_one(gone: leases.Owner) -> None:
    me = leases.Owner.current()
    assert leases.Owner.parse(str(me)) == me
    assert not me.is_known_dead()
    assert gone.is_known_dead()
    assert replace(me, start=me.start + 1).is_known_dead()
    assert not replace(me, boot="another machine", start=0).is_known_dead()


def test_a_process_that_has_ended_and_is_not_yet_waited_for_is_dead() -> None:
    process = subprocess.Popen([sys.executable, "-c", ""])
    owner = leases.Owner.of(process.pid)
    deadline = time.monotonic() + 30
    while not owner.is_known_dead() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert owner.is_known_dead()
    process.wait()


def test_a_process_of_another_pid_namespace_is_not_known_to_be_dead() -> None:
    boot, _, namespace = leases.Owner.current().boot.rpartition(".")
    assert boot
    assert namespace.isdigit()
    assert not leases.Owner(f"{boot}.1", 99_999_999, 1).is_known_dead()


@pytest.mark.parametrize("text", ["", "a:b:c", "a:1", "a:1:2:3", "a:-1:2", "a:1:" + "9" * 5000])
def test_labels_that_we_never_write_name_no_owner(text: str) -> None:
    assert leases.Owner.parse(text) is None
    assert leases.is_over(text, "99999999999")


def test_a_lease_is_over_with_its_owner_or_its_time_and_not_before(gone: leases.Owner) -> None:
    me, later = str(leases.Owner.current()), str(int(time.time()) + 100)
    assert not leases.is_over(me, later)
    assert leases.is_over(me, str(int(time.time()) - 1))
    assert leases.is_over(str(gone), later)


def test_a_box_in_use_is_spared_and_its_lease_ends_with_it(box: ExecutorSandbox, own_folder: Path) -> None:
    assert read(own_folder).box == box.name
    assert leases.reap_files() == []
    assert box.exec(["echo", "alive"]).stdout == b"alive\n"
    box.close()
    assert list(own_folder.iterdir()) == []


@pytest.mark.parametrize("reason", ["its owner is dead", "its time is over"])
def test_a_box_whose_lease_is_over_is_ended_with_all_that_it_held(
    box: ExecutorSandbox, own_folder: Path, gone: leases.Owner, reason: str
) -> None:
    lease = read(own_folder)
    if reason == "its owner is dead":
        replace(lease, owner=str(gone)).write()
    else:
        replace(lease, expires=str(int(time.time()) - 1)).write()
    assert leases.reap_files() == [box.name]
    keeper = leases.Owner.parse(lease.keeper)
    assert keeper is not None
    deadline = time.monotonic() + 30
    while not keeper.is_known_dead() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert keeper.is_known_dead()
    assert not any(Path(group).exists() for group in lease.groups)
    assert list(own_folder.iterdir()) == []


def test_the_folder_of_a_bare_process_goes_with_its_lease(own_folder: Path, gone: leases.Owner) -> None:
    with closing(trusted_process_box(allow_unsafe=True)) as bare:
        bare.start()
        replace(read(own_folder), owner=str(gone)).write()
        assert leases.reap_files() == [Path(bare.work_dir).name]
        assert not Path(bare.work_dir).exists()


def test_a_keeper_whose_number_is_now_another_process_is_not_killed(
    own_folder: Path, gone: leases.Owner
) -> None:
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as innocent:
        keeper = leases.Owner.of(innocent.pid)
        lease = leases.FileLease(
            box="ns-1-x", owner=str(gone), keeper=str(replace(keeper, start=keeper.start - 1)), expires="0"
        )
        lease.write()
        assert leases.reap_files() == ["ns-1-x"]
        time.sleep(0.2)
        assert innocent.poll() is None


@pytest.mark.parametrize(
    "changes",
    [
        {"box": "../../escape"},
        {"box": "other-1"},
        {"folder": "/home"},
        {"folder": "/tmp/worldsmith-process-1/../../home"},
        {"groups": ["/sys/fs/cgroup/memory"]},
        {"groups": ["/sys/fs/cgroup/worldsmith/../worldsmith/ns-1-x"]},
        {"groups": "/sys/fs/cgroup"},
        {"keeper": 1},
        {"more": "x"},
    ],
)
def test_a_file_that_we_would_not_have_written_moves_nothing(
    own_folder: Path, gone: leases.Owner, changes: dict[str, object]
) -> None:
    lease = leases.FileLease(box="ns-1-x", owner=str(gone), keeper=str(gone), expires="0")
    own_folder.mkdir(mode=0o700)
    (own_folder / "ns-1-x.json").write_text(json.dumps(asdict(lease) | changes))
    assert leases.reap_files() == []
    (own_folder / "ns-1-x.json").write_text(json.dumps(asdict(lease)))
    assert leases.reap_files() == ["ns-1-x"]


def test_a_folder_that_others_can_write_to_is_not_believed(own_folder: Path, gone: leases.Owner) -> None:
    lease = leases.FileLease(box="ns-1-x", owner=str(gone), keeper=str(gone), expires="0")
    lease.write()
    own_folder.chmod(0o777)
    assert leases.reap_files() == []
    with pytest.raises(leases.SandboxStartError, match="mode 700"):
        lease.write()
    own_folder.chmod(0o700)
    assert leases.reap_files() == ["ns-1-x"]


def test_a_lease_that_cannot_be_written_starts_no_box(own_folder: Path) -> None:
    own_folder.write_text("a file is in the way")
    fault = namespaces._why_unavailable.__wrapped__("unshare")
    assert fault is not None
    assert "the lease of box" in fault
    assert fork_server._server is not None
    server = fork_server._server.pid
    assert Path(f"/proc/{server}/task/{server}/children").read_text() == ""
