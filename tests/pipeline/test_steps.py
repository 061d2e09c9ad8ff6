"""The order of the steps, and their command lines."""

from dataclasses import replace
from pathlib import Path

import pytest

from lib.pipeline.steps import STEPS, Chain
from tests.docs.checks import parse_with_tool

ROOT = Path(__file__).parents[2]
CHAIN = Chain(
    "mine", ("--images", "my images", "--json", "a.json", "--name", "mine"), run=Path("r")
)


def names(*goals, done=()):
    return [step.name for step in CHAIN.to(*goals, done=done)]


def test_every_step_comes_after_what_it_needs():
    for number, kind in enumerate(STEPS):
        assert {*kind.needs} <= {earlier.name for earlier in STEPS[:number]}


def test_a_goal_brings_what_it_needs_and_no_more():
    assert names("clusters") == ["shapes", "proposals", "prm", "clusters"]
    assert names("clusters", done=["shapes", "prm"]) == ["proposals", "clusters"]
    assert names("evaluate", done=["train"]) == ["shapes", "proposals", "test", "evaluate"]
    assert names("gallery", "pseudo_labels", done=["proposals", "train"]) == [
        "test",
        "masks",
        "pseudo_labels",
        "gallery",
    ]
    assert names("train", done=["train"]) == []


def test_unknown_goals_are_errors():
    with pytest.raises(KeyError):
        names("nonsense")


@pytest.mark.parametrize("kind", STEPS, ids=lambda kind: kind.name)
def test_the_tools_accept_the_commands(kind):
    chain = replace(
        CHAIN,
        cfg=Path("configs/resnet18_shapes.yaml"),
        overrides=("run.seed", "7"),
        device="cpu",
        threads=2,
        overwrite=True,
        options={"prm": ("--if-needed",), "recall": ("--counts", "20"), "evaluate": ("--coco",)},
    )
    others = [other.name for other in STEPS if other is not kind]
    (step,) = chain.to(kind.name, done=others)
    assert step.of == "mine" and step.why == kind.why
    read, fault = parse_with_tool(ROOT / step.command[0], step.command[1:])
    assert fault is None
    if "{data}" in kind.command:
        assert str(read.images) == "my images" and str(read.data_root) == "data"
    if "{settings}" in kind.command:
        assert [str(word) for word in read.set] == ["run.seed", "7"]
    if "--detections" in kind.command:
        assert read.detections == CHAIN.result("refine_test")
    elif "{run}" in kind.command and "run" in read:
        assert str(read.run) == "r"
    assert not set("{}") & set("".join(step.command))


def test_results():
    assert CHAIN.result("evaluate") == Path("r/test/mine/metrics.json")
    assert CHAIN.result("prm") == Path("data/prm/mine.pth")
