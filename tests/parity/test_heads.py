"""Overlaps, mining, targets and losses of one image, on random proposals and scores."""

import numpy as np
import pytest
import torch

from lib.fast.mining import FastCIMMiner
from lib.modeling.criterion import CIMCriterion
from lib.modeling.heads import CIMMiner, anti_noise_sample, teachers
from lib.modeling.losses import (
    bag_loss,
    pcl_loss,
    refine_bag_loss,
    refine_cls_loss,
    refine_integrity_loss,
)
from lib.proposals.overlaps import overlaps
from lib.proposals.regions import proposals_from_masks
from lib.structures import Instances, Sample, Scores

pytestmark = pytest.mark.golden("heads_*.npz")
STAGES = range(3)


@pytest.fixture
def proposals(golden):
    height, width = int(golden["height"]), int(golden["width"])
    bits = np.unpackbits(golden["masks"], axis=1, count=height * width)
    return proposals_from_masks(bits.reshape(-1, height, width).astype(bool))


@pytest.fixture
def scores(golden):
    names = ("predict_cls", "predict_det", "refine_cls", "refine_iou")
    return Scores(*map(golden.tensor, names))


@pytest.fixture
def image(golden):
    """present classes, iou, containment"""
    present = golden.tensor("labels")[0].nonzero()[:, 0]
    return present, golden.tensor("iou"), golden.tensor("containment")


@pytest.fixture(params=[CIMMiner, FastCIMMiner])
def make_miner(request):
    """The plain miner and that for CUDA, which computes the same on the CPU."""
    return request.param


def sample_of(golden):
    """What training knows of the image; the rest of the sample does not matter here."""
    cluster_matrix = golden.tensor("cluster_matrix").long()
    number, column = cluster_matrix.max(dim=1)
    return Sample(
        image_id=0,
        file_name="",
        image=None,
        boxes=None,
        roi_masks=None,
        membership=None,
        areas=None,
        image_labels=golden.tensor("labels")[0],
        cluster_id=number,
        cluster_column=column.where(number > 0, -1),
    )


def check_targets(golden, prefix, targets, s):
    column = targets.column[s]
    one_hot = torch.nn.functional.one_hot(column + 1, golden[f"{prefix}pseudo_label"].shape[1] + 1)
    golden.check(f"{prefix}pseudo_label", one_hot[:, 1:])
    golden.check(f"{prefix}pseudo_iou", targets.integrity_target[s])
    golden.check(f"{prefix}weight", targets.weight[s])


def test_overlaps(golden, proposals):
    regions = proposals.regions
    tensors = (torch.from_numpy(t).to(golden.device) for t in (regions.membership, regions.areas))
    iou, containment = overlaps(*tensors)
    golden.check("iou", iou)
    golden.check("containment", containment)
    height, width = proposals.regions.size
    clipped = golden["rois"][:, 1:].clip(0, [width - 1, height - 1, width - 1, height - 1])
    golden.check("rois", proposals.boxes, expected=clipped)


def test_instances(golden, scores, image, make_miner):
    miner = make_miner()
    instances = miner.mine(*teachers(scores), *image)
    for s in STAGES:
        is_instance = instances.class_idx[s] >= 0
        golden.check(f"s{s}_seed_gt_index", is_instance)
        labels = golden[f"s{s}_seed_gt_label"]
        golden.check(
            f"s{s}_seed_gt_label",
            instances.class_idx[s][is_instance],
            expected=labels.argmax(axis=1) - 1,
        )
        golden.check(f"s{s}_seed_gt_weight", instances.weight[s][is_instance])


def test_oversized(golden, image):
    miner = CIMMiner()
    oversized = miner.oversized(image[2])
    for s in STAGES:
        golden.check(f"s{s}_not_oversized", ~oversized)


def test_targets_before_sampling(golden, scores, image, make_miner):
    targets = make_miner(anti_noise=False)(*teachers(scores), *image)
    for s in STAGES:
        check_targets(golden, f"s{s}_", targets, s)


def test_mist_labels(golden, scores, image, make_miner):
    miner = make_miner(labels="mist", anti_noise=False)
    instances = miner.mine(*teachers(scores), *image)
    targets = miner(*teachers(scores), *image)
    for s in STAGES:
        is_instance = instances.class_idx[s] >= 0
        golden.check(f"s{s}_mist_gt_index", is_instance)
        golden.check(f"s{s}_mist_gt_weight", instances.weight[s][is_instance])
        check_targets(golden, f"s{s}_mist_", targets, s)


def test_anti_noise_samples(golden, scores, image):
    """The golden draw must be one of ours, and no rarer than one in a thousand.

    What was drawn shows in the weights: after sampling a proposal has the weight of the drawn
    instance that it overlaps most. Rareness is that of the number of different instances drawn.
    """
    miner = CIMMiner()
    instances = miner.mine(*teachers(scores), *image)
    generator = torch.Generator().manual_seed(1)
    for s in STAGES:
        row = Instances(instances.class_idx[s : s + 1], instances.weight[s : s + 1])
        weight = row.weight[0]
        is_drawn = (row.class_idx[0] >= 0) & torch.isin(weight, golden.tensor(f"s{s}_an_weight"))
        drawn = Instances(row.class_idx.where(is_drawn, -1), row.weight.where(is_drawn, 0.0))
        targets = CIMMiner(
            thresh_step=0, cls_thresh=0.25 + 0.1 * s, iou_thresh=0.5 + 0.1 * s
        ).assign(drawn, *image[1:])
        check_targets(golden, f"s{s}_an_", targets, 0)

        many = Instances(row.class_idx.expand(4000, -1), row.weight.expand(4000, -1))
        again = anti_noise_sample(many, generator)
        sizes = (again.class_idx >= 0).sum(dim=1)
        size = is_drawn.sum()
        assert ((sizes <= size).float().mean() > 1e-3) and ((sizes >= size).float().mean() > 1e-3)
        for c in row.class_idx.unique().tolist():
            if c >= 0:
                assert ((again.class_idx == c).any(dim=1)).all(), "a class was lost"
                assert (drawn.class_idx == c).any()


def test_losses(golden, scores, image):
    sample = sample_of(golden)
    labels = sample.image_labels
    targets = CIMMiner(anti_noise=False)(*teachers(scores), *image)
    close = {"rtol": 2e-6, "atol": 1e-8}
    golden.check("loss_mil_bag_loss", bag_loss(scores.cls_prob, scores.det_prob, labels), **close)
    pcl = pcl_loss(scores.cls_prob, sample.cluster_id, sample.cluster_column)
    golden.check("loss_pcl_loss", pcl, **close)
    for s in STAGES:
        cls_prob, integrity, column = (
            scores.refine_cls_prob[s],
            scores.refine_integrity_prob[s],
            targets.column[s],
        )
        weight = targets.weight[s] * (3 if s == 0 else 1)
        cls_loss = refine_cls_loss(cls_prob, column, weight)
        iou_loss = refine_integrity_loss(integrity, column, weight, targets.integrity_target[s])
        bag = refine_bag_loss(cls_prob, integrity, column, weight, labels)
        golden.check(f"loss_s{s}_cls_loss", cls_loss, **close)
        golden.check(f"loss_s{s}_iou_loss", iou_loss, **close)
        golden.check(f"loss_s{s}_bag_loss", bag, **close)


def test_total_loss(golden, scores, image):
    criterion = CIMCriterion(CIMMiner(anti_noise=False))
    losses = criterion(scores, sample_of(golden), *image[1:])
    total = sum(value.sum() for value in losses.values()) + 2 * losses["refine_integrity"].sum()
    golden.check("loss_total", total, rtol=2e-6)
