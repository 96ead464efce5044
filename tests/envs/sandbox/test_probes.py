import pytest

from envs.sandbox import namespaces
from envs.sandbox.contract import Limits, SandboxLostError, SandboxUnavailableError
from envs.sandbox.executor_sandbox import ExecutorSandbox
from envs.sandbox.probes import ATTACKS, probe
from envs.sandbox.trusted_process import trusted_process_box


def test_namespaces_hold_every_guarantee_against_the_attacks() -> None:
    fault = namespaces.why_unavailable()
    if fault is not None:
        pytest.skip(f"tier namespaces: {fault}")
    found = probe(namespaces.namespaces_box, tier="namespaces", engine="test")
    walls = namespaces.walls_of_this_kernel()
    absent = {
        name for name, wall in (("seccomp", walls.seccomp), ("landlock", walls.landlock_abi)) if not wall
    }
    assert set(found.missing) == absent, found.evidence
    assert set(found.held) == set(ATTACKS)


@pytest.mark.docker
def test_docker_holds_every_guarantee_against_the_attacks() -> None:
    from envs.sandbox.docker_engine import docker_box

    found = probe(docker_box, tier="docker", engine="test")
    assert found.missing == (), found.evidence


def test_the_attacks_find_the_holes_of_a_bare_process() -> None:
    found = probe(
        lambda limits: trusted_process_box(limits, allow_unsafe=True), tier="process", engine="test"
    )
    holes = {
        "read_only_binds",
        "no_network",
        "no_new_privileges",
        "host_processes_hidden",
        "memory_limit",
        "process_limit",
    }
    assert holes <= set(found.missing)
    assert found.holds("timeout_kills")
    assert found.holds("bytes_exact")


def test_what_could_not_be_tried_counts_as_absent() -> None:
    def no_box(limits: Limits) -> ExecutorSandbox:
        raise SandboxUnavailableError("no engine")

    found = probe(no_box, tier="namespaces", engine="none")
    assert set(found.missing) == set(ATTACKS)
    assert found.evidence["no_network"] == "not shown: no engine"


def test_only_what_is_asked_for_is_tried_and_the_rest_counts_as_absent() -> None:
    found = probe(
        lambda limits: trusted_process_box(limits, allow_unsafe=True),
        tier="process",
        engine="test",
        only=("bytes_exact", "host_environment_hidden"),
    )
    assert found.held == {"bytes_exact": True, "host_environment_hidden": True}
    assert not found.holds("timeout_kills")


def test_a_wall_that_a_tier_does_not_set_out_to_give_is_absent_and_no_fault() -> None:
    found = probe(
        lambda limits: trusted_process_box(limits, allow_unsafe=True),
        tier="docker",
        engine="test",
        only=("landlock", "bytes_exact"),
    )
    assert found.missing == ()
    assert not found.holds("landlock")


def test_a_box_whose_walls_are_down_is_found_out() -> None:
    fault = namespaces.why_unavailable()
    if fault is not None:
        pytest.skip(f"tier namespaces: {fault}")
    down = namespaces.Walls(seccomp=b"", landlock_abi=0)
    found = probe(
        lambda limits: namespaces.namespaces_box(limits, walls=down),
        tier="namespaces",
        engine="test",
        only=("seccomp", "landlock", "bytes_exact"),
    )
    assert found.held == {"seccomp": False, "landlock": False, "bytes_exact": True}, found.evidence


def test_a_box_that_an_attack_has_killed_is_replaced_for_the_next(monkeypatch: pytest.MonkeyPatch) -> None:
    def lethal(box: object) -> tuple[bool, str]:
        raise SandboxLostError("gone")

    monkeypatch.setattr("envs.sandbox.probes.ATTACKS", {"a": lethal, "b": ATTACKS["bytes_exact"]})
    found = probe(
        lambda limits: trusted_process_box(limits, allow_unsafe=True), tier="process", engine="test"
    )
    assert found.held == {"a": False, "b": True}
