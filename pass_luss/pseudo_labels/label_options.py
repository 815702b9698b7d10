"""Options of clusters and of pseudo-labels."""

import dataclasses
from typing import Literal

from pass_luss import image_sizes
from runtime.option_ranges import AtLeastOne

# The unit of clustering: images, pooled with their pixel attention; images,
# average-pooled (the image-level baseline of the paper); or the cells of the
# deepest feature map (its pixel-level baseline).
Kind = Literal['attended', 'image', 'pixel']


@dataclasses.dataclass(frozen=True)
class ClusterOptions(image_sizes.CenterCropOptions):
  """Options of k-means and of the features that it clusters.

  Attributes:
    iterations: number of assignments and updates of each restart.
    restarts: number of k-means runs, of which the one with the lowest objective
      is kept.
    kind: unit of clustering, see `label_options.Kind`.
    batch_size: global number of images of a batch; does not change the result.
    seed: seed of the initial centroids.
  """

  iterations: AtLeastOne = 20
  restarts: AtLeastOne = 30
  kind: Kind = 'attended'
  batch_size: AtLeastOne = 256
  seed: int = 0


@dataclasses.dataclass(frozen=True)
class LabelOptions:
  """Options of pseudo-label generation.

  Attributes:
    threshold: threshold τ; pixels of lower attention become 'other'. Negative:
      the threshold of the highest mIoU on `choose_on`, as in the released code.
    choose_on: split with masks to choose a threshold and a matching on.
    short_side: short side of the resized images, in pixels.
    batch_size: global number of images of a batch; does not change the result.
    saliency: foreground instead of attention: 'rc' for region contrast, or a
      folder with a saliency map of each image; '' for attention.
    report: further splits with masks to label and score.
  """

  threshold: float = -1.0
  choose_on: str = 'val'
  short_side: int = 256
  batch_size: int = 64
  saliency: str = ''
  report: tuple[str, ...] = ('val',)

  def __post_init__(self):
    if self.threshold > 1:
      raise ValueError(
        f'threshold: expected at most 1, or negative, got {self.threshold}'
      )

  def describe(self, kind: Kind) -> str:
    """Describes the protocol in words for results.json.

    Args:
      kind: unit of clustering.
    """
    foreground = 'attention' if kind == 'attended' else 'all pixels'
    if self.saliency:
      foreground = f'saliency ({self.saliency})'
    text = f'foreground by {foreground}, short side {self.short_side}'
    if self.report:
      text += f'; categories matched with classes on {self.choose_on}'
    return text
