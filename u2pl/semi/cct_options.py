"""Options of CCT."""

import dataclasses
from typing import Literal

from etils import epy

from runtime.option_ranges import (
  CheckedOptions,
  NonNegative,
  Positive,
  UnitInterval,
)
from u2pl.semi import options as options_lib

with epy.lazy_imports():
  import flax.linen as nn

# Kinds of perturbed decoders, in the order of their heads.
KINDS = (
  'dropout',
  'feature_drop',
  'noise',
  'cutout',
  'context',
  'object',
  'vat',
)


@dataclasses.dataclass(frozen=True)
class DecoderCounts(CheckedOptions):
  """Numbers of perturbed decoders, by what perturbs their features.

  Attributes:
    dropout: half of the channels are dropped.
    feature_drop: the most active region is dropped.
    noise: noise in proportion to the features.
    cutout: a box is cut out of each object.
    context: the background is masked.
    object: the foreground is masked.
    vat: adversarial noise.
  """

  dropout: NonNegative[int] = 6
  feature_drop: NonNegative[int] = 6
  noise: NonNegative[int] = 6
  cutout: NonNegative[int] = 6
  context: NonNegative[int] = 2
  object: NonNegative[int] = 2
  vat: NonNegative[int] = 2

  def __post_init__(self):
    super().__post_init__()
    if not any(getattr(self, kind) for kind in KINDS):
      raise ValueError('decoders: expected one perturbed decoder at least')

  @property
  def heads(self) -> dict[str, str]:
    """Returns the kind of each perturbed decoder, by the name of its head."""
    return {
      f'{kind}{i}': kind
      for kind in KINDS
      for i in range(1, getattr(self, kind) + 1)
    }


@dataclasses.dataclass(frozen=True)
class CctOptions(options_lib.SystemOptions):
  """Options of CCT, cross-consistency training.

  Attributes:
    name: 'cct'.
    supervised: loss on labeled images.
    annealing: largest probability of the true class of a pixel that the loss
      on labeled images counts, at the end of its rise from 1/C (annealed
      bootstrapped cross entropy); 0 counts all pixels.
    decoders: numbers of perturbed decoders.
    vat_xi: ξ of adversarial noise.
    vat_epsilon: ε of adversarial noise, its norm in an image.
    consistency: weight of the consistency of the perturbed decoders.
    ramp_epochs: epochs in which this weight rises; 0 for none.
    weight: factor of this weight.
    warmup_epochs: epochs of the supervised loss alone, at the start.
  """

  name: Literal['cct'] = 'cct'
  supervised: options_lib.SupervisedOptions = options_lib.SupervisedOptions()
  annealing: UnitInterval = 0.0
  decoders: DecoderCounts = DecoderCounts()
  vat_xi: Positive[float] = 0.1
  vat_epsilon: Positive[float] = 2.0
  consistency: Positive[float] = 30.0
  ramp_epochs: NonNegative[int] = 8
  weight: Positive[float] = 1.0
  warmup_epochs: NonNegative[int] = 0

  def __post_init__(self):
    super().__post_init__()
    if self.annealing and self.supervised.kind != 'ce':
      raise ValueError(
        "annealing: expected 0 with supervised.kind='ohem', as both choose the "
        f'pixels that count, got {self.annealing}'
      )

  @property
  def follows_num_steps(self) -> bool:
    """Returns whether the supervised loss is annealed over the training."""
    return bool(self.annealing)

  def further_heads(
    self, num_classes: int, logits: 'nn.Module'
  ) -> 'dict[str, nn.Module]':
    """Builds the perturbed decoders."""
    del num_classes
    return {name: logits.clone() for name in self.decoders.heads}

  def check_head(self, kind: str) -> None:
    """Raises ValueError for a head with norms, which decoders would mix."""
    if kind == 'blocks':
      raise ValueError(
        "name: expected heads.kind='conv' or 'shuffle' with 'cct', whose "
        "perturbed decoders are light ones, got heads.kind='blocks'"
      )
