"""The speed of bfloat16 products is that of this processor."""

import pytest

from lib.fast import precision
from lib.fast.precision import bfloat16_speedup


@pytest.fixture(autouse=True)
def fresh():
    bfloat16_speedup.cache_clear()
    yield
    bfloat16_speedup.cache_clear()


def test_the_ratio_of_two_products(monkeypatch):
    taken = {"torch.float32": 2.0, "torch.bfloat16": 90.0}
    monkeypatch.setattr(precision, "_seconds", lambda factor: taken[str(factor.dtype)])
    assert bfloat16_speedup() == pytest.approx(2 / 90)


def test_it_is_measured_once(monkeypatch):
    found = bfloat16_speedup()
    assert found > 0
    monkeypatch.setattr(precision, "_seconds", lambda factor: pytest.fail("measured again"))
    assert bfloat16_speedup() == found
