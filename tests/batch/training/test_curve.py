"""Curves as pictures."""

import re
from xml.etree import ElementTree

from batch.training.curve import POINTS, chart, thinned


def svg(text: str) -> ElementTree.Element:
    found = re.search(r"<svg.*</svg>", text)
    assert found
    return ElementTree.fromstring(found.group())


def test_each_curve_is_a_line_and_is_named() -> None:
    text = chart({"a": [(1, 1.0), (2, 0.1)], "b<i>": [(1, 0.5), (2, 0.01)]}, log=True)
    assert len(svg(text).findall("polyline")) == 2
    assert "b&lt;i&gt;" in text
    assert "<i>" not in text.replace("<i style", "")


def test_a_log_axis_shows_what_is_above_zero_and_one_value_is_a_dot() -> None:
    text = chart({"a": [(1, 0.0), (2, 0.1)]}, log=True)
    assert len(svg(text).findall("circle")) == 1
    assert "nothing to draw" in chart({"a": [(1, 0.0)]}, log=True)


def test_many_points_are_averaged() -> None:
    points = [(float(n), float(n % 2)) for n in range(10_000)]
    few = thinned(points)
    assert len(few) <= POINTS
    assert all(abs(y - 0.5) < 0.1 for _, y in few)


def test_a_curve_without_rise_is_drawn() -> None:
    assert svg(chart({"a": [(1, 2.0), (2, 2.0)]})).findall("polyline")
