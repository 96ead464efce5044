import pytest

from envs.sandbox import docker_engine, namespaces
from envs.sandbox.choose import choose_sandbox
from envs.sandbox.contract import SandboxUnavailableError


def machine(monkeypatch: pytest.MonkeyPatch, *, docker: str | None, ns: str | None) -> None:
    """A machine on which each tier works (None) or lacks something."""
    monkeypatch.setattr(docker_engine, "why_unavailable", lambda image: docker)
    monkeypatch.setattr(namespaces, "why_unavailable", lambda: ns)


def test_auto_takes_docker_where_it_works_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    machine(monkeypatch, docker=None, ns=None)
    said: list[str] = []
    assert choose_sandbox(log=said.append).tier == "docker"
    assert said == ["boxes: tier docker (an engine answers and has the image)"]


def test_auto_takes_namespaces_next_and_says_why_it_is_not_docker(monkeypatch: pytest.MonkeyPatch) -> None:
    machine(monkeypatch, docker="no engine", ns=None)
    said: list[str] = []
    assert choose_sandbox(log=said.append).tier == "namespaces"
    assert said[0].startswith("boxes: tier namespaces")
    assert "weaker than docker, which is not usable: no engine" in said[0]


def test_auto_never_goes_below_namespaces_and_names_every_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    machine(monkeypatch, docker="start one", ns="no user namespaces")
    with pytest.raises(
        SandboxUnavailableError, match=r"docker: start one; tier namespaces: no user namespaces"
    ):
        choose_sandbox(allow_unsafe=True, log=lambda _: None)


@pytest.mark.parametrize("tier", ["docker", "namespaces"])
def test_a_tier_that_is_named_is_refused_and_never_replaced(
    tier: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    faults: dict[str, str | None] = {"docker": None, "ns": None}
    faults["docker" if tier == "docker" else "ns"] = "its remedy"
    machine(monkeypatch, docker=faults["docker"], ns=faults["ns"])
    with pytest.raises(SandboxUnavailableError, match="its remedy"):
        choose_sandbox(tier, log=lambda _: None)


def test_process_needs_its_flag() -> None:
    with pytest.raises(SandboxUnavailableError, match="--allow-unsafe"):
        choose_sandbox("process", log=lambda _: None)
    assert choose_sandbox("process", allow_unsafe=True, log=lambda _: None).tier == "process"


def test_an_unknown_tier_is_refused_with_the_known_ones() -> None:
    with pytest.raises(ValueError, match="unknown tier 'podman': expected one of auto, docker"):
        choose_sandbox("podman")
