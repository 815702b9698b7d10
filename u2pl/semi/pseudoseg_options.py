"""Options of PseudoSeg and PC2Seg, and of their views with a cutout."""

import dataclasses
from typing import ClassVar, Literal

from etils import epy

from runtime.option_ranges import (
  AtLeastOne,
  CheckedOptions,
  NonNegative,
  Positive,
  UnitInterval,
)
from segcore.ops import color_augment
from u2pl.semi import options as options_lib

with epy.lazy_imports():
  import flax.linen as nn

  from segcore.models import heads as heads_lib
  from u2pl.semi import grad_cam

# Always changed, without gray images and blur.
COLORS = color_augment.ColorOptions(
  jitter=1.0, brightness=0.5, contrast=0.5, saturation=0.5, hue=0.25
)


@dataclasses.dataclass(frozen=True)
class CutoutViewOptions(CheckedOptions):
  """Options of the strong view of unlabeled images.

  Attributes:
    color: ranges of brightness, contrast, saturation and hue; brightness b is
      a shift by b - 1.
    cutout: side of the square that is cut out, as a share of the shorter side
      of the image; 0 for none.
  """

  color: color_augment.ColorOptions = COLORS
  cutout: UnitInterval = 100 / 513

  def __post_init__(self):
    super().__post_init__()
    if self.color.gray or self.color.blur or self.color.solarize:
      raise ValueError(
        'color: expected changes of brightness, contrast, saturation and hue '
        f'alone, got {self.color}'
      )


@dataclasses.dataclass(frozen=True)
class PseudoSegOptions(options_lib.SystemOptions):
  """Options of PseudoSeg: views, fusion and loss of pseudo-labels.

  Attributes:
    name: 'pseudoseg'.
    supervised: loss on labeled images, of the decoder.
    views: strong view of unlabeled images.
    attention_width: channels of the queries and keys of the self-attention.
    scale: what logits are divided by before they are fused; see
      `grad_cam.fuse_predictions`.
    temperature: T of the pseudo-labels.
    includes_labeled: whether labeled images are among the unlabeled ones.
    weight: weight of the loss on unlabeled images.
    warmup_epochs: epochs of the losses on labeled images alone, at the start.
  """

  name: Literal['pseudoseg'] = 'pseudoseg'
  supervised: options_lib.SupervisedOptions = options_lib.SupervisedOptions()
  views: CutoutViewOptions = CutoutViewOptions()
  attention_width: AtLeastOne = 128
  scale: Literal['batch', 'pixel'] = 'batch'
  temperature: Positive[float] = 0.5
  includes_labeled: bool = False
  weight: Positive[float] = 1.0
  warmup_epochs: NonNegative[int] = 0

  def further_heads(
    self, num_classes: int, logits: 'nn.Module'
  ) -> 'dict[str, nn.Module]':
    """Builds the classifier of images and the self-attention."""
    del logits
    return {
      'tags': heads_lib.PoolHead(num_classes - 1),
      'attention': grad_cam.SelfAttention(num_classes, self.attention_width),
    }

  def check_num_classes(self, num_classes: int) -> None:
    """Raises ValueError unless there is a class beside the background."""
    if num_classes < 2:
      raise ValueError(
        f'name: expected 2 classes or more for pseudoseg, got {num_classes}'
      )


@dataclasses.dataclass(frozen=True)
class Pc2SegOptions(options_lib.SystemOptions):
  """Options of the PC2Seg-like system. Every default is a guess.

  Attributes:
    name: 'pc2seg'.
    supervised: loss on labeled images.
    views: strong view of unlabeled images, that of PseudoSeg.
    consistency: λ₁, weight of the squared error of predictions.
    contrast: λ₂, weight of the contrastive loss.
    temperature: τ of the contrastive loss.
    num_cells: number of cells of an image that are anchors, and that may be
      negatives of others.
    num_negatives: number of negatives of an anchor.
    includes_labeled: whether labeled images are among the unlabeled ones.
    weight: factor of both weights.
    warmup_epochs: epochs of the supervised loss alone, at the start.
  """

  needs_representations: ClassVar[bool] = True

  name: Literal['pc2seg'] = 'pc2seg'
  supervised: options_lib.SupervisedOptions = options_lib.SupervisedOptions()
  views: CutoutViewOptions = CutoutViewOptions()
  consistency: NonNegative[float] = 1.0
  contrast: NonNegative[float] = 0.1
  temperature: Positive[float] = 0.1
  num_cells: AtLeastOne = 64
  num_negatives: AtLeastOne = 200
  includes_labeled: bool = False
  weight: Positive[float] = 1.0
  warmup_epochs: NonNegative[int] = 0

  @property
  def student_heads(self) -> tuple[str, ...]:
    """Returns the heads of the forward passes."""
    return (*super().student_heads, 'rep')
