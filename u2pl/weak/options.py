"""Options of weak supervision: labels from CAMs, losses, contrast."""

import dataclasses
from typing import Literal

from runtime.option_ranges import (
  AtLeastOne,
  CheckedOptions,
  NonNegative,
  UnitInterval,
)
from segcore.ops import dense_energy, pixel_adaptive_refinement
from u2pl import branch_options
from u2pl import contrast as contrast_lib


@dataclasses.dataclass(frozen=True)
class CamOptions(CheckedOptions):
  """Options of class activation maps, and of labels made from them.

  Attributes:
    scales: factors of the images whose maps are added.
    low: T_l, value up to which a pixel is background.
    high: T_h, value above which a pixel has the class of the largest map.
    plain: value that separates background and classes, where no pixel is left
      without a label.
    refinement: pixel-adaptive refinement of the labels.
    walked_crop: pixels that the refinement after the random walk reads: those
      of the 'box' without padding, or the 'whole' crop, which differs near the
      edges of the box.
  """

  scales: tuple[float, ...] = (1.0, 0.5, 1.5)
  low: UnitInterval = 0.35
  high: UnitInterval = 0.55
  plain: UnitInterval = 0.45
  refinement: pixel_adaptive_refinement.PixelAdaptiveOptions = (
    pixel_adaptive_refinement.PixelAdaptiveOptions()
  )
  walked_crop: Literal['box', 'whole'] = 'box'

  def __post_init__(self):
    super().__post_init__()
    if self.low > self.high:
      raise ValueError(
        f'low and high: expected low <= high, got {self.low} and {self.high}'
      )
    if not self.scales or min(self.scales) <= 0:
      raise ValueError(f'scales: expected numbers above 0, got {self.scales}')


@dataclasses.dataclass(frozen=True)
class AffinityOptions(CheckedOptions):
  """Options of the affinities of cells (AFA).

  Attributes:
    weight: weight of the affinity loss.
    radius: largest difference of rows, and of columns, of a pair of cells.
  """

  weight: NonNegative[float] = 0.1
  radius: NonNegative[int] = 8


@dataclasses.dataclass(frozen=True)
class CamContrastOptions(contrast_lib.PairOptions):
  """Options of the contrastive loss of CAMs (U2PL+, Eqs. 29-31).

  There is no queue of the background: class 0 is the first class of tags.

  Attributes:
    first_capacity: 0, so that all queues have the same length.
    anchor_threshold: β of Eq. 29: value of the map that an anchor must exceed.
    negative_threshold: β of Eq. 31: value below which a cell is a negative.
    absent_anchors: whether cells may be anchors of a class that the image does
      not show, as Eq. 29 has it if taken literally.
    padding: whether cells of padding may be anchors and negatives.
    keys_per_image: largest number of an image's negatives that are enqueued for
      a class, a uniform sample.
    maps: M^c of Eqs. 29-31: multi-scale CAMs ('cam'), or these after a step of
      the random walk by affinities ('propagated'; see `propagate_cams`).
    key_source: network whose representations are enqueued and averaged to
      prototypes: the 'student' that is trained, or its EMA 'teacher'.
    teacher_decay: largest decay of the EMA teacher, which begins as a copy when
      the contrastive loss does.
  """

  first_capacity: int = 0
  anchor_threshold: UnitInterval = 0.45
  negative_threshold: UnitInterval = 0.45
  absent_anchors: bool = False
  padding: bool = False
  keys_per_image: AtLeastOne = 256
  maps: Literal['cam', 'propagated'] = 'cam'
  key_source: Literal['student', 'teacher'] = 'student'
  teacher_decay: UnitInterval = 0.999

  def __post_init__(self):
    super().__post_init__()
    if self.teacher_decay == 1:
      raise ValueError(
        'teacher_decay: expected less than 1, got 1, with which it never learns'
      )


@dataclasses.dataclass(frozen=True)
class LearnOptions(branch_options.BranchOptions):
  """Options of AFA, U2PL+ on AFA, CAMs alone, and training on masks.

  Attributes:
    supervision: 'tags' of whole images, or 'masks', an upper bound.
    segmentation: whether there is a segmentation loss; without it, CAMs are
      evaluated.
    segmentation_weight: weight of the segmentation loss.
    pooling: pooling of the features that the class is predicted from: the 'max'
      of AFA, or the 'mean'.
    cam: CAMs and labels made from them.
    affinity: affinity loss and labels propagated by affinities; None for none,
      and for encoders without attention.
    energy: dense energy of the predictions; None for none.
    contrast: contrastive loss between pixels (U2PL+); None for none.
    prototype_momentum: momentum of the prototypes of Eq. 30.
    class_steps: last step with the class loss alone.
    refined_steps: last step in which the segmentation loss has refined labels;
      later it has propagated ones.
  """

  supervision: Literal['tags', 'masks'] = 'tags'
  segmentation: bool = True
  segmentation_weight: NonNegative[float] = 0.1
  pooling: Literal['max', 'mean'] = 'max'
  cam: CamOptions = CamOptions()
  affinity: AffinityOptions | None = AffinityOptions()
  energy: dense_energy.DenseEnergyOptions | None = None
  contrast: CamContrastOptions | None = None
  prototype_momentum: float = 0.999
  class_steps: NonNegative[int] = 2000
  refined_steps: NonNegative[int] = 6000

  def __post_init__(self):
    super().__post_init__()
    self.check_branch('segmentation')
    if self.refined_steps < self.class_steps:
      raise ValueError(
        f'refined_steps: expected at least class_steps = {self.class_steps}, '
        f'got {self.refined_steps}'
      )
    if self.supervision == 'masks' and not self.segmentation:
      raise ValueError(
        "segmentation: expected True with supervision='masks', got False"
      )
    if self.propagates_maps and not self.affinity:
      raise ValueError(
        "contrast.maps: expected 'cam' without affinity, which maps are "
        "propagated by, got 'propagated'"
      )
    for name in ('affinity', 'energy', 'contrast'):
      if getattr(self, name) is not None and not self.needs_cams:
        raise ValueError(
          f'{name}: expected None without segmentation by labels of CAMs, got '
          'options'
        )

  @property
  def needs_cams(self) -> bool:
    """Returns whether CAMs are computed in training."""
    return self.segmentation and self.supervision == 'tags'

  @property
  def propagates_maps(self) -> bool:
    """Returns whether anchors and negatives are those of propagated CAMs."""
    return bool(self.contrast) and self.contrast.maps == 'propagated'

  @property
  def has_teacher(self) -> bool:
    """Returns whether the state has an EMA teacher, which gives the keys."""
    return bool(self.contrast) and self.contrast.key_source == 'teacher'

  @property
  def needs_representations(self) -> bool:
    """Returns whether the network needs a head `rep`."""
    return self.contrast is not None

  @property
  def parts(self) -> tuple[str, ...]:
    """Returns the names of the network's parts that are trained."""
    decoder = ('decoder',) if self.segmentation else ()
    return ('encoder', *decoder, 'heads')

  @property
  def heads(self) -> tuple[str, ...]:
    """Returns the names of the heads that are trained."""
    return (
      *(('tags',) if self.supervision == 'tags' else ()),
      *(('logits',) if self.segmentation else ()),
      *(('affinity',) if self.affinity else ()),
      *(('rep',) if self.contrast else ()),
    )
