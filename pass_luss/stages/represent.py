"""Stage `represent`: self-supervised pretraining of the encoder (step 1)."""

import dataclasses

import jax.numpy as jnp

from input_pipeline import datasets, views
from pass_luss.pretrain import heads as heads_lib
from pass_luss.pretrain import method as pretrain_method
from pass_luss.pretrain import options as pretrain_options
from pass_luss.pretrain import panels, view_colors
from pass_luss.stages import base
from segcore.experiment import context as context_lib
from segcore.experiment import data as data_lib
from segcore.experiment import evaluation, experiment_stage
from segcore.experiment import start as start_lib
from segcore.models import network
from segcore.train import loop
from segcore.train import update as update_lib
from segcore.train import workspace as workspace_lib

# Images whose views are evaluated during training.
_NUM_EVALUATED = 64


@dataclasses.dataclass(frozen=True, kw_only=True)
class RepresentOptions:
  """Options of self-supervised pretraining.

  Attributes:
    data: images; their labels are not read.
    split: name of the training split.
    learn: options of the objectives.
    widths: widths of the heads.
    large: group of the two views that all objectives use.
    small: group of further views, for SwAV only; None for none.
    colors: color augmentation of the views.
    recipe: batch size, number of steps, optimizer.
    start: parameters of the encoder before step 0.
  """

  data: datasets.DataOptions
  split: str = 'train'
  learn: pretrain_options.ObjectiveOptions
  widths: heads_lib.HeadSizes = heads_lib.HeadSizes()
  large: views.ViewGroup
  small: views.ViewGroup | None = None
  colors: view_colors.ViewColors
  recipe: update_lib.RecipeOptions
  start: start_lib.Start = start_lib.Start()

  def __post_init__(self):
    check_large_views(self.large)
    if self.small and self.small.name != 'small':
      raise ValueError(f"small.name: expected 'small', got {self.small.name!r}")
    if self.small and not self.learn.clusters:
      raise ValueError(
        'small: expected None, as only clusters use small views, got views'
      )
    check_whole_batch(self.recipe)

  @property
  def crop(self) -> views.MultiCrop:
    """Returns the crop of all views."""
    groups = (self.large, self.small) if self.small else (self.large,)
    return views.MultiCrop(groups)


class RepresentStage(base.ViewsStage):
  """Trains the encoder on images alone."""

  name = 'represent'
  options: RepresentOptions

  @property
  def follows_num_steps(self) -> bool:
    """Returns whether the decay of a momentum encoder has a schedule."""
    specs = [o.needs_momentum for o in self.method(self.context).objectives]
    return any(s and s.decay(1, 2) != s.decay(1, 3) for s in specs)

  def check(self) -> None:
    """Checks that batch and views fit devices and network."""
    super().check()
    small = self.options.small
    if small:
      net = self.method(self.context, num_classes=2).segmenter
      network.check_network_image_size(
        net, small.size, f'{self.path}.small.size'
      )

  def inputs(self) -> experiment_stage.Inputs:
    """Returns the images, and the source of the initial parameters."""
    block = self.options
    images = experiment_stage.SplitInput(block.data, block.split)
    return experiment_stage.Inputs((images,), block.start)

  def method(
    self, context: context_lib.Context, num_classes: int = 0
  ) -> pretrain_method.Pretrain:
    """Builds the pretraining method; classes play no role."""
    del num_classes
    block = self.options
    objectives = pretrain_options.build_objectives(block.learn, block.widths)
    heads = pretrain_options.build_objective_heads(
      objectives, jnp.dtype(context.network.dtype)
    )
    net = context.build(heads, self.size)
    return pretrain_method.Pretrain(
      net,
      block.recipe.make_update(('encoder', 'heads'), net.frozen_parameters),
      objectives,
      block.colors,
      block.learn.combine,
    )

  def streams(self, workspace: workspace_lib.Workspace) -> data_lib.Streams:
    """Opens the images as a stream of views."""
    block = self.options
    split = self.context.open(block.data, block.split)
    return {'': data_lib.ViewStream(split, block.crop)}

  def evaluation(
    self, trained: pretrain_method.Pretrain, streams: data_lib.Streams
  ) -> loop.EvaluateFn:
    """Builds the panels of fixed views."""
    stream = streams['']
    count = min(_NUM_EVALUATED, len(stream.split))
    return panels.PretrainPanels(
      trained,
      data_lib.fixed_panel_batch(stream, count),
      evaluation.NUM_PANEL_ROWS,
      self.context.mesh,
    )


def check_large_views(large: views.ViewGroup) -> None:
  """Raises ValueError unless there are two views named 'large'."""
  if (large.name, large.count) != ('large', 2):
    raise ValueError(
      f"large: expected 2 views named 'large', got {large.count} named "
      f'{large.name!r}'
    )


def check_whole_batch(recipe: update_lib.RecipeOptions) -> None:
  """Raises ValueError if gradients are accumulated."""
  if recipe.accumulate != 1:
    raise ValueError(
      f'recipe.accumulate: expected 1, got {recipe.accumulate}: assignments '
      'need the whole batch'
    )
