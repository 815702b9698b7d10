"""The objectives of a pretraining run, as a config states them."""

import dataclasses
from collections.abc import Sequence
from typing import Literal

import flax.linen as nn
from jax.typing import DTypeLike

from pass_luss.pretrain import heads, objective
from pass_luss.pretrain.objectives import d2s, p2p, swav
from pass_luss.pretrain.objectives import pixpro as pixpro_lib


@dataclasses.dataclass(frozen=True)
class ObjectiveOptions:
  """The objectives and how their terms add up; SwAV, PixPro or both.

  Attributes:
    clusters: options of SwAV, on all views; None for none.
    alignment: options of P2P, on the large views; None for none.
    shallow: options of D2S, on the large views; needs SwAV.
    pixpro: options of PixPro, on the large views; None for none.
    combine: 'mean': the terms of SwAV and of D2S are averaged, the others
      added (the released code); 'sum': all are added (the paper).
  """

  clusters: swav.SwavOptions | None = swav.SwavOptions()
  alignment: p2p.P2POptions | None = p2p.P2POptions()
  shallow: d2s.D2SOptions = d2s.D2SOptions()
  pixpro: pixpro_lib.PixproOptions | None = None
  combine: Literal['mean', 'sum'] = 'mean'

  def __post_init__(self):
    if not self.clusters and not self.pixpro:
      raise ValueError(
        'clusters and pixpro: expected one of them or both, got None twice'
      )
    if self.shallow.stages and not self.clusters:
      raise ValueError(
        'shallow.stages: expected () without clusters, whose targets they '
        f'need, got {self.shallow.stages}'
      )
    if not self.clusters and self.alignment and self.alignment.needs_prototypes:
      raise ValueError(
        'alignment.kind: expected one without prototypes, as clusters is None, '
        f'got {self.alignment.kind!r}'
      )


def build_objectives(
  options: ObjectiveOptions, sizes: heads.HeadSizes
) -> tuple[objective.Objective, ...]:
  """Builds the objectives; D2S after SwAV, whose targets it reads."""
  # The order is also that of the terms in the sum of the loss.
  objectives = []
  if options.clusters:
    objectives.append(swav.Swav(options.clusters, sizes))
  if options.shallow.stages:
    objectives.append(d2s.D2S(options.shallow, sizes, options.clusters))
  if options.alignment:
    objectives.append(p2p.P2P(options.alignment, sizes, options.clusters))
  if options.pixpro:
    objectives.append(pixpro_lib.Pixpro(options.pixpro))
  return tuple(objectives)


def build_objective_heads(
  objectives: Sequence[objective.Objective], dtype: DTypeLike
) -> dict[str, nn.Module]:
  """Builds the heads of all objectives, by name."""
  return {
    name: head
    for each in objectives
    for name, head in each.heads(dtype).items()
  }
