import pytest
import torch
from torch import nn

from lib.fast.lanes import SideBySide


def make_lanes(model, count):
    return SideBySide(model, None, None, count)


@pytest.mark.parametrize("count", [1, 2, 3])
def test_the_lane_follows_from_the_number_alone(count):
    lanes = make_lanes(nn.Linear(2, 1), count)
    taken = lanes.map(lanes.models.index, [()] * 7)
    assert taken == [number % count for number in range(7)]


def test_weights_are_shared_and_gradients_are_not():
    model = nn.Sequential(nn.Linear(2, 1), nn.BatchNorm1d(1))
    lanes = make_lanes(model, 3)
    with torch.no_grad():
        model[0].weight.fill_(5.0)
        model[1].running_mean.fill_(7.0)
    for replica in lanes.models[1:]:
        assert (replica[0].weight == 5).all()
        assert (replica[1].running_mean == 7).all()
    lanes.models[2][0](torch.ones(1, 2)).sum().backward()
    assert model[0].weight.grad is None


def test_gradients_are_added_and_taken_from_the_replicas():
    model = nn.ParameterDict({name: nn.Parameter(torch.ones(1)) for name in "abcd"})
    lanes = make_lanes(model, 3)
    given = {"a": (1.0, 2.0, 4.0), "b": (None, 2.0, 4.0), "c": (None, None, 4.0), "d": (None,) * 3}
    for name, values in given.items():
        for lane, value in zip(lanes.models, values, strict=True):
            if value is not None:
                lane[name].grad = torch.tensor([value])
    lanes.gather_gradients()
    assert {n: p.grad.item() for n, p in model.items() if p.grad is not None} == {
        "a": 7.0,
        "b": 6.0,
        "c": 4.0,
    }
    assert all(p.grad is None for m in lanes.models[1:] for p in m.parameters())


def test_all_lanes_are_waited_for_when_one_fails():
    lanes = make_lanes(nn.Linear(2, 1), 2)
    done = []

    def fail_first(_model, number):
        if number == 0:
            raise ValueError("first")
        done.append(number)

    with pytest.raises(ValueError, match="first"):
        lanes.map(fail_first, [(number,) for number in range(6)])
    assert sorted(done) == [1, 2, 3, 4, 5]


def test_an_update_begins_without_gradients_of_the_one_before():
    model = nn.ParameterDict({name: nn.Parameter(torch.ones(1)) for name in "ab"})
    lanes = SideBySide(model, lambda *of: of, lambda m, _, __: {"loss": m["a"].sum()}, 2)
    for lane in lanes.models:
        for parameter in lane.values():
            parameter.grad = torch.tensor([5.0])
    found = lanes([(None, None)] * 3, lambda losses: (losses["loss"], {"total": 1.0}))
    assert found == [{"total": 1.0}] * 3
    assert model["a"].grad.item() == 3 and model["b"].grad is None
