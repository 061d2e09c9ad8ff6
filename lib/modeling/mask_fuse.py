"""MaskFuse: what a proposal looks like, in its box and under its mask (paper, section 3.1)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

ROI_SIZE = 7
"""Side of the pooled features and masks."""


class MaskFuse(nn.Module):
    """Fuses the features in a proposal's box with those under its mask (`Box_Head` as published).

    Args:
        in_channels: D, channels of the backbone.
        fuse_channels: channels after the convolution; None keeps D.
        hidden_dim: length of a proposal's feature vector.
    """

    def __init__(
        self, in_channels: int, fuse_channels: int | None = None, hidden_dim: int = 4096
    ) -> None:
        super().__init__()
        channels = in_channels if fuse_channels is None else fuse_channels
        self.mask_branch = nn.Sequential(
            nn.Conv2d(2 * in_channels, channels, kernel_size=3, padding=1), nn.ReLU(inplace=True)
        )
        self.seg_fc = nn.Sequential(
            nn.Linear(channels * ROI_SIZE**2, hidden_dim),
            nn.ReLU(inplace=True),
            nn.Linear(hidden_dim, hidden_dim),
            nn.ReLU(inplace=True),
        )
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
                nn.init.zeros_(module.bias)

    def forward(self, features: Tensor, roi_masks: Tensor) -> Tensor:
        """Turns pooled features (P, D, 7, 7) and masks (P, 7, 7) in {0, 1} into (P, hidden_dim)."""
        masked = features * roi_masks[:, None]  # (P, D, 7, 7)
        both = torch.cat([features, masked], dim=1)  # (P, 2D, 7, 7)
        fused = self.mask_branch(both)  # (P, channels, 7, 7)
        return self.seg_fc(fused.flatten(1))
