import re
from pathlib import Path

import numpy as np
import pytest

from lib.data.points import points_path, read_points


def write(folder, text):
    path = folder / "a.txt"
    path.write_text(text)
    return path


def test_hand_table(tmp_path):
    points = read_points(write(tmp_path, "3 4 0 1\n\n9.5 0 2 0.25\n0 4.9 2.0 -1\n"), 3, (5, 10))
    assert points.xy.tolist() == [[3, 4], [9.5, 0], [0, 4.9]]
    assert points.class_idx.tolist() == [0, 2, 2] and points.class_idx.dtype == np.int64
    assert points.confidence.tolist() == [1, 0.25, -1]


def test_no_points(tmp_path):
    points = read_points(write(tmp_path, "\n"), 3, (5, 10))
    assert points.xy.shape == (0, 2)
    assert len(points.class_idx) == len(points.confidence) == 0


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("1 2 0", "expected `x y class confidence`, got '1 2 0'"),
        ("1 2 0 1 1", "expected `x y class confidence`"),
        ("1 2 cat 1", "expected `x y class confidence`"),
        ("1 2 3 1", "class 3 with confidence 1, expected a class in 0..2 (they count from 0)"),
        ("1 2 -1 1", "class -1 with"),
        ("1 2 0.5 1", "class 0.5 with"),
        ("1 2 nan 1", "class nan with"),
        ("1 2 0 inf", "with confidence inf"),
        ("10 2 0 1", "the point x 10, y 2 is outside its image of 5x10"),
        ("1 5 0 1", "is outside its image"),
        ("-0.5 2 0 1", "is outside its image"),
        ("nan 2 0 1", "is outside its image"),
    ],
)
def test_bad_lines(tmp_path, line, message):
    path = write(tmp_path, f"1 1 0 1\n{line}\n")
    with pytest.raises(ValueError, match=re.escape(f"{path}:2: ") + ".*" + re.escape(message)):
        read_points(path, 3, (5, 10))


def test_missing_file(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"a\.txt: no such file; every image needs"):
        read_points(tmp_path / "a.txt", 3, (5, 10))


def test_where_they_are():
    assert points_path("points", "sub/2007_000032.jpg") == Path("points/sub/2007_000032.txt")
