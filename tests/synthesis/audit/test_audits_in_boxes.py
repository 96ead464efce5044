"""Whole audits, foreign code in boxes: each fault that a task can have is found, and a good task has none."""

from pathlib import Path

import pytest

from envs.sandbox import namespaces
from synthesis.audit.boxes import Boxes, choose_boxes
from synthesis.audit.formats import AuditConfig, find_tasks
from synthesis.audit.records import TaskAudit
from tests.synthesis.audit import foreign_tasks as foreign

pytestmark = [
    pytest.mark.integration,
    pytest.mark.skipif(namespaces.why_unavailable() is not None, reason="no namespaces on this machine"),
]


@pytest.fixture(scope="module")
def boxes() -> Boxes:
    return choose_boxes("namespaces")


def audits(path: Path, boxes: Boxes, config: AuditConfig | None = None) -> dict[str, TaskAudit]:
    return {one.task: one for one in find_tasks(path).audit(boxes, config or AuditConfig(mutants=12))}


def test_each_fault_of_a_general_agent_task_is_found_and_the_good_one_has_none(
    tmp_path: Path, boxes: Boxes
) -> None:
    raising = [["place_order", {"item": "hat", "count": 99}], *foreign.GOLD]
    told = "Call place_order with item hat and count 2, then order one scarf.\n"
    foreign.general_agent_task(tmp_path / "a_good", wrong=[["place_order", {"item": "hat", "count": 1}]])
    foreign.general_agent_task(tmp_path / "b_careless", verify=foreign.CARELESS_VERIFY)
    foreign.general_agent_task(tmp_path / "c_lazy", verify=foreign.LAZY_VERIFY)
    foreign.general_agent_task(tmp_path / "d_raising", gold=raising)
    foreign.general_agent_task(tmp_path / "e_told", prompt=told)
    found = audits(tmp_path, boxes)

    good = found["a_good"]
    assert good.findings == ()
    assert (good.null_reward, good.gold_reward, good.gold_error) == (0.0, 1.0, "")
    assert good.mutants == good.killed > 5
    assert good.damages > 0
    assert "collateral accepted" in found["b_careless"].findings
    assert any("extra write place_order" in one for one in found["b_careless"].damage_accepted)
    assert found["c_lazy"].null_reward == 1.0
    assert set(found["c_lazy"].findings) == {"null rewarded", "mutant accepted", "collateral accepted"}
    assert found["d_raising"].gold_error == "place_order: ValueError: not enough of hat"
    assert found["e_told"].findings == ("leak",)


def test_what_a_task_file_does_to_its_process_is_that_tasks_fault_alone(tmp_path: Path, boxes: Boxes) -> None:
    dying = "import os\nos._exit(3)\n"
    foreign.general_agent_task(tmp_path / "a_dying", verify=dying)
    foreign.general_agent_task(tmp_path / "b_syntax", verify="def (\n")
    foreign.general_agent_task(tmp_path / "c_good")
    found = audits(tmp_path, boxes, AuditConfig(mutants=2))
    assert found["a_dying"].not_run.startswith("its process ended")
    assert found["b_syntax"].not_run.startswith("SyntaxError")
    assert found["c_good"].findings == ()


def test_each_fault_of_a_harbor_task_is_found_and_the_good_one_has_none(tmp_path: Path, boxes: Boxes) -> None:
    config = AuditConfig(mutants=6, ignore_image=True)
    foreign.harbor_task(tmp_path / "a_good")
    foreign.harbor_task(tmp_path / "b_careless", test=foreign.CARELESS_TEST)
    foreign.harbor_task(tmp_path / "c_lazy", test=foreign.LAZY_TEST)
    foreign.harbor_task(tmp_path / "d_raising", solution=foreign.SOLUTION + "cat missing.txt\n")
    foreign.harbor_task(tmp_path / "e_leaking", more={"environment/data/hint.sh": foreign.SOLUTION})
    found = audits(tmp_path, boxes, config)

    good = found["a_good"]
    assert good.findings == ()
    assert (good.null_reward, good.gold_reward, good.damages) == (0.0, 1.0, 2)
    assert good.mutants == good.killed > 0
    assert good.notes == ("played without its image debian:bookworm-slim",)
    assert found["b_careless"].damage_accepted == (
        "/app/data/numbers.txt emptied",
        "/app/data/readme.txt emptied",
    )
    assert found["c_lazy"].null_reward == 1.0
    assert (
        found["d_raising"].gold_error == "solve.sh: exit code 1: cat: missing.txt: No such file or directory"
    )
    assert found["e_leaking"].leaks == ("environment/data/hint.sh is solution/solve.sh",)


def test_a_harbor_task_is_not_run_without_its_image_and_never_passes(tmp_path: Path, boxes: Boxes) -> None:
    foreign.harbor_task(tmp_path)
    (only,) = find_tasks(tmp_path).audit(boxes, AuditConfig())
    assert only.not_run == "image debian:bookworm-slim (tier namespaces has no images)"
    assert (only.null_reward, only.gold_reward, only.findings) == (None, None, ())


def test_without_a_solution_only_the_null_agent_is_played(tmp_path: Path, boxes: Boxes) -> None:
    (foreign.harbor_task(tmp_path, test=foreign.LAZY_TEST) / "solution/solve.sh").unlink()
    (only,) = find_tasks(tmp_path).audit(boxes, AuditConfig(ignore_image=True))
    assert (only.null_reward, only.gold_reward, only.findings) == (1.0, None, ("null rewarded",))
    assert "no reference solution" in only.notes


def test_a_zero_where_the_environment_was_not_built_is_no_measurement(tmp_path: Path, boxes: Boxes) -> None:
    dockerfile = foreign.DOCKERFILE + "RUN no-such-program --install\n"
    test = (
        "no-such-program /app && echo 1 > /logs/verifier/reward.txt || echo 0 > /logs/verifier/reward.txt\n"
    )
    foreign.harbor_task(tmp_path, dockerfile=dockerfile, test=test)
    (only,) = find_tasks(tmp_path).audit(boxes, AuditConfig(ignore_image=True))
    assert only.not_run.startswith("its environment could not be built: RUN no-such-program --install failed")


def test_a_separate_verifier_sees_the_artifacts_alone(tmp_path: Path, boxes: Boxes) -> None:
    toml = 'artifacts = ["/app/total.txt"]\n' + foreign.TASK_TOML + 'environment_mode = "separate"\n'
    test = (
        "if test -e /app/extra; then echo 0 > /logs/verifier/reward.txt; exit; fi\n" + foreign.CARELESS_TEST
    )
    solution = foreign.SOLUTION + "touch /app/extra\n"
    foreign.harbor_task(tmp_path, toml=toml, test=test, solution=solution)
    (only,) = find_tasks(tmp_path).audit(boxes, AuditConfig(mutants=0, ignore_image=True))
    assert (only.null_reward, only.gold_reward) == (0.0, 1.0)


def test_each_fault_of_a_tau2_task_is_found_and_the_good_one_has_none(tmp_path: Path, boxes: Boxes) -> None:
    tasks = [
        foreign.tau2_task("good", "W1", communicate_info=["10"]),
        {"id": "nothing to do", "evaluation_criteria": {"actions": []}},
        foreign.tau2_task("raises", "W3"),
        foreign.tau2_task(
            "judged", "W2", reward_basis=["DB", "NL_ASSERTION"], nl_assertions=["Is it polite?"]
        ),
        foreign.tau2_task("nothing judged", "W2", reward_basis=["DB", "NL_ASSERTION"], nl_assertions=[]),
        {"id": "no gold", "evaluation_criteria": {"communicate_info": ["10"]}},
    ]
    found = audits(foreign.tau2_checkout(tmp_path, tasks), boxes)

    good = found["shop/good"]
    assert (good.null_reward, good.gold_reward, good.gold_error) == (0.0, 1.0, "")
    # The number said within another one is taken for it: the verifier looks for a substring.
    assert good.survivors == ("another number said",)
    assert good.killed >= 4
    assert good.damages > 0
    assert good.damage_accepted == ()
    assert "null rewarded" in found["shop/nothing to do"].findings
    assert found["shop/raises"].gold_error == "cancel_order: Error: not open"
    assert found["shop/judged"].unmeasured == ("NL_ASSERTION",)
    assert found["shop/judged"].findings == ()
    assert (found["shop/nothing judged"].unmeasured, found["shop/nothing judged"].gold_reward) == ((), 1.0)
    assert (found["shop/no gold"].gold_reward, found["shop/no gold"].null_reward) == (None, 0.0)


def test_a_checkout_whose_code_cannot_be_imported_is_not_run(tmp_path: Path, boxes: Boxes) -> None:
    foreign.tau2_checkout(tmp_path, [foreign.tau2_task("good", "W1")])
    (tmp_path / "src/tau2/utils/__init__.py").write_text("import no_such_package\n")
    (only,) = find_tasks(tmp_path).audit(boxes, AuditConfig())
    assert only.not_run == "cannot be loaded: ModuleNotFoundError: No module named 'no_such_package'"
