import numpy as np
import pytest
import torch

from lib.config import PRMConfig
from lib.data.points import Points
from lib.prm.network import PeakResponseNet
from lib.prm.peaks import (
    Peaks,
    class_scores,
    find_peaks,
    peak_mask,
    peak_response_maps,
    peaks_from_points,
    select_peaks,
)


def slow_peaks(plane: np.ndarray) -> list[tuple[int, int]]:
    """Peaks of one map from the definition; the first of equal maxima of a window counts."""
    height, width = plane.shape
    median = np.sort(plane.reshape(-1))[(height * width - 1) // 2]
    found = []
    for y in range(height):
        for x in range(width):
            window = [
                (plane[v, u], -v, -u)
                for v in range(max(y - 1, 0), min(y + 2, height))
                for u in range(max(x - 1, 0), min(x + 2, width))
            ]
            if max(window) == (plane[y, x], -y, -x) and plane[y, x] >= median:
                found.append((y, x))
    return found


def make_peaks(rows: list[tuple[int, float]]) -> Peaks:
    """Peaks of (class, response); their positions are their numbers."""
    class_idx, response = zip(*rows, strict=True) if rows else ((), ())
    at = np.arange(len(rows))
    return Peaks(
        size=(9, 9),
        class_idx=np.array(class_idx, np.int64),
        y=at,
        x=at,
        response=np.array(response, np.float32),
        fallback=np.zeros(len(rows), bool),
    )


def test_peaks_by_hand():
    plane = torch.tensor(
        [
            [5.0, 1.0, 1.0, 1.0, 0.0],
            [1.0, 1.0, 1.0, 3.0, 1.0],
            [1.0, 1.0, 1.0, 1.0, 1.0],
            [-4.0, -4.0, -4.0, 1.0, 1.0],
            [-4.0, -3.0, -4.0, 1.0, 9.0],
        ]
    )
    # (1, 3) is 3, (0, 0) is 5, (4, 4) is 9; (4, 1) is a maximum but below the median of 1.
    # (2, 1) and further ones are part of flat ground: a window's first maximum is not they.
    found = {tuple(at) for at in peak_mask(plane[None, None])[0, 0].nonzero().tolist()}
    assert {(0, 0), (1, 3), (4, 4)} <= found
    assert (4, 1) not in found
    assert found == set(slow_peaks(plane.numpy()))


@pytest.mark.parametrize("shape", [(1, 1), (1, 7), (6, 1), (5, 8), (8, 8)])
@pytest.mark.parametrize("levels", [2, 4, 1000])
def test_peaks_are_those_of_the_definition(shape, levels):
    planes = np.random.default_rng(levels).integers(levels, size=(2, 3, *shape)).astype(np.float32)
    mask = peak_mask(torch.from_numpy(planes)).numpy()
    for b in range(2):
        for c in range(3):
            expected = slow_peaks(planes[b, c])
            assert [tuple(at) for at in np.argwhere(mask[b, c])] == expected
            assert expected, "every map has a peak"


def test_find_peaks_goes_by_class_and_then_in_reading_order():
    response = torch.randn(4, 12, 10, generator=torch.Generator().manual_seed(0))
    peaks = find_peaks(response)
    expected = [(c, y, x) for c in range(4) for y, x in slow_peaks(response[c].numpy())]
    assert peaks.size == (12, 10)
    assert list(zip(peaks.class_idx, peaks.y, peaks.x, strict=True)) == expected
    assert peaks.response.tolist() == [response[at].item() for at in expected]
    assert not peaks.fallback.any()


def test_class_score_is_the_mean_of_the_peaks_and_so_is_its_gradient():
    response = torch.randn(2, 3, 9, 7, generator=torch.Generator().manual_seed(1))
    response.requires_grad_()
    scores = class_scores(response)
    for b in range(2):
        for c in range(3):
            values = [response[b, c, y, x].item() for y, x in slow_peaks(response[b, c].detach())]
            assert scores[b, c].item() == pytest.approx(np.mean(values), abs=1e-6)
    scores[1, 2].backward()
    mask = peak_mask(response)
    expected = torch.zeros_like(response)
    expected[1, 2] = mask[1, 2] / mask[1, 2].sum()
    torch.testing.assert_close(response.grad, expected)


def test_selection_by_hand():
    peaks = make_peaks([(0, 12.0), (0, 10.0), (0, 30.0), (1, 9.0), (1, 3.0), (2, 50.0), (3, 11.0)])
    chosen = select_peaks(peaks, np.array([1, 1, 0, 1]), PRMConfig())
    # Class 0: above 10, not at it. Class 1: none above, so its highest. Class 2 is not present.
    assert chosen.y.tolist() == [3, 6, 0, 2]
    assert chosen.response.tolist() == [9.0, 11.0, 12.0, 30.0]
    assert chosen.class_idx.tolist() == [1, 3, 0, 0]
    assert chosen.fallback.tolist() == [True, False, False, False]
    assert not peaks.fallback.any()


def relative(fraction):
    return PRMConfig(peak_thresh_relative=fraction)


def test_relative_threshold():
    peaks = make_peaks([(0, 4.0), (0, 1.2), (0, 1.3), (1, -2.0), (1, -1.0), (2, 5.0)])
    chosen = select_peaks(peaks, np.array([1, 1, 1]), relative(0.3125))  # 0.3125 * 4 = 1.25
    assert chosen.y.tolist() == [4, 2, 0, 5]
    assert chosen.fallback.tolist() == [True, False, False, False]
    everything = select_peaks(peaks, np.array([1, 0, 0]), relative(0.0))
    assert everything.y.tolist() == [1, 2, 0]
    best = select_peaks(peaks, np.array([1, 0, 0]), relative(1.0))
    assert best.y.tolist() == [0] and not best.fallback.any()


def test_equal_responses_keep_their_order_and_no_label_means_no_peak():
    peaks = make_peaks([(0, 11.0), (1, 11.0), (0, 11.0)])
    assert select_peaks(peaks, np.array([1, 1]), PRMConfig()).y.tolist() == [0, 2, 1]
    assert len(select_peaks(peaks, np.array([0, 0]), PRMConfig())) == 0
    assert len(select_peaks(make_peaks([]), np.array([1, 1]), PRMConfig())) == 0


def test_points_keep_the_order_of_the_file():
    points = Points(
        xy=np.array([[7.9, 2.0], [0.0, 3.5]]),
        class_idx=np.array([1, 0]),
        confidence=np.array([0.5, 0.25]),
    )
    peaks = peaks_from_points(points, (4, 8))
    assert (peaks.size, peaks.x.tolist(), peaks.y.tolist()) == ((4, 8), [7, 0], [2, 3])
    assert peaks.class_idx.tolist() == [1, 0]


def test_peak_response_maps_share_out_each_peak_and_leave_the_net_as_it_was():
    torch.manual_seed(0)
    args = {"widths": [4, 4], "depths": [1, 1], "strides": [1, 2]}
    net = PeakResponseNet(2, PRMConfig(backbone="resnet18", backbone_args=args)).eval()
    image = torch.randn(1, 3, 48, 48)
    response = net(image)[0]
    before = response.clone()
    peaks = find_peaks(response)
    maps = peak_response_maps(net, image, peaks)
    assert maps.shape == (len(peaks), 48, 48)
    assert (maps >= 0).all()
    sums = maps.sum(dim=(1, 2))
    assert ((sums - 1).abs() < 1e-4).logical_or(sums == 0).all() and (sums > 0).any()
    torch.testing.assert_close(net(image)[0], before)
    assert not any(module._forward_hooks for module in net.modules())
    assert all(parameter.grad is None for parameter in net.parameters())


def test_peak_response_map_of_one_convolution_by_hand():
    conv = torch.nn.Conv2d(1, 1, kernel_size=3, bias=False)
    weight = torch.tensor([[1.0, -5.0, 2.0], [0.0, 1.0, -1.0], [3.0, 0.0, 0.5]])
    conv.weight.data = weight[None, None]
    image = torch.tensor([[2.0, 1.0, 4.0], [1.0, 3.0, 9.0], [1.0, 5.0, 2.0]])[None, None]
    only = Peaks((1, 1), *(np.zeros(1, np.int64),) * 3, np.ones(1, np.float32), np.zeros(1, bool))
    # The input is counted from its lowest value, 1: shares 1*1, 3*2, 2*1, 0*3, 1*0.5 of 9.5.
    expected = torch.tensor([[1.0, 0.0, 6.0], [0.0, 2.0, 0.0], [0.0, 0.0, 0.5]]) / 9.5
    torch.testing.assert_close(peak_response_maps(conv, image, only)[0], expected)


def test_peak_response_map_of_two_convolutions_by_hand():
    below = torch.nn.Conv2d(1, 3, kernel_size=(1, 3), bias=False)
    above = torch.nn.Conv2d(3, 1, kernel_size=1)
    weight = torch.tensor([[1.0, 1.0, 1.0], [0.0, 2.0, 2.0], [0.0, 3.0, 1.0]])
    below.weight.data = weight[:, None, None]
    above.weight.data = torch.tensor([1.0, -1.0, 2.0])[None, :, None, None]
    image = torch.tensor([1.0, 2.0, 4.0])[None, None, None]
    only = Peaks((1, 1), *(np.zeros(1, np.int64),) * 3, np.ones(1, np.float32), np.zeros(1, bool))
    # Channels 7, 12, 10: the first is the lowest, the second has a negative weight, so the third
    # has everything. Its shares of the pixels (0, 1, 3) above the lowest are 0, 3 * 1 and 1 * 3.
    maps = peak_response_maps(torch.nn.Sequential(below, above), image, only)
    torch.testing.assert_close(maps[0], torch.tensor([[0.0, 0.5, 0.5]]))
