import torch

from lib.modeling.mask_fuse import MaskFuse


def test_fuses_the_box_with_what_lies_under_the_mask():
    torch.manual_seed(0)
    fuse = MaskFuse(in_channels=3, fuse_channels=2, hidden_dim=4)
    features, masks = torch.randn(5, 3, 7, 7), (torch.rand(5, 7, 7) < 0.5).float()
    conv, first, second = fuse.mask_branch[0], fuse.seg_fc[0], fuse.seg_fc[2]
    for p in range(5):
        x = torch.cat([features[p], features[p] * masks[p]])  # (6, 7, 7)
        x = (
            torch.nn.functional.conv2d(x[None], conv.weight, conv.bias, padding=1)
            .relu()
            .reshape(-1)
        )
        x = (first.weight @ x + first.bias).relu()
        x = (second.weight @ x + second.bias).relu()
        torch.testing.assert_close(fuse(features, masks)[p], x, rtol=1e-4, atol=1e-5)


def test_keeps_the_channels_of_the_backbone_by_default():
    assert MaskFuse(8, hidden_dim=4).mask_branch[0].weight.shape == (8, 16, 3, 3)


def test_the_mask_matters_and_no_proposals_are_fine():
    torch.manual_seed(0)
    fuse = MaskFuse(in_channels=3, hidden_dim=16)
    features = torch.randn(1, 3, 7, 7)
    whole, half = torch.ones(1, 7, 7), torch.ones(1, 7, 7)
    half[:, :, 3:] = 0
    assert not torch.equal(fuse(features, whole), fuse(features, half))
    assert fuse(features[:0], whole[:0]).shape == (0, 16)
