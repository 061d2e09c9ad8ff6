"""Runs PRM, CIM and Mask R-CNN on one backbone: forward, gradient, and weights handed on."""

import torch

from lib.config import load_config
from lib.modeling.model_builder import build_model
from lib.prm.network import build_prm
from lib.refine.mask_rcnn import build_mask_rcnn, mask_rcnn_losses
from lib.structures import InstanceSample


def run_chain(backbone, args):
    """The three networks; each has got a gradient, CIM has the PRM's weights and CIM+ has CIM's.

    Args:
        args: options of the backbone, in YAML.
    """
    words = ["model.hidden_dim", "8", "refine.model.fpn_channels", "8", "prm.upsample", "2"]
    words += ["prm.weights", "random", "model.weights", "prm", "refine.model.weights", "cim"]
    for section in ("model", "prm", "refine.model"):
        words += [f"{section}.backbone", backbone, f"{section}.backbone_args", args]
    config = load_config(None, words)
    torch.manual_seed(0)
    prm = build_prm(config.prm, num_classes=3).train()
    responses = prm(torch.randn(2, 3, 64, 64))
    assert responses.shape[:2] == (2, 3)
    responses.square().sum().backward()

    model = build_model(config.model, 3, prm.state_dict()).train()
    boxes = torch.tensor([[0.0, 0.0, 30.0, 30.0], [5.0, 5.0, 20.0, 25.0]])
    scores = model(torch.randn(1, 3, 40, 50), boxes, torch.ones(2, 7, 7))
    assert scores.refine_cls_prob.shape == (3, 2, 4)
    scores.refine_cls_prob[..., 0].sum().backward()

    refine = config.refine
    mask_rcnn = build_mask_rcnn(refine.model, refine.test, 3, model.state_dict()).train()
    mask = torch.zeros(1, 40, 50, dtype=torch.uint8)
    mask[:, 5:30, 6:40] = 1
    sample = InstanceSample(
        image_id=1,
        file_name="a.png",
        image=torch.randn(3, 40, 50),
        boxes=torch.tensor([[6.0, 5.0, 40.0, 30.0]]),
        class_idx=torch.tensor([1]),
        masks=mask,
    )
    losses = mask_rcnn_losses(mask_rcnn, sample, torch.Generator().manual_seed(0))
    assert all(loss.isfinite() for loss in losses.values())
    sum(losses.values()).backward()

    trunks = [prm.backbone, model.Conv_Body, mask_rcnn.backbone.body]
    for other in trunks[1:]:
        for name, tensor in trunks[0].state_dict().items():
            assert torch.equal(tensor, other.state_dict()[name]) or "running" in name, name
    for trunk in trunks:
        for name, parameter in trunk.named_parameters():
            assert (parameter.grad is not None) == parameter.requires_grad, name
    return prm, model, mask_rcnn
