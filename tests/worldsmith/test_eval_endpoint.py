"""`eval --policy openai:URL#MODEL`, from the command line to the run's files."""

import itertools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import pyarrow.parquet as pq
import pytest

from envs.agents import gold_plan, plan_messages
from envs.families.code import code_task_to_json
from envs.families.code import gold_plan as code_gold_plan
from envs.sandbox import namespaces
from envs.task import Message
from policies import openai_client
from synthesis.corpus import read_corpus
from tests.example_code_tasks import TASKS
from tests.fake_endpoint import Answer, completion, fake_endpoint
from worldsmith import eval_command
from worldsmith.cli import main
from worldsmith.progress import Progress

Ask = dict[str, Any]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("corpus") / "trip"
    line = ["synth", "--domain", "trip", "--levels", "1", "--count", "6", "--seed", "5"]
    assert main([*line, "--out", str(out)]) == 0
    return out


def as_answer(message: Message) -> Answer:
    return completion(message.content, *((call.tool, call.arguments) for call in message.tool_calls))


def knows(solutions: dict[str, list[Message]]) -> Callable[[Ask], Answer]:
    """A model that gives each task's solution, step by step."""

    def answer(asked: Ask) -> Answer:
        user = next(m["content"] for m in asked["messages"] if m["role"] == "user")
        step = sum(m["role"] == "assistant" for m in asked["messages"])
        return as_answer(solutions[user][step])

    return answer


def gold(corpus: Path) -> dict[str, list[Message]]:
    return {row.task.prompt[1].content: plan_messages(gold_plan(row.task)) for row in read_corpus(corpus)}


class Watched(Progress):
    """Keeps what it was told of."""

    counted: ClassVar[list[tuple[str, int]]] = []

    def resume_at(self, done: int, *, note: str = "") -> None:
        self.counted.append(("found", done))
        super().resume_at(done, note=note)

    def advance(self, count: int = 1, *, note: str = "") -> None:
        self.counted.append(("played", count))
        super().advance(count, note=note)


def run(url: str, tasks: Path, out: Path, *more: str) -> int:
    policy = f"openai:{url}#some/model"
    return main(["eval", "--tasks", str(tasks), "--policy", policy, "--out", str(out), *more])


def episodes(out: Path) -> list[dict[str, Any]]:
    return pq.read_table(out / "episodes" / "eval.parquet").to_pylist()


def test_a_model_that_knows_the_solutions_passes_and_its_tokens_are_counted(
    corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with fake_endpoint(knows(gold(corpus))) as endpoint:
        assert run(endpoint.url, corpus, tmp_path / "out", "--samples", "2", "--json") == 0
    summary = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (summary["pass_rate"], summary["episodes"]) == (1.0, 12)
    assert summary["completion_tokens"] == 3 * len(endpoint.asked)
    rows = episodes(tmp_path / "out")
    assert [row["sample"] for row in rows] == [0, 1] * 6
    assert len({asked["seed"] for asked in endpoint.asked}) == 12
    assert not (tmp_path / "out" / "ended.jsonl").exists()
    conversation = max((asked["messages"] for asked in endpoint.asked), key=len)
    for said, heard in itertools.pairwise(conversation):
        if said["role"] == "assistant":
            assert (heard["role"], heard["tool_call_id"]) == ("tool", "id-0")


@pytest.mark.parametrize(
    ("answer", "cause"),
    [
        (completion(None, ("look", "{")), "format"),
        (completion("cut", finish="length"), "tokens"),
        (Answer(body={"error": {"code": "context_length_exceeded"}}, status=400), "tokens"),
        (completion("no idea"), "answered"),
        (completion(None, ("no_such_tool", {})), "turns"),
    ],
)
def test_how_an_episode_ends_that_the_model_does_not_solve(
    answer: Answer, cause: str, corpus: Path, tmp_path: Path
) -> None:
    with fake_endpoint(lambda asked: answer) as endpoint:
        assert run(endpoint.url, corpus, tmp_path / "out", "--limit", "2") == 0
    assert [(row["reward"], row["cause"]) for row in episodes(tmp_path / "out")] == [(0.0, cause)] * 2


def test_an_endpoint_that_dies_stops_the_run_and_the_same_command_goes_on(
    corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(openai_client, "LONGEST_PAUSE_S", 0)
    out = tmp_path / "out"
    knowing = knows(gold(corpus))
    dies_after = 12

    def answer(asked: Ask) -> Answer:
        return knowing(asked) if len(endpoint.asked) <= dies_after else Answer(body={}, status=503)

    with fake_endpoint(answer) as endpoint:
        line = (endpoint.url, corpus, out, "--samples", "3", "--at-once", "2")
        assert run(*line) == 3
        said = capsys.readouterr().err.splitlines()[-1]
        assert "answered 503" in said
        assert "(4 episodes in a row); run the same command again" in said
        kept = (out / "ended.jsonl").read_bytes()
        rows = [json.loads(entry)["row"] for entry in kept.splitlines()]
        assert 0 < len(rows) < 18
        assert all(row["reward"] == 1.0 for row in rows)
        (out / "ended.jsonl").write_bytes(kept + kept[:40])  # as a kill leaves it
        begun = json.loads((out / "run.json").read_text())
        del begun["config"]["workers"], begun["config"]["temperature"]  # as before there were such options
        (out / "run.json").write_text(json.dumps(begun))
        assert run(*line, "--temperature", "0.5") == 2
        assert "began with temperature = 1.0, the config now says 0.5" in capsys.readouterr().err
        endpoint.asked.clear()
        dies_after = 10_000
        monkeypatch.setattr(eval_command, "Progress", Watched)
        assert run(*line) == 0
        assert Watched.counted == [("found", len(rows)), *[("played", 1)] * (18 - len(rows))]
        seeds = {asked["seed"] for asked in endpoint.asked}
        assert run(*line) == 2  # it has ended
    assert len(seeds) == 18 - len(rows)
    assert not seeds & {row["seed"] & 0x7FFFFFFF for row in rows}
    assert [(row["sample"], row["reward"]) for row in episodes(out)] == [(0, 1.0), (1, 1.0), (2, 1.0)] * 6


def test_an_episode_lost_with_its_box_has_no_tokens_and_no_say_in_the_columns(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [{"sample": 0}, {"sample": 1, "prompt_tokens": 7, "completion_tokens": 3}]
    eval_command._write_episodes(tmp_path, rows)
    assert [row["prompt_tokens"] for row in episodes(tmp_path)] == [None, 7]
    assert eval_command._tokens(rows) == {"prompt_tokens": 7, "completion_tokens": 3}
    assert eval_command._tokens(rows[:1]) == {}


def test_code_tasks_are_played_in_boxes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    if (fault := namespaces.why_unavailable()) is not None:
        pytest.skip(f"tier namespaces: {fault}")
    tasks = tmp_path / "tasks"
    tasks.mkdir()
    solutions = {}
    for task in TASKS.values():
        (tasks / f"{task.task_id}.json").write_text(code_task_to_json(task))
        solutions[task.prompt[1].content] = plan_messages(code_gold_plan(task))
    with fake_endpoint(knows(solutions)) as endpoint:
        assert run(endpoint.url, tasks, tmp_path / "out", "--sandbox", "namespaces", "--json") == 0
    summary = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (summary["pass_rate"], summary["tier"]) == (1.0, "namespaces")
    assert endpoint.asked[0]["tools"]


def test_mistakes_are_one_line_before_anything_is_written(
    corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def said(*line: str) -> str:
        code = main(["eval", "--tasks", str(corpus), "--out", str(tmp_path / "out"), *line])
        err = capsys.readouterr().err
        assert not (tmp_path / "out").exists()
        assert err.count("\n") == 1
        return f"{code}: {err}"

    assert said("--policy", "openai:nonsense").startswith("2: worldsmith eval: 'nonsense' is not URL#MODEL")
    assert said("--policy", "openai:http://127.0.0.1:9/v1#m").startswith("3: ")
    with fake_endpoint(lambda asked: completion("x")) as endpoint:
        assert "did you mean some/model?" in said("--policy", f"openai:{endpoint.url}#som/model")
        assert "--at-once must be at least 1" in said(
            "--policy", f"openai:{endpoint.url}#some/model", "--at-once", "0"
        )
