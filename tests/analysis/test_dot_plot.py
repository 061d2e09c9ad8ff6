"""Dots at the right place."""

import math
from statistics import fmean
from xml.etree import ElementTree

import pytest

from lib.analysis.dot_plot import dot_plot

SVG = "{http://www.w3.org/2000/svg}"


def dots(figure):
    """Title -> (x, y) of every dot that has one."""
    found = {}
    for circle in ElementTree.fromstring(figure).iter(f"{SVG}circle"):
        title = circle.find(f"{SVG}title")
        if title is not None:
            found[title.text] = float(circle.get("cx")), float(circle.get("cy"))
    return found


def test_dots_lie_on_the_scale_of_their_panel():
    rows = {"first": [10.0, 30.0], "a < b": [20.0, math.nan]}
    figure = dot_plot({"AP50": rows}, ["seed 1", "seed 2"], "what & why")
    found = dots(figure)
    assert found.keys() == {"first: 10.0", "first: 30.0", "a < b: 20.0"}  # NaN has no dot
    (x10, y10), (x30, y30), (x20, y20) = found.values()
    assert x20 - x10 == pytest.approx(x30 - x20) and x10 < x20
    assert y10 == y30 < y20
    texts = {t.text: t for t in ElementTree.fromstring(figure).iter(f"{SVG}text")}
    assert {"AP50", "first", "a < b", "seed 1", "seed 2", "mean"} <= texts.keys()
    assert float(texts["10"].get("x")) == x10 and float(texts["30"].get("x")) == x30


def test_the_line_stands_at_the_mean():
    values = [10.0, 20.0, 60.0]
    figure = dot_plot({"p": {"row": values}}, ["1", "2", "3"])
    x = {title: place[0] for title, place in dots(figure).items()}
    scale = (x["row: 60.0"] - x["row: 10.0"]) / 50
    wanted = x["row: 10.0"] + scale * (fmean(values) - 10)
    lines = [p.get("d") for p in ElementTree.fromstring(figure).iter(f"{SVG}path")]
    assert any(abs(float(d[1:].split()[0]) - wanted) < 0.2 for d in lines if d.endswith("v18"))


@pytest.mark.parametrize("values", [[0.0], [50.0, 50.0], [0.001, 0.002], [-3.0, 1e4], [math.nan]])
def test_any_range_stays_inside(values):
    panels = {"one": {"row": values}, "two": {"row": values}}
    figure = dot_plot(panels, [str(n) for n in range(len(values))])
    root = ElementTree.fromstring(figure)
    for x, y in dots(figure).values():
        assert 0 <= x <= float(root.get("width")) and 0 <= y <= float(root.get("height"))
