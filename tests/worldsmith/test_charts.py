from xml.etree import ElementTree

import pytest

from worldsmith.charts import Axes, Line, Mark, line_chart, log_ticks, thinned, ticks, trailing_mean

AXES = Axes(x_label="step", y_label="pass rate", percent=True)


def test_ticks_are_round_and_lie_inside() -> None:
    assert ticks(0, 160, 6) == [0, 50, 100, 150]
    assert ticks(0.0, 0.8, 5) == pytest.approx([0.0, 0.2, 0.4, 0.6, 0.8])
    assert log_ticks(0.2, 5.1) == pytest.approx([0.2, 0.5, 1, 2, 5])


def test_the_trailing_mean_never_looks_ahead() -> None:
    points = [(0.0, 1.0), (1.0, 3.0), (2.0, 8.0)]
    assert trailing_mean(points, 2) == [(0.0, 1.0), (1.0, 2.0), (2.0, 5.5)]


def test_thinning_keeps_the_last_point() -> None:
    points = [(float(i), 0.0) for i in range(1001)]
    kept = thinned(points, 100)
    assert len(kept) <= 101
    assert kept[-1] == points[-1]


def test_a_chart_is_well_formed_and_its_text_escaped() -> None:
    line = Line(name="<b>", css="series-1", points=[(0, 0.1), (10, 0.6)])
    mark = Mark(x=10, y=0.5, low=0.4, high=0.6, title='"><script>')
    chart = line_chart([line], AXES, [mark])
    tree = ElementTree.fromstring(str(chart))
    assert [one.text for one in tree.iter("title")] == ["<b>", '"><script>']


def test_half_way_up_the_scale_is_half_way_up_the_picture() -> None:
    line = Line(name="x", css="series-1", points=[(0, 0.0), (1, 0.25), (2, 0.5)])  # the range is 0 to 50 %
    tree = ElementTree.fromstring(str(line_chart([line], AXES)))
    path = next(one for one in tree.iter("path")).attrib["d"]
    y = [float(point.split(",")[1]) for point in path.removeprefix("M").split("L")]
    assert y[1] == pytest.approx((y[0] + y[2]) / 2, abs=0.1)
    assert y[0] > y[2]


def test_nothing_to_draw_is_an_empty_string() -> None:
    assert line_chart([Line(name="x", css="faint", points=[])], AXES) == ""


def test_one_point_is_a_dot() -> None:
    assert "<circle" in line_chart([Line(name="x", css="faint", points=[(3, 0.2)])], AXES)
