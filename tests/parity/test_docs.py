"""docs/parity.md names tests that exist and lists every quirk that the code marks."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs/parity.md").read_text()


@pytest.mark.parametrize("name", sorted(set(re.findall(r"`(tests/\S+::\w+)`", PAGE))))
def test_a_named_test_exists(name):
    path, function = name.split("::")
    assert f"def {function}(" in (ROOT / path).read_text()


def test_every_marked_quirk_is_listed():
    marked = {
        str(path.relative_to(ROOT))
        for path in (ROOT / "lib").rglob("*.py")
        if "PARITY:" in path.read_text()
    }
    assert marked
    kept = PAGE.split("## Quirks kept")[1].split("## Deviations")[0]
    assert marked <= set(re.findall(r"`(lib/\S+)`", kept))
