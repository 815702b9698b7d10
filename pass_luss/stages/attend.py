"""Stage `attend`: training of pixel attention (step 2a)."""

import dataclasses

import jax.numpy as jnp
from etils import epy

from input_pipeline import datasets, views
from pass_luss.pretrain import objective_options, view_colors
from pass_luss.stages import base, represent
from segcore.experiment import context as context_lib
from segcore.experiment import data as data_lib
from segcore.experiment import experiment_stage
from segcore.experiment import start as start_lib
from segcore.train import update as update_lib
from segcore.train import workspace as workspace_lib

with epy.lazy_imports():
  from pass_luss.pretrain import heads as heads_lib
  from pass_luss.pretrain.objectives import swav
  from pass_luss.pseudo_labels import attention


@dataclasses.dataclass(frozen=True, kw_only=True)
class AttendOptions:
  """Options of pixel attention.

  Attributes:
    clusters: options of the targets, their loss and the queue.
    shared: whether all channels share one attention map.
    fresh_projection: whether the projection is trained, too, from random
      values: of encoders that were pretrained without one and prototypes.
    large: group of the two large views.
    colors: color augmentation of the views.
    recipe: batch size, number of steps, optimizer.
  """

  clusters: objective_options.SwavOptions
  shared: bool = False
  fresh_projection: bool = False
  large: views.ViewGroup
  colors: view_colors.ViewColors
  recipe: update_lib.RecipeOptions

  def __post_init__(self):
    represent.check_large_views(self.large)
    represent.check_whole_batch(self.recipe)

  @property
  def crop(self) -> views.MultiCrop:
    """Returns the crop of the views."""
    return views.MultiCrop((self.large,))


class AttendStage(base.ViewsStage):
  """Trains the attention on the pretrained encoder, which is frozen."""

  name = 'attend'
  options: AttendOptions

  @property
  def num_classes_from(self) -> datasets.DataOptions:
    """Returns the data set of the images."""
    return self.experiment.images.data

  def settings(self) -> dict[str, object]:
    """Returns network, block and images."""
    return {**super().settings(), 'images': self.experiment.images}

  def inputs(self) -> experiment_stage.Inputs:
    """Returns the images, and the pretrained encoder and its projection."""
    heads = () if self.options.fresh_projection else ('heads/clusters',)
    return experiment_stage.Inputs(
      (self.image_input(),), start_lib.Start('represent', ('encoder', *heads))
    )

  def method(
    self, context: context_lib.Context, num_classes: int = 0
  ) -> 'attention.AttentionMethod':
    """Builds the attention method; classes play no role."""
    del num_classes
    block, pretrained = self.options, self.experiment.represent
    dtype = jnp.dtype(context.network.dtype)
    clusters = swav.Swav(block.clusters, pretrained.widths)
    heads = {
      **clusters.heads(dtype),
      'attention': heads_lib.AttentionHead(block.shared, dtype=dtype),
    }
    frozen = () if block.fresh_projection else (attention.FROZEN_PROJECTION,)
    optimizer = dataclasses.replace(
      block.recipe.optimizer,
      groups=(*frozen, *block.recipe.optimizer.groups),
    )
    recipe = dataclasses.replace(block.recipe, optimizer=optimizer)
    return attention.AttentionMethod(
      context.build(heads, self.size),
      recipe.make_update(('heads',)),
      block.clusters,
      block.colors,
    )

  def streams(self, workspace: workspace_lib.Workspace) -> data_lib.Streams:
    """Opens the images as a stream of views."""
    return {'': data_lib.ViewStream(self.open_images(), self.options.crop)}
