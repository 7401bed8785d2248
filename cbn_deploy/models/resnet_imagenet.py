"""ResNet-50/152 for photographs (He et al. 2016, Table 1), with the stride on the 3x3 convolution ("version 1.5").

7x7 stem of 64 channels with stride 2, 3x3 max pooling, four stages of bottleneck blocks that end in 256/512/1024/2048
channels, projection shortcuts where the shape changes, global average pooling, a linear classifier. Modules are named
as in torchvision's ResNet, so that its state dicts load into the batch-norm twin with ``load_state_dict``;
:func:`cbn_deploy.norm.convert_batchnorm` then makes the CBN network of it, whose tensors have this network's names.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cbn_deploy.models.classifier import ClassifierFactory
from cbn_deploy.models.resnet_cifar import NormFactory

__all__ = ["ImageNetResNet"]

_EXPANSION = 4


class Bottleneck(nn.Module):
    """1x1, 3x3 and 1x1 convolutions with normalisation; ``channels`` inside, four times as many at the end."""

    def __init__(self, in_channels: int, channels: int, stride: int, norm: NormFactory) -> None:
        super().__init__()
        out_channels = channels * _EXPANSION
        self.conv1 = nn.Conv2d(in_channels, channels, 1, bias=False)
        self.bn1 = norm(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, stride=stride, padding=1, bias=False)
        self.bn2 = norm(channels)
        self.conv3 = nn.Conv2d(channels, out_channels, 1, bias=False)
        self.bn3 = norm(out_channels)
        self.downsample: nn.Module = nn.Identity()
        if stride != 1 or in_channels != out_channels:
            projection = nn.Conv2d(in_channels, out_channels, 1, stride=stride, bias=False)
            self.downsample = nn.Sequential(projection, norm(out_channels))

    def forward(self, x: Tensor) -> Tensor:
        """(B, in_channels, H, W) -> (B, 4 channels, H / stride, W / stride), rounded up."""
        y = F.relu(self.bn1(self.conv1(x)))
        y = F.relu(self.bn2(self.conv2(y)))
        return F.relu(self.bn3(self.conv3(y)) + self.downsample(x))


class ImageNetResNet(nn.Module):
    """``blocks`` bottleneck blocks in each of the four stages; input (B, 3, H, W), output logits (B, num_classes)."""

    def __init__(
        self,
        blocks: tuple[int, int, int, int],
        num_classes: int,
        norm: NormFactory,
        classifier: ClassifierFactory = nn.Linear,
    ) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 64, 7, stride=2, padding=3, bias=False)
        self.bn1 = norm(64)
        self.layer1 = _stage(64, 64, blocks[0], 1, norm)
        self.layer2 = _stage(256, 128, blocks[1], 2, norm)
        self.layer3 = _stage(512, 256, blocks[2], 2, norm)
        self.layer4 = _stage(1024, 512, blocks[3], 2, norm)
        self.fc = classifier(512 * _EXPANSION, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        """(B, 3, H, W) -> logits (B, num_classes)."""
        x = F.max_pool2d(F.relu(self.bn1(self.conv1(x))), 3, stride=2, padding=1)
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        logits: Tensor = self.fc(torch.mean(x, dim=(2, 3)))
        return logits


def _stage(in_channels: int, channels: int, blocks: int, stride: int, norm: NormFactory) -> nn.Sequential:
    first = Bottleneck(in_channels, channels, stride, norm)
    rest = (Bottleneck(channels * _EXPANSION, channels, 1, norm) for _ in range(blocks - 1))
    return nn.Sequential(first, *rest)
