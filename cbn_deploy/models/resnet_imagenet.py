"""ResNet-18/34/50/101/152 for photographs (He et al. 2016, Table 1).

7x7 stem of 64 channels with stride 2, 3x3 max pooling, four stages of blocks, projection shortcuts where the shape
changes, global average pooling, a linear classifier. The stages of ResNet-18 and ResNet-34 are of basic blocks and end
in 64/128/256/512 channels, the others are of bottlenecks, with the stride on the 3x3 convolution ("version 1.5"), and
end in four times as many. Modules are named as in torchvision's ResNet, so that its state dicts load into the
batch-norm twin with ``load_state_dict``; :func:`cbn_deploy.norm.convert_batchnorm` then makes the CBN network of it,
whose tensors have this network's names.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cbn_deploy.models.basic_block import BasicBlock, NormFactory
from cbn_deploy.models.classifier import ClassifierFactory

__all__ = ["Bottleneck", "ImageNetResNet", "ProjectedBasicBlock"]


class ProjectedBasicBlock(BasicBlock):
    """A basic block whose shortcut is a projection where the shape changes."""

    def __init__(self, in_channels: int, channels: int, stride: int, norm: NormFactory) -> None:
        super().__init__(in_channels, channels, stride, norm, _shortcut(in_channels, channels, stride, norm))


class Bottleneck(nn.Module):
    """1x1, 3x3 and 1x1 convolutions with normalisation; ``channels`` inside, four times as many at the end."""

    expansion = 4

    def __init__(self, in_channels: int, channels: int, stride: int, norm: NormFactory) -> None:
        super().__init__()
        out_channels = channels * self.expansion
        self.conv1 = nn.Conv2d(in_channels, channels, 1, bias=False)
        self.bn1 = norm(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, stride=stride, padding=1, bias=False)
        self.bn2 = norm(channels)
        self.conv3 = nn.Conv2d(channels, out_channels, 1, bias=False)
        self.bn3 = norm(out_channels)
        self.downsample = _shortcut(in_channels, out_channels, stride, norm)

    def forward(self, x: Tensor) -> Tensor:
        """(B, in_channels, H, W) -> (B, 4 channels, H / stride, W / stride), rounded up."""
        y = F.relu(self.bn1(self.conv1(x)))
        y = F.relu(self.bn2(self.conv2(y)))
        return F.relu(self.bn3(self.conv3(y)) + self.downsample(x))


class ImageNetResNet(nn.Module):
    """``blocks`` blocks of one kind in each of the four stages; input (B, 3, H, W), output logits (B, num_classes)."""

    def __init__(
        self,
        block: type[ProjectedBasicBlock] | type[Bottleneck],
        blocks: tuple[int, int, int, int],
        num_classes: int,
        norm: NormFactory,
        classifier: ClassifierFactory = nn.Linear,
    ) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 64, 7, stride=2, padding=3, bias=False)
        self.bn1 = norm(64)
        self.layer1 = _stage(block, 64, 64, blocks[0], 1, norm)
        self.layer2 = _stage(block, 64 * block.expansion, 128, blocks[1], 2, norm)
        self.layer3 = _stage(block, 128 * block.expansion, 256, blocks[2], 2, norm)
        self.layer4 = _stage(block, 256 * block.expansion, 512, blocks[3], 2, norm)
        self.fc = classifier(512 * block.expansion, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        """(B, 3, H, W) -> logits (B, num_classes)."""
        x = F.max_pool2d(F.relu(self.bn1(self.conv1(x))), 3, stride=2, padding=1)
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        logits: Tensor = self.fc(torch.mean(x, dim=(2, 3)))
        return logits


def _shortcut(in_channels: int, out_channels: int, stride: int, norm: NormFactory) -> nn.Module:
    if stride == 1 and in_channels == out_channels:
        return nn.Identity()
    projection = nn.Conv2d(in_channels, out_channels, 1, stride=stride, bias=False)
    return nn.Sequential(projection, norm(out_channels))


def _stage(
    block: type[ProjectedBasicBlock] | type[Bottleneck],
    in_channels: int,
    channels: int,
    blocks: int,
    stride: int,
    norm: NormFactory,
) -> nn.Sequential:
    first = block(in_channels, channels, stride, norm)
    return nn.Sequential(first, *(block(channels * block.expansion, channels, 1, norm) for _ in range(blocks - 1)))
