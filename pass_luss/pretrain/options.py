"""The objectives of a pretraining run, as a config states them."""

import dataclasses
from collections.abc import Sequence
from typing import Literal

import flax.linen as nn
from jax.typing import DTypeLike

from pass_luss.pretrain import heads, objective
from pass_luss.pretrain.objectives import adco as adco_lib
from pass_luss.pretrain.objectives import byol as byol_lib
from pass_luss.pretrain.objectives import d2s, p2p, swav
from pass_luss.pretrain.objectives import densecl as densecl_lib
from pass_luss.pretrain.objectives import moco as moco_lib
from pass_luss.pretrain.objectives import pcl as pcl_lib
from pass_luss.pretrain.objectives import pixpro as pixpro_lib
from pass_luss.pretrain.objectives import simclr as simclr_lib
from pass_luss.pretrain.objectives import simsiam as simsiam_lib
from pass_luss.pretrain.objectives import supervised as supervised_lib

# Objectives that are a method by themselves, of which there is one at most, by
# the field of their options.
_METHODS = {
  'pixpro': pixpro_lib.Pixpro,
  'supervised': supervised_lib.Supervised,
  'simclr': simclr_lib.Simclr,
  'moco': moco_lib.Moco,
  'byol': byol_lib.Byol,
  'simsiam': simsiam_lib.Simsiam,
  'densecl': densecl_lib.Densecl,
  'pcl': pcl_lib.Pcl,
  'adco': adco_lib.Adco,
}


@dataclasses.dataclass(frozen=True)
class ObjectiveOptions:
  """Options of the objectives and of the sum of their terms.

  At least one of SwAV and of the methods by themselves is trained.

  Attributes:
    clusters: options of SwAV, on all views; None for none.
    alignment: options of P2P, on the large views; None for none.
    shallow: options of D2S, on the large views; needs SwAV.
    pixpro: options of PixPro, on the large views; None for none.
    supervised: options of the classes of images, in place of PixPro.
    simclr: options of SimCLR, in place of PixPro; and so are the following.
    moco: options of MoCo v2.
    byol: options of BYOL.
    simsiam: options of SimSiam.
    densecl: options of DenseCL.
    pcl: options of PCL v2.
    adco: options of AdCo.
    combine: 'mean': the terms of SwAV and of D2S are averaged, the others
      added (the released code); 'sum': all are added (the paper).
  """

  clusters: swav.SwavOptions | None = swav.SwavOptions()
  alignment: p2p.P2POptions | None = p2p.P2POptions()
  shallow: d2s.D2SOptions = d2s.D2SOptions()
  pixpro: pixpro_lib.PixproOptions | None = None
  supervised: supervised_lib.SupervisedOptions | None = None
  simclr: simclr_lib.SimclrOptions | None = None
  moco: moco_lib.MocoOptions | None = None
  byol: byol_lib.ByolOptions | None = None
  simsiam: simsiam_lib.SimsiamOptions | None = None
  densecl: densecl_lib.DenseclOptions | None = None
  pcl: pcl_lib.PclOptions | None = None
  adco: adco_lib.AdcoOptions | None = None
  combine: Literal['mean', 'sum'] = 'mean'

  @property
  def methods(self) -> tuple[str, ...]:
    """Returns the names of the objectives that are a method by themselves."""
    return tuple(name for name in _METHODS if vars(self)[name])

  def __post_init__(self):
    names = ', '.join(_METHODS)
    if not self.clusters and not self.methods:
      raise ValueError(
        f'clusters: expected them or one of {names}, got None everywhere'
      )
    if len(self.methods) > 1:
      raise ValueError(
        f'{self.methods[1]}: expected None beside {self.methods[0]}, as at '
        f'most one of {names} is trained, got options of both'
      )
    if self.shallow.stages and not self.clusters:
      raise ValueError(
        'shallow.stages: expected () without clusters, whose targets they '
        f'need, got {self.shallow.stages}'
      )
    self._check_multi_crop()
    if not self.clusters and self.alignment and self.alignment.needs_prototypes:
      raise ValueError(
        'alignment.kind: expected one without prototypes, as clusters is None, '
        f'got {self.alignment.kind!r}'
      )

  def _check_multi_crop(self) -> None:
    """Raises ValueError if others read the views of AdCo's multi-crop."""
    if not self.adco or self.adco.variant != 'multi_crop':
      return
    for name in ('clusters', 'alignment'):
      if getattr(self, name):
        raise ValueError(
          f'{name}: expected None with adco.variant=multi_crop, whose encoder '
          'has one of the two large views alone, got options'
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
  for name in options.methods:
    objectives.append(_METHODS[name](vars(options)[name]))
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
