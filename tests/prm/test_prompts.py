"""Peaks of a PRM as points to make proposals at; the chain is in tests/test_provenance_chain.py."""

import numpy as np
import torch

from lib.config import PRMConfig
from lib.prm.network import build_prm, open_prm
from lib.prm.prompts import PeakFinder


class Net:
    """Responds the same to any image."""

    settings = PRMConfig(image_size=8)
    seen = None

    def parameters(self):
        yield torch.zeros(1)

    def __call__(self, images):
        self.seen = images.shape
        response = torch.zeros(1, 2, 4, 4) - 1
        response[0, 0, 0, 3], response[0, 1, 2, 1], response[0, 0, 2, 1] = 5, 9, 7
        return response


def test_the_highest_peaks_of_any_class():
    net = Net()
    image = np.zeros((30, 50, 3), np.uint8)
    # x and y of the centres of cells; the second peak in the cell of the first is no new point.
    expected = [[1.5 / 4, 2.5 / 4], [3.5 / 4, 0.5 / 4]]
    np.testing.assert_allclose(PeakFinder(net)(image, 9)[:2], expected)
    assert net.seen == (1, 3, 8, 8)
    np.testing.assert_allclose(PeakFinder(net)(image, 1), expected[:1])


def test_a_checkpoint_tells_how_many_classes_it_knows(tmp_path):
    small = {"widths": [4, 4, 4, 4], "depths": [1, 1, 1, 1]}
    settings = PRMConfig(backbone="resnet18", backbone_args=small, weights="random", image_size=32)
    net = build_prm(settings, 3)
    torch.save(net.state_dict(), tmp_path / "prm.pth")
    opened = open_prm(settings, tmp_path / "prm.pth")
    assert opened.num_classes == 3 and not opened.training
    image = np.full((20, 30, 3), 90, np.uint8)
    points = PeakFinder(opened)(image, 5)
    assert 1 <= len(points) <= 5 and ((points > 0) & (points < 1)).all()
