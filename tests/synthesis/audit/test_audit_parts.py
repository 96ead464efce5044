"""The parts of an audit that need no box: formats, Dockerfiles, damaged solutions, leaks, counts."""

from pathlib import Path

import pytest

from synthesis.audit.boxes import Boxes
from synthesis.audit.dockerfile import DockerfileError, parse_dockerfile
from synthesis.audit.formats import AuditConfig, find_tasks
from synthesis.audit.leaks import file_leaks
from synthesis.audit.mutants import GoldCall, Neighbours, Play, call_mutants, extra_writes
from synthesis.audit.records import TaskAudit, counts, report
from synthesis.audit.shell_mutants import script_mutants
from synthesis.audit.subjects import Subject, _tally
from tests.synthesis.audit import foreign_tasks as foreign


def test_each_format_is_found_out(tmp_path: Path) -> None:
    foreign.harbor_task(tmp_path / "h" / "tasks" / "sum")
    foreign.general_agent_task(tmp_path / "g" / "shop_t0")
    foreign.tau2_checkout(tmp_path / "t", [foreign.tau2_task("1", "W1")])
    kinds = {name: find_tasks(tmp_path / name) for name in "hgt"}
    assert {name: found.kind for name, found in kinds.items()} == {
        "h": "harbor",
        "g": "general-agent",
        "t": "tau2",
    }
    assert [kinds[name].names for name in "hgt"] == [("tasks/sum",), ("shop_t0",), ("shop/1",)]


def test_one_task_folder_is_enough(tmp_path: Path) -> None:
    assert find_tasks(foreign.harbor_task(tmp_path)).names == (".",)


def test_a_directory_of_no_known_format_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("nothing")
    with pytest.raises(ValueError, match="no tasks of a known format; expected") as caught:
        find_tasks(tmp_path)
    assert "\n" not in str(caught.value)
    with pytest.raises(ValueError, match="holds nothing of format harbor"):
        find_tasks(tmp_path, kind="harbor")
    with pytest.raises(ValueError, match="no such directory"):
        find_tasks(tmp_path / "missing")


def test_the_older_terminal_bench_layout_is_named(tmp_path: Path) -> None:
    foreign.write(tmp_path, {"hello/task.yaml": "instruction: hi"})
    with pytest.raises(ValueError, match=r"Terminal-Bench 1 tasks \(task.yaml\)"):
        find_tasks(tmp_path)


def test_a_domain_that_lacks_its_database_has_none_of_its_tasks_run(tmp_path: Path) -> None:
    tasks = [foreign.tau2_task(name, "W1") for name in ("1", "2")]
    (foreign.tau2_checkout(tmp_path, tasks) / "data/tau2/domains/shop/db.json").unlink()
    nowhere = Boxes(tier="none", make=lambda: pytest.fail("nothing is to be started"))
    found = list(find_tasks(tmp_path).audit(nowhere, AuditConfig()))
    assert [one.task for one in found] == ["shop/1", "shop/2"]
    assert all("no db.json and no db.toml" in one.not_run for one in found)


def test_a_link_to_a_task_is_no_task(tmp_path: Path) -> None:
    real = foreign.harbor_task(tmp_path / "elsewhere" / "sum")
    (tmp_path / "tasks").mkdir()
    (tmp_path / "tasks" / "sum").symlink_to(real)
    with pytest.raises(ValueError, match="no tasks of a known format"):
        find_tasks(tmp_path / "tasks")


def test_a_dockerfile_becomes_steps_in_order() -> None:
    text = "ARG V=3\nFROM python:${V}\nENV A=1 B=two\nWORKDIR /app\nCOPY data/ ./data/\n"
    text += "RUN echo \\\n  $A\nUSER me\n"
    build = parse_dockerfile(text, {"data/x": b"1", "data/sub/y": b"2", "z": b"3"})
    assert (build.image, build.workdir, build.folders) == ("python:3", "/app", ("/app",))
    assert build.env == {"A": "1", "B": "two"}
    made, copied, run = build.steps
    assert made.argv == ("mkdir", "-p", "/app")
    assert copied.files == {"app/data/x": b"1", "app/data/sub/y": b"2"}
    assert (run.cwd, run.argv) == ("/app", ("sh", "-c", "echo    $A"))


@pytest.mark.parametrize(
    ("line", "why"),
    [
        ("ADD https://example.org/x /app/x", "needs a network"),
        ("COPY --from=build /x /app/x", "from another stage"),
        ("COPY missing /app/x", "no such file"),
        ("COPY x /etc/x", "read-only in a box"),
        ("COPY x ../../y", "goes up"),
        ("FROM other", "several stages"),
        ("RUN <<EOF", "here-document"),
        ("ONBUILD RUN x", "ONBUILD cannot be carried out"),
    ],
)
def test_what_a_box_cannot_carry_out_is_said_with_its_line(line: str, why: str) -> None:
    with pytest.raises(DockerfileError, match=f"Dockerfile line 2: .*{why}"):
        parse_dockerfile(f"FROM a\n{line}\n", {"x": b""})


def test_call_mutants_damage_the_writes_alone() -> None:
    gold = (
        GoldCall(tool="get", arguments={"id": "A1"}),
        GoldCall(tool="pay", arguments={"id": "A1", "sum": 5}),
    )
    near = Neighbours({"bills": {"A1": {"sum": 5}, "B2": {"sum": 9}}})
    made = call_mutants(gold, [False, True], ["42"], near, limit=100)
    assert {play.operator for play in made} == {
        "write dropped",
        "write repeated",
        "wrong value: id",
        "wrong value: sum",
        "off by one: sum",
        "not said",
        "another number said",
    }
    assert all(play.calls[0] == gold[0] for play in made)
    wrong = next(play for play in made if play.operator == "wrong value: id")
    assert wrong.calls[1].arguments == {"id": "B2", "sum": 5}
    more = extra_writes(gold, [False, True], [], near, limit=5)
    assert [play.calls[2].arguments for play in more] == [{"id": "B2", "sum": 5}, {"id": "A1", "sum": 9}]


def test_the_limit_keeps_some_of_each_operator() -> None:
    statements = [f"echo {n} > {n}.txt\n" for n in range(50)]
    made = script_mutants(statements, 10)
    assert len(made) == 10
    assert len({operator.split(":")[0] for operator, _ in made}) >= 3


def test_script_mutants_leave_comments_and_settings_alone() -> None:
    made = script_mutants(["#!/bin/bash\n", "set -e\n", "cp 'one file' b12\n", "head -n 3 a > c\n"], 100)
    assert (
        "number off by one: head -n 3 a > c",
        "#!/bin/bash\nset -e\ncp 'one file' b12\nhead -n 4 a > c\n",
    ) in made
    assert any(operator.startswith("word changed: cp") and "'one filex'" in text for operator, text in made)
    assert all(text.startswith("#!/bin/bash\nset -e\n") for _, text in made)


def test_leaks_are_copies_and_shared_lines_and_images_that_take_them_in() -> None:
    solution = {
        "solve.sh": b"python3 -c 'print(sum(range(1000)))' > a\npython3 -c 'print(max(range(999)))' > b\n"
    }
    tests = {"test_it.py": b"def test_it():\n    assert open('a').read() == '499500'\n"}
    assert file_leaks("Do it.", {"data.txt": b"1 2 3"}, solution, tests) == ()
    assert file_leaks("Run:\n" + solution["solve.sh"].decode(), {}, solution, tests)[0].startswith(
        "instruction.md holds 2 lines of solution/solve.sh"
    )
    found = file_leaks(
        "Do it.", {"t.py": tests["test_it.py"], "Dockerfile": b"COPY solution /x\n"}, solution, tests
    )
    assert found == ("environment/t.py is tests/test_it.py", "the image takes in solution /x")


def test_a_task_that_was_not_run_is_in_no_count() -> None:
    audits = [
        TaskAudit(
            task="a", format="harbor", null_reward=1.0, gold_reward=1.0, mutants=4, killed=3, survivors=("x",)
        ),
        TaskAudit(task="b", format="harbor", null_reward=0.0, gold_reward=1.0, mutants=4, killed=4),
        TaskAudit(task="c", format="harbor", not_run="image x is not here"),
        TaskAudit(task="d", format="tau2", null_reward=1.0, gold_reward=1.0, unmeasured=("NL_ASSERTION",)),
    ]
    found = {count.name: (count.hits, count.trials) for count in counts(audits)}
    assert found["null agent rewarded"] == (1, 2)
    assert found["null agent passes all but what a model judges"] == (1, 1)
    assert found["gold paid in every play"] == (2, 2)
    assert found["solution mutants killed"] == (7, 8)
    told = report(audits, path="x", kind="harbor", tier="namespaces")
    assert (told["tasks"], told["audited"], told["not_run"]) == (4, 3, {"image x is not here": 1})
    assert told["findings"] == {"null rewarded": 1, "mutant accepted": 1}
    low, high = told["counts"]["null agent rewarded"]["interval"]
    assert low == pytest.approx(0.0945, abs=1e-4)  # Wilson, 1 of 2
    assert high == pytest.approx(0.9055, abs=1e-4)


@pytest.mark.parametrize("judged", [True, False])
def test_what_a_damaged_answer_earns_is_left_to_a_model_where_one_judges(judged: bool) -> None:
    """Two damaged plays are paid: one says less than the gold, the other does less."""
    buy, ship = (GoldCall(tool=tool, arguments={"order": "W1"}) for tool in ("buy", "ship"))
    one = Subject(
        task="1", format="tau2", prompt="", gold=(buy, ship), says=("10",), neighbours=Neighbours([])
    )
    plays = [
        Play(name="0", operator="not said", calls=(buy, ship), says=("done",)),
        Play(name="1", operator="dropped", calls=(buy,), says=("10",)),
    ]
    first = {"gold 0": {"reward": 1.0, "state": "s"}, "null": {"unmeasured": ["NL_ASSERTION"] * judged}}
    second = {name: {"reward": 1.0, "state": "t"} for name in "01"}
    found = _tally(one, first, plays, second)
    assert found["survivors"] == (("dropped",) if judged else ("not said", "dropped"))
    assert found["mutants"] == (1 if judged else 2)
    assert found["notes"] == (("1 damaged answers are left to NL_ASSERTION",) if judged else ())
