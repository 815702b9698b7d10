"""Choice of the objectives of a pretraining, and of the sum of their terms."""

import dataclasses
from typing import Literal

from pass_luss.pretrain import comparator_options, objective_options

# Fields of `ObjectiveOptions` whose objectives are a method by themselves, of
# which there is one at most.
METHODS = (
  *('pixpro', 'supervised', 'simclr', 'moco', 'byol'),
  *('simsiam', 'densecl', 'pcl', 'adco'),
)


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

  clusters: objective_options.SwavOptions | None = (
    objective_options.SwavOptions()
  )
  alignment: objective_options.P2POptions | None = (
    objective_options.P2POptions()
  )
  shallow: objective_options.D2SOptions = objective_options.D2SOptions()
  pixpro: objective_options.PixproOptions | None = None
  supervised: comparator_options.SupervisedOptions | None = None
  simclr: comparator_options.SimclrOptions | None = None
  moco: comparator_options.MocoOptions | None = None
  byol: comparator_options.ByolOptions | None = None
  simsiam: comparator_options.SimsiamOptions | None = None
  densecl: comparator_options.DenseclOptions | None = None
  pcl: comparator_options.PclOptions | None = None
  adco: comparator_options.AdcoOptions | None = None
  combine: Literal['mean', 'sum'] = 'mean'

  @property
  def methods(self) -> tuple[str, ...]:
    """Returns the names of the objectives that are a method by themselves."""
    return tuple(name for name in METHODS if vars(self)[name])

  @property
  def trained(self) -> dict[str, objective_options.SingleObjectiveOptions]:
    """Returns the options of the objectives that are trained, by field."""
    names = ('clusters', 'shallow', 'alignment', *METHODS)
    given = {name: vars(self)[name] for name in names if vars(self)[name]}
    if not self.shallow.stages:
      del given['shallow']
    return given

  def __post_init__(self):
    names = ', '.join(METHODS)
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
    if not self.adco or not self.adco.reads_smaller_views:
      return
    for name in ('clusters', 'alignment'):
      if getattr(self, name):
        raise ValueError(
          f'{name}: expected None with adco.variant=multi_crop, whose encoder '
          'has one of the two large views alone, got options'
        )
