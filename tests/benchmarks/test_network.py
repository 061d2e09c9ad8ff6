"""The benchmarks of training and inference compute the same on both of their sides."""

import pytest
import torch
from benchmarks import inference, memory, network, train
from benchmarks.drawn import NUM_CLASSES, draw_sample
from benchmarks.network import fastest_precision, two_networks
from benchmarks.report import Conditions

QUICK = Conditions(quick=True)


def test_the_plain_network_has_the_same_weights():
    plain, model = two_networks(QUICK)
    sample = draw_sample(64, 9)
    arguments = (sample.image[None], sample.boxes, sample.roi_masks)
    with torch.no_grad():
        expected, found = plain.eval()(*arguments), model.eval()(*arguments)
    torch.testing.assert_close(found.refine_cls_prob, expected.refine_cls_prob)
    torch.testing.assert_close(found.det_prob, expected.det_prob)


def test_drawn_samples_are_what_training_takes():
    sample = draw_sample(100, 50, seed=4)
    assert sample.image.shape == (3, 75, 100)
    assert (sample.boxes[:, 2:] > sample.boxes[:, :2]).all() and (sample.boxes >= 0).all()
    pixels = sample.membership.double() @ sample.areas.double()
    width, height = (sample.boxes[:, 2:] - sample.boxes[:, :2]).double().unbind(dim=1)
    torch.testing.assert_close(pixels, width * height)
    assert sample.image_labels.sum() == 2 and len(sample.image_labels) == NUM_CLASSES
    clustered = sample.cluster_id > 0
    assert ((sample.cluster_column >= 0) == clustered).all() and clustered.any()


@pytest.mark.parametrize(("benchmark", "tolerance"), [(inference, 1e-2), (train, 1e-2)])
def test_quick_run(benchmark, tolerance):
    rows = {row.what: row for row in benchmark.run(QUICK)}
    ratio = rows[f"{fastest_precision(QUICK)}, times as fast as plain"]
    assert ratio.value > 0 and ratio.at_least >= 2
    differences = [row for what, row in rows.items() if "difference" in what]
    assert differences and all(row.value < tolerance for row in differences)


def test_peak_memory_is_that_of_a_process():
    assert memory.peak_bytes(20, 10, torch.get_num_threads(), QUICK) > 100 * 2**20


@pytest.mark.parametrize(("speedup", "goals"), [(1 / 45, (2, 2)), (2.2, (3, 2.5))])
def test_goals_go_by_the_products_of_the_processor(speedup, goals, monkeypatch):
    monkeypatch.setattr(network, "bfloat16_speedup", lambda: speedup)
    for benchmark, goal in zip((inference, train), goals, strict=True):
        assert goal in [row.at_least for row in benchmark.run(QUICK)]
