"""The options that benchmarks of training share."""

from pathlib import Path

import pytest

from benchmarks import async_rl, rl_step
from benchmarks.small_run import parser_of


@pytest.mark.parametrize(("benchmark", "rounds", "groups"), [(async_rl, 2, 4), (rl_step, 3, 16)])
def test_each_benchmark_of_training_has_them(benchmark: object, rounds: int, groups: int) -> None:
    shared = vars(parser_of("", rounds=rounds, groups=groups).parse_args([]))
    assert shared == {"rounds": rounds, "groups": groups, "start": None, "quick": False, "json": False}
    parse = benchmark.parse  # pyright: ignore[reportAttributeAccessIssue]
    assert shared.items() <= vars(parse([])).items()
    given = parse(["--start", "there", "--json", "--rounds", "1", "--groups", "8"])
    assert (given.start, given.json, given.rounds, given.groups) == (Path("there"), True, 1, 8)


def test_their_help_tells_the_defaults(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parser_of("A benchmark.", rounds=7, groups=5).parse_args(["--help"])
    said = capsys.readouterr().out
    assert "A benchmark." in said
    assert "runs of each setting (default: 7)" in said
    assert "groups of 8 a step (default: 5)" in said
