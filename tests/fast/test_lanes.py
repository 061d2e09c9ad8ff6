import pytest
import torch
from torch import nn

from lib.fast.lanes import Lanes


@pytest.mark.parametrize("count", [1, 2, 3])
def test_the_lane_follows_from_the_number_alone(count):
    lanes = Lanes(nn.Linear(2, 1), count)
    taken = [lanes.submit(number, lanes.models.index).result() for number in range(7)]
    assert taken == [number % count for number in range(7)]
    lanes.finish()


def test_weights_are_shared_and_gradients_are_not():
    model = nn.Sequential(nn.Linear(2, 1), nn.BatchNorm1d(1))
    lanes = Lanes(model, 3)
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
    lanes = Lanes(model, 3)
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
    lanes.drop_gradients()
    assert all(p.grad is None for m in lanes.models for p in m.parameters())


def test_all_lanes_are_waited_for_when_one_fails():
    lanes = Lanes(nn.Linear(2, 1), 2)
    done = []

    def fail(_model):
        raise ValueError("first")

    failed = lanes.submit(0, fail)
    for number in (1, 3, 5):
        lanes.submit(number, lambda _model, n: done.append(n), number)
    lanes.finish()
    assert done == [1, 3, 5]
    with pytest.raises(ValueError, match="first"):
        failed.result()
