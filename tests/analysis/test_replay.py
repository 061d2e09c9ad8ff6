from types import SimpleNamespace

import torch
from torch import nn

from lib.analysis.replay import not_finite, replay


def run(model, loss):
    sample = SimpleNamespace(file_name="a.png", image=torch.ones(2, 4))

    def by_stage(model, sample, generator):
        return {"one": loss(model(sample.image))}

    (image,) = replay(model, by_stage, {"one": 1.0}, [sample], [torch.Generator()])
    return image


def make_model():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 3), nn.ReLU(inplace=True), nn.Linear(3, 2))


def test_nothing_is_found_where_all_is_well():
    image = run(make_model(), lambda out: out.sum(dim=1))
    assert image.file_name == "a.png"
    assert len(image.losses["one"]) == 2
    assert (image.first_output, image.first_gradient) == (None, None)
    assert image.grad_norm > 0


def test_a_gradient_that_fails_alone():
    image = run(make_model(), lambda out: (out * 0).sqrt().sum())
    assert image.losses["one"] == [0.0]
    assert image.first_output is None
    assert image.first_gradient == "the gradient at the output of 2 (4 of 4 values)"


def test_the_first_part_counts():
    model = make_model()
    with torch.no_grad():
        model[0].bias[1] = float("inf")
    image = run(model, lambda out: out.sum())
    assert image.first_output == "the output of 0 (2 of 6 values)"
    assert not_finite(model.state_dict()) == ["0.bias"]


def test_a_loss_that_fails_alone():
    image = run(make_model(), lambda out: out.sum() * float("inf"))
    assert image.first_output == "the loss one (1 of 1 values)"
