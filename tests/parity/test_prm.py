"""The published PRM and cluster assignment against ours."""

import zlib

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from lib.config import PRMConfig
from lib.prm.clusters import agpl_clusters
from lib.prm.network import PeakResponseNet
from lib.prm.peaks import Peaks, class_scores, find_peaks, peak_response_maps, select_peaks
from lib.proposals.regions import encode


def weight_from_name(name: str, shape: torch.Size) -> np.ndarray:
    """The weights that the vectors were computed with."""
    rng = np.random.Generator(np.random.PCG64(zlib.crc32(name.encode())))
    if name.endswith("num_batches_tracked"):
        return np.zeros(shape, np.int64)
    if name.endswith("running_var"):
        return np.ones(shape, np.float32)
    draw = rng.standard_normal(shape, np.float32)
    if name.endswith(("bias", "running_mean")):
        return 0.01 * draw
    if len(shape) == 1:
        return 0.5 + 0.05 * draw
    return draw * np.float32(np.sqrt((1 if shape[0] <= 81 else 2) / np.prod(shape[1:])))


@pytest.fixture(scope="module")
def networks():
    """PeakResponseNet by number of classes, with the weights of its names."""
    made = {}

    def network(num_classes: int, gain: float) -> PeakResponseNet:
        if (num_classes, gain) not in made:
            net = PeakResponseNet(num_classes, PRMConfig()).eval()
            for name, tensor in net.state_dict().items():
                tensor.copy_(torch.as_tensor(weight_from_name(name, tensor.shape)))
            net.classifier[0].weight.data *= gain
            made[num_classes, gain] = net.requires_grad_(False)
        return made[num_classes, gain]

    return network


@pytest.mark.golden("prm_state_dict.json")
def test_names_and_shapes(golden, networks):
    num_classes = golden["0.classifier.0.bias"][0]
    own = PeakResponseNet(num_classes, PRMConfig()).state_dict()
    assert {name: list(tensor.shape) for name, tensor in own.items()} == golden.data
    for name, tensor in own.items():
        golden.check(name, tensor.shape)


@pytest.mark.golden("prm_[0-9]*.npz")
def test_responses_peaks_and_peak_maps(golden, networks):
    num_classes = golden["aggregation"].shape[1]
    net = networks(num_classes, float(golden["classifier_gain"]))
    noise = torch.from_numpy(golden["noise14"]).permute(2, 0, 1)[None]
    image = noise.repeat_interleave(32, dim=2).repeat_interleave(32, dim=3)
    response = net(image)
    golden.check("class_response", response[0, golden["labels"]], atol=1e-3)
    golden.check("aggregation", class_scores(response), atol=1e-3)

    image_labels = np.zeros(num_classes)
    image_labels[golden["labels"]] = 1
    peaks = select_peaks(find_peaks(response[0]), image_labels, PRMConfig())
    assert (np.diff(peaks.response) >= 0).all()
    order = np.lexsort((peaks.x, peaks.y, peaks.class_idx))
    peaks = peaks.take(order)
    positions = np.stack([np.zeros(len(peaks)), peaks.class_idx, peaks.y, peaks.x], axis=1)
    golden.check("peaks", positions)
    golden.check("peak_score", peaks.response, atol=1e-3)

    maps = peak_response_maps(net, image, peaks)
    pooled = F.avg_pool2d(maps[None], 16)[0]
    golden.check("prm_pooled16", pooled, atol=1e-4 * golden["prm_pooled16"].max())


@pytest.mark.golden("agpl_*.npz")
def test_clusters(golden):
    height, width = int(golden["height"]), int(golden["width"])
    bits = np.unpackbits(golden["masks"], axis=1, count=height * width).astype(bool)
    masks = bits.reshape(int(golden["num_proposals"]), height, width)
    _, class_idx, y, x = golden["peaks"].T
    size = (int(golden["response_size"]),) * 2
    fallback = np.zeros(len(y), bool)
    peaks = Peaks(size, class_idx, y, x, golden["peak_score"], fallback)
    peaks = peaks.take(np.argsort(peaks.response, kind="stable"))
    clusters = agpl_clusters(encode(masks), peaks)
    matrix = np.zeros(golden["cluster_matrix"].shape)
    inside = np.flatnonzero(clusters.column >= 0)
    matrix[inside, clusters.column[inside]] = clusters.number[inside]
    golden.check("cluster_matrix", matrix)
