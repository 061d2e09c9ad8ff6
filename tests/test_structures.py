import torch
from benchmarks.drawn import draw_sample
from torch import Tensor


def test_all_tensors_of_a_sample_are_pinned(monkeypatch):
    pinned = []
    monkeypatch.setattr(Tensor, "pin_memory", lambda self: pinned.append(self) or self + 0)
    sample = draw_sample(32, 3)
    result = sample.pin_memory()
    assert len(pinned) == sum(isinstance(v, Tensor) for v in vars(sample).values()) == 9
    assert result.file_name == sample.file_name and result.boxes is not sample.boxes
    assert torch.equal(result.boxes, sample.boxes)
