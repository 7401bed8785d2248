"""ResNet-8/14/20/32/44/56/110 for small images (He et al. 2016, Section 4.2), as the long-tail literature has them.

3x3 stem of 16 channels, three stages of 16/32/64 channels with n basic blocks each (depth = 6 n + 2), parameter-free
"option A" shortcuts, Kaiming-normal weights, no convolution bias, a linear classifier with bias. The normalisation
layer is a parameter: a function from the channel count to a module.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cbn_deploy.models.basic_block import BasicBlock, NormFactory
from cbn_deploy.models.classifier import ClassifierFactory

__all__ = ["CifarResNet"]


class PaddedShortcut(nn.Module):
    """Option A: every ``stride``-th pixel, with channels of zeros around; no parameters."""

    def __init__(self, in_channels: int, channels: int, stride: int) -> None:
        super().__init__()
        self.stride = stride
        self.padding = (channels - in_channels) // 2

    def forward(self, x: Tensor) -> Tensor:
        """(B, in_channels, H, W) -> (B, channels, H / stride, W / stride), rounded up."""
        return F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, self.padding, self.padding))


class CifarResNet(nn.Module):
    """``depth`` = 6 n + 2 layers; input (B, 3, H, W) with H, W >= 4, output logits (B, num_classes)."""

    def __init__(
        self, depth: int, num_classes: int, norm: NormFactory, classifier: ClassifierFactory = nn.Linear
    ) -> None:
        super().__init__()
        if depth < 8 or (depth - 2) % 6:
            raise ValueError(f"depth must be 6 n + 2, got {depth}")
        blocks = (depth - 2) // 6
        self.conv1 = nn.Conv2d(3, 16, 3, padding=1, bias=False)
        self.bn1 = norm(16)
        self.layer1 = _stage(16, 16, blocks, 1, norm)
        self.layer2 = _stage(16, 32, blocks, 2, norm)
        self.layer3 = _stage(32, 64, blocks, 2, norm)
        self.fc = classifier(64, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                nn.init.kaiming_normal_(module.weight)

    def forward(self, x: Tensor) -> Tensor:
        """(B, 3, H, W) -> logits (B, num_classes)."""
        x = F.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        logits: Tensor = self.fc(torch.mean(x, dim=(2, 3)))
        return logits


def _stage(in_channels: int, channels: int, blocks: int, stride: int, norm: NormFactory) -> nn.Sequential:
    same = stride == 1 and in_channels == channels
    shortcut = nn.Identity() if same else PaddedShortcut(in_channels, channels, stride)
    first = BasicBlock(in_channels, channels, stride, norm, shortcut)
    return nn.Sequential(first, *(BasicBlock(channels, channels, 1, norm, nn.Identity()) for _ in range(blocks - 1)))
