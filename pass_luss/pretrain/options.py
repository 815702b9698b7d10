"""The objectives of a pretraining run, as a config states them."""

import dataclasses
from typing import Any, Literal

import flax.linen as nn

from pass_luss.pretrain import heads
from pass_luss.pretrain.objectives import d2s, swav
from pass_luss.pretrain.objectives import p2p as p2p_lib
from pass_luss.pretrain.objectives import pixpro as pixpro_lib


@dataclasses.dataclass(frozen=True)
class ObjectiveOptions:
  """What is learned from; at least clusters or PixelPro.

  Attributes:
    clusters: SwAV of all views; None for none.
    alignment: P2P of the large views; None for none.
    shallow: D2S of the large views; needs clusters.
    pixpro: PixelPro of the large views; None for none.
    combine: 'mean': the losses of SwAV and of D2S are averaged (the released
      code); 'sum': all are added up (the paper).
  """

  clusters: swav.SwavOptions | None = swav.SwavOptions()
  alignment: p2p_lib.P2POptions | None = p2p_lib.P2POptions()
  shallow: d2s.D2SOptions = d2s.D2SOptions()
  pixpro: pixpro_lib.PixproOptions | None = None
  combine: Literal['mean', 'sum'] = 'mean'

  def __post_init__(self):
    if not self.clusters and not self.pixpro:
      raise ValueError(
        'clusters and pixpro: found neither, expected one of them or both'
      )
    if self.shallow.stages and not self.clusters:
      raise ValueError(
        f'shallow.stages: found {self.shallow.stages} without clusters, whose '
        'targets they need: expected ()'
      )
    aligned = self.alignment and self.alignment.kind == 'clustering'
    if aligned and not self.clusters:
      raise ValueError(
        "alignment.kind: found 'clustering' without clusters, whose prototypes "
        'it needs'
      )


def build_heads(
  options: ObjectiveOptions, sizes: heads.HeadSizes, dtype: Any
) -> dict[str, nn.Module]:
  """The heads that training needs, by name."""
  found: dict[str, Any] = {}
  if options.clusters:
    found['clusters'] = heads.Clusters(
      sizes.hidden, sizes.embedding, sizes.prototypes, dtype=dtype
    )
  for stage in options.shallow.stages:
    found[f'shallow{stage}'] = heads.Shallow(
      f'x{stage}', sizes.hidden, sizes.embedding, dtype=dtype
    )
  aligned = options.alignment
  if aligned and (aligned.project or aligned.kind == 'regression'):
    found['pixels'] = heads.Alignment(
      sizes.hidden,
      sizes.embedding,
      project=aligned.project,
      predict=aligned.kind == 'regression',
      dtype=dtype,
    )
  if options.pixpro:
    found['pixpro'] = heads.PixelPro(
      options.pixpro.hidden, options.pixpro.size, dtype=dtype
    )
  return found
