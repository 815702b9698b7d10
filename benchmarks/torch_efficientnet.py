"""The network `efficientnet+unet` in torch, for comparisons of speed.

  network = torch_efficientnet.Network(num_classes=8, frozen_blocks=None)
  logits = network(images)    # [B, C, h / 4, w / 4]

Blocks and channels are those of `segcore.models.encoders.efficientnet` and of
the decoder in `configs.networks`; maps are in channels_last.
"""

import torch
from torch import nn
from torch.nn import functional

from segcore.models.encoders import efficientnet

WIDTH, GROUPS = 64, 8
# Stages whose last maps are skips, by the number of channels.
SKIPS = {5: 112, 3: 40, 2: 24}


class SameConv(nn.Module):
  """A convolution without bias, with TensorFlow's 'SAME' padding."""

  def __init__(
    self, inputs: int, outputs: int, kernel: int, stride: int = 1, groups=1
  ):
    super().__init__()
    # Sides are even: with stride 2 the larger half of the zeros is after.
    self.before = (kernel - stride) // 2
    self.after = kernel - stride - self.before
    padding = 0 if self.after > self.before else self.before
    self.conv = nn.Conv2d(
      inputs, outputs, kernel, stride, padding, groups=groups, bias=False
    )

  def forward(self, x: torch.Tensor) -> torch.Tensor:
    """Convolves maps, padded as by TensorFlow."""
    if self.after > self.before:
      x = functional.pad(x, (self.before, self.after) * 2)
    return self.conv(x)


def normed(conv: nn.Module, channels: int, *after: nn.Module) -> nn.Sequential:
  """Builds a convolution with a batch norm, and what follows."""
  return nn.Sequential(conv, nn.BatchNorm2d(channels, 1e-3, 0.01), *after)


class Bottleneck(nn.Module):
  """A block of EfficientNet-Lite."""

  def __init__(self, inputs: int, block: efficientnet.EfficientNetBlock):
    super().__init__()
    width = block.expansion * inputs
    depthwise = SameConv(width, width, block.kernel, block.stride, width)
    layers = [
      normed(depthwise, width, nn.ReLU6()),
      normed(SameConv(width, block.channels, 1), block.channels),
    ]
    if block.expansion != 1:
      layers.insert(0, normed(SameConv(inputs, width, 1), width, nn.ReLU6()))
    self.layers, self.shortcut = nn.Sequential(*layers), block.shortcut

  def forward(self, x: torch.Tensor) -> torch.Tensor:
    """Applies the convolutions, and adds the input if there is a shortcut."""
    y = self.layers(x)
    return x + y if self.shortcut else y


class UpBlock(nn.Module):
  """A block of the U-Net: upsampling, skip, two 3x3 with group norms."""

  def __init__(self, inputs: int, skip: int):
    super().__init__()
    layers = []
    for channels in (inputs + skip, WIDTH):
      layers += [
        SameConv(channels, WIDTH, 3),
        nn.GroupNorm(GROUPS, WIDTH, 1e-6),
        nn.ReLU(),
      ]
    self.layers = nn.Sequential(*layers)

  def forward(self, x: torch.Tensor, skip: torch.Tensor) -> torch.Tensor:
    """Joins the map, upsampled by 2, with a skip."""
    x = functional.interpolate(x, scale_factor=2.0, mode='bilinear')
    return self.layers(torch.cat([x, skip], dim=1))


class Network(nn.Module):
  """EfficientNet-Lite0 with a U-Net to stride 4 and a head of 3x3.

  Args:
    num_classes: number of classes.
    frozen_blocks: number of blocks that are frozen with the stem; None for
      none.
  """

  def __init__(self, num_classes: int, frozen_blocks: int | None):
    super().__init__()
    self.frozen = None if frozen_blocks is None else frozen_blocks + 1
    self.specs = efficientnet.scale_blocks('lite0')
    blocks, channels = [normed(SameConv(3, 32, 3, 2), 32, nn.ReLU6())], 32
    for spec in self.specs:
      blocks.append(Bottleneck(channels, spec))
      channels = spec.channels
    self.blocks = nn.ModuleList(blocks)
    inputs = (channels, WIDTH, WIDTH)
    self.decoder = nn.ModuleList(
      UpBlock(n, skip) for n, skip in zip(inputs, SKIPS.values(), strict=True)
    )
    self.head = nn.Conv2d(WIDTH, num_classes, 3, padding=1)

  def train(self, mode: bool = True) -> 'Network':
    """Sets the mode; frozen blocks keep their running statistics."""
    super().train(mode)
    for block in self.blocks[: self.frozen or 0]:
      block.train(False)
    return self

  def forward(self, images: torch.Tensor) -> torch.Tensor:
    """Computes logits of images [B, 3, H, W], at a quarter of their sides."""
    x, maps = images, {}
    for i, block in enumerate(self.blocks):
      if i < (self.frozen or 0):
        with torch.no_grad():
          x = block(x)
      else:
        x = block(x)
      maps[self.specs[i - 1].stage if i else 0] = x
    for block, stage in zip(self.decoder, SKIPS, strict=True):
      x = block(x, maps[stage])
    return self.head(x)
