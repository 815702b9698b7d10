"""What the published settings of a semi-supervised system consist of."""

from collections.abc import Mapping
from typing import Any, NamedTuple


class Settings(NamedTuple):
  """Published settings of a system on a data set.

  Attributes:
    size: side of the crops in pixels.
    group: unlabeled images of one GPU, which are mixed with each other.
    batch: labeled images of a step, and as many unlabeled ones.
    epochs: epochs of the unlabeled images; or by the number of labels, of which
      the nearest decides.
    lr: learning rate of the encoder.
    losses: fields of the block of losses.
    stride: stride of the windows of inference; 0 for whole images.
    average: what overlapping windows average, logits or probabilities.
    head_lr: factor of the learning rate of decoder and heads.
    decays_all: whether biases and norms decay, too.
    network: default of the option.
    adam: whether the optimizer is AdamW, else SGD.
    fill: padding of crops.
    architecture: 'light', the DeepLabv3+ of UniMatch; 'cps', that of CPS; the
      same with the blocks of the classifier in the decoder ('cps_features');
      or pyramid pooling ('psp'), also with CCT's classifier ('psp_shuffle');
      or network, heads and crops of U2PL ('u2pl').
    scales: range of the scale of images before they are cropped.
    listed_scales: scales of which the authors take one; () for a range.
    long_side: range of the length of the longer side of an image before it is
      cropped, in pixels; () for scales.
    padded_to: multiple of pixels to which whole images are padded; 0 for none.
    weight_decay: decay of SGD.
    framed: whether inference is on images padded to the size of the crops.
    representation: channels of the head `rep`; 0 for none.
  """

  size: int
  group: int
  batch: int
  epochs: int | Mapping[int, int]
  lr: float
  losses: Mapping[str, Any]
  stride: int = 0
  average: str = 'logits'
  head_lr: float = 1.0
  decays_all: bool = True
  network: str = 'resnet101'
  adam: bool = False
  fill: str = 'mean'
  architecture: str = 'light'
  scales: tuple[float, float] = (0.5, 2.0)
  listed_scales: tuple[float, ...] = ()
  long_side: tuple[int, ...] = ()
  padded_to: int = 0
  weight_decay: float = 1e-4
  framed: bool = False
  representation: int = 0

  @property
  def optimizer(self) -> dict[str, Any]:
    """Builds rule, schedule and decay; the rate is that of the options."""
    groups = []
    if self.head_lr != 1:
      groups.append(('^(decoder|heads)/', self.head_lr, 1.0))
    if not self.decays_all:
      groups.append(('(^|/)(bias|scale)$', 1.0, 0.0))
    rule = {'weight_decay': 0.01}
    if not self.adam:
      rule = {
        'name': 'sgd',
        'weight_decay': self.weight_decay,
        'weight_decay_mode': 'l2',
      }
    fields = {'groups': tuple(groups)} if groups else {}
    return {'schedule': 'poly', **rule, **fields}

  @property
  def protocol(self) -> dict[str, Any]:
    """Builds the inference protocol."""
    if self.framed:
      return {
        'tiling': 'sliding_window',
        'window': (self.size, self.size),
        'stride': (self.size, self.size),
        'padding_mode': 'mean',
        'size_multiple': self.size,
        'align_corners': True,
      }
    if not self.stride:
      fields = {'size_multiple': self.padded_to} if self.padded_to else {}
      if 'vit' in self.network:
        fields = {'side_multiple': 14}  # Patches have to fit.
      return {'align_corners': True, **fields}
    return {
      'tiling': 'sliding_window',
      'window': (self.size, self.size),
      'stride': (self.stride, self.stride),
      'average': self.average,
      'align_corners': True,
    }
