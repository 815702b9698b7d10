"""Options of domain adaptation: losses, EMA teacher, contrast."""

import dataclasses

from u2pl import contrast as contrast_lib
from u2pl import contrastive_branch, pseudo_labels
from u2pl.adapt import feature_distance as feature_distance_lib
from u2pl.adapt import self_training as self_training_lib

# Head that returns the encoder's deepest map.
FEATURES = 'features'


@dataclasses.dataclass(frozen=True)
class LearnOptions(contrastive_branch.BranchOptions):
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
  start_step: int = 1500

  def __post_init__(self):
    self.check_branch('self_training')
    if self.start_step < 0:
      raise ValueError(f'start_step: expected 0 or more, got {self.start_step}')

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
