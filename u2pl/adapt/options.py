"""Options of domain adaptation: losses, EMA teacher, contrast."""

import dataclasses
from typing import Literal

from runtime.option_ranges import NonNegative
from u2pl import branch_options, pseudo_labels
from u2pl import contrast as contrast_lib
from u2pl.adapt import feature_distance as feature_distance_lib
from u2pl.adapt import self_training as self_training_lib

# Head that returns the encoder's deepest map.
FEATURES = 'features'


@dataclasses.dataclass(frozen=True)
class LearnOptions(branch_options.BranchOptions):
  """Options of source-only training, DAFormer, and U2PL+ on DAFormer.

  Attributes:
    self_training: loss of mixed images; None trains on the source alone.
    feature_distance: distance to the features of the initial encoder on source
      images, which should be that of ImageNet; None for none.
    contrast: contrastive loss between pixels (U2PL+); None for none. Requires
      `self_training`.
    partition: share of unreliable pixels; it falls from step to step.
    prototype_momentum: m of U2PL+'s Eq. 18.
    start_step: first step with contrast and denoising.
    partition_epochs: number of equal parts of the training after each of which
      the share of unreliable pixels falls; 0 if it falls at each step.
    mixed_outputs: outputs that give entropy, ranks and representations of mixed
      images: those of a 'second_pass' of the teacher, in training mode, on
      source and mixed images; or 'reuse' those that there are, of the teacher
      for target images and of the student for source images.
    source_pixels: what source pixels of mixed images are to the contrastive
      loss: 'labeled' ones, 'unlabeled' ones that are partitioned by entropy as
      target pixels are, or 'ignored'.
    ignored_rows: whether target pixels in rows without weight may be anchors,
      positives and negatives. The percentile of the entropy is without them.
  """

  self_training: self_training_lib.SelfTrainingOptions | None = (
    self_training_lib.SelfTrainingOptions()
  )
  feature_distance: feature_distance_lib.FeatureDistanceOptions | None = (
    feature_distance_lib.FeatureDistanceOptions()
  )
  contrast: contrast_lib.ContrastOptions | None = None
  partition: pseudo_labels.PartitionOptions = pseudo_labels.PartitionOptions()
  prototype_momentum: float = 0.999
  start_step: NonNegative[int] = 1500
  partition_epochs: NonNegative[int] = 0
  mixed_outputs: Literal['second_pass', 'reuse'] = 'second_pass'
  source_pixels: Literal['labeled', 'unlabeled', 'ignored'] = 'labeled'
  ignored_rows: bool = False

  def __post_init__(self):
    super().__post_init__()
    self.check_branch('self_training')
    if self.mixed_outputs != 'second_pass' and not self.needs_entropy:
      raise ValueError(
        f'mixed_outputs={self.mixed_outputs!r}: expected filtered '
        'pseudo-labels, contrast or denoising, got none of them'
      )
    for name, default in (
      ('source_pixels', 'labeled'),
      ('ignored_rows', False),
    ):
      value = getattr(self, name)
      if value != default and not self.needs_representations:
        raise ValueError(
          f'{name}={value!r}: expected contrast or denoising, got neither'
        )

  @property
  def denoises(self) -> bool:
    """Returns whether pseudo-labels are denoised."""
    return bool(self.self_training) and self.self_training.denoise != 'off'

  @property
  def needs_representations(self) -> bool:
    """Returns whether the network needs a head `rep`."""
    return bool(self.contrast) or self.denoises

  @property
  def needs_entropy(self) -> bool:
    """Returns whether the teacher is applied to the mixed images, too."""
    filtered = bool(self.self_training) and self.self_training.filtered
    return filtered or self.needs_representations

  @property
  def source_heads(self) -> tuple[str, ...]:
    """Returns the heads of the student's pass on source images."""
    heads = self.mixed_heads
    return (*heads, FEATURES) if self.feature_distance else heads

  @property
  def mixed_heads(self) -> tuple[str, ...]:
    """Returns the heads of the student's pass on mixed images."""
    return ('logits', 'rep') if self.contrast else ('logits',)
