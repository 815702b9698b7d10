"""Stage `represent`: self-supervised pretraining of the encoder (step 1)."""

import dataclasses

import jax
import jax.numpy as jnp
from etils import epy

from input_pipeline import datasets, views
from pass_luss.pretrain import objective_choice, objective_options, view_colors
from pass_luss.stages import base
from runtime import errors
from segcore import types
from segcore.experiment import context as context_lib
from segcore.experiment import data as data_lib
from segcore.experiment import experiment_stage
from segcore.experiment import start as start_lib
from segcore.train import update as update_lib
from segcore.train import workspace as workspace_lib

with epy.lazy_imports():
  from pass_luss.pretrain import method as pretrain_method
  from pass_luss.pretrain import objective as objective_lib
  from pass_luss.pretrain import objective_list, panels
  from pass_luss.stages import pcl_clustering
  from segcore.experiment import evaluation
  from segcore.models import network
  from segcore.train import callbacks, loop

# Images whose views are evaluated during training.
_NUM_EVALUATED = 64


@dataclasses.dataclass(frozen=True, kw_only=True)
class RepresentOptions:
  """Options of self-supervised pretraining.

  Attributes:
    data: images; their labels are read by the supervised objective alone.
    split: name of the training split.
    learn: options of the objectives.
    widths: widths of the heads.
    large: group of the two views that all objectives use; of one view if only
      the supervised objective does.
    small: group of further views, for SwAV only; None for none.
    smaller: groups of one view each, named 'smaller1', 'smaller2', …, for
      AdCo's multi-crop only.
    colors: color augmentation of the views.
    recipe: batch size, number of steps, optimizer.
    start: parameters of the encoder before step 0.
  """

  data: datasets.DataOptions
  split: str = 'train'
  learn: objective_choice.ObjectiveOptions
  widths: objective_options.HeadSizes = objective_options.HeadSizes()
  large: views.ViewGroup
  small: views.ViewGroup | None = None
  smaller: tuple[views.ViewGroup, ...] = ()
  colors: view_colors.ViewColors
  recipe: update_lib.RecipeOptions
  start: start_lib.Start = start_lib.Start()

  def __post_init__(self):
    trained = self.learn.trained
    check_large_views(self.large, max(x.num_views for x in trained.values()))
    for name, each in trained.items():
      each.check_batch_size(self.recipe.batch_size, f'learn.{name}')
    if self.small and self.small.name != 'small':
      raise ValueError(f"small.name: expected 'small', got {self.small.name!r}")
    if self.small and not self.learn.clusters:
      raise ValueError(
        'small: expected None, as only clusters use small views, got views'
      )
    self._check_smaller_views()
    check_whole_batch(self.recipe)

  def _check_smaller_views(self) -> None:
    """Raises ValueError unless views of other sizes are there to be read."""
    trained = self.learn.trained.values()
    is_read = any(each.reads_smaller_views for each in trained)
    if is_read != bool(self.smaller):
      expected = 'one or more groups' if is_read else '()'
      raise ValueError(
        f'smaller: expected {expected}, as only the variant multi_crop of AdCo '
        f'has such views, got {len(self.smaller)}'
      )
    for number, group in enumerate(self.smaller, start=1):
      if (group.name, group.count) != (f'smaller{number}', 1):
        raise ValueError(
          f'smaller[{number - 1}]: expected 1 view named '
          f"'smaller{number}', got {group.count} named {group.name!r}"
        )

  @property
  def crop(self) -> views.MultiCrop:
    """Returns the crop of all views."""
    small = (self.small,) if self.small else ()
    return views.MultiCrop((self.large, *small, *self.smaller))

  @property
  def objectives(self) -> 'tuple[objective_lib.Objective, ...]':
    """Builds the objectives of `learn`, in the order of their terms."""
    return objective_list.build_objectives(self.learn, self.widths)

  @property
  def keep(self) -> tuple[str, ...]:
    """Returns the labels of images that the objectives read."""
    trained = self.learn.trained.values()
    return tuple(kind for each in trained for kind in each.keeps)


class RepresentStage(base.ViewsStage):
  """Trains the encoder on images alone."""

  name = 'represent'
  options: RepresentOptions

  @property
  def zero_terms_until(self) -> int:
    """Returns the last step at which there are no prototypes yet."""
    specs = [o.needs_embeddings for o in self.options.objectives]
    return max((spec.first for spec in specs if spec), default=0)

  @property
  def follows_num_steps(self) -> bool:
    """Returns whether the decay of a momentum encoder has a schedule."""
    specs = [o.needs_momentum for o in self.options.objectives]
    return any(s and s.decay(1, 2) != s.decay(1, 3) for s in specs)

  def check(self) -> None:
    """Checks that batch and views fit devices and network."""
    super().check()
    sizes = {
      f'smaller[{i}]': group.size
      for i, group in enumerate(self.options.smaller)
    }
    if self.options.small:
      sizes['small'] = self.options.small.size
    for name, size in sizes.items():
      net = self.method(self.context, num_classes=2).segmenter
      network.check_network_image_size(net, size, f'{self.path}.{name}.size')

  def inputs(self) -> experiment_stage.Inputs:
    """Returns the images, and the source of the initial parameters."""
    block = self.options
    kind = 'tags' if 'tags' in block.keep else ''
    images = experiment_stage.SplitInput(block.data, block.split, kind)
    return experiment_stage.Inputs((images,), block.start)

  def method(
    self, context: context_lib.Context, num_classes: int = 0
  ) -> 'pretrain_method.Pretrain':
    """Builds the pretraining method; classes play no role."""
    del num_classes
    block = self.options
    objectives = block.objectives
    heads = objective_list.build_objective_heads(
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
    return {'': data_lib.ViewStream(split, block.crop, block.keep)}

  def batch_spec(self, num_classes: int) -> types.BatchSpec:
    """Returns the spec of views, and of the labels of images that are read."""
    rows = self.options.recipe.batch_size
    labels = {
      'tags': jax.ShapeDtypeStruct((rows, num_classes), jnp.bool_),
      'index': jax.ShapeDtypeStruct((rows,), jnp.int32),
    }
    read = {kind: labels[kind] for kind in self.options.keep}
    return {**super().batch_spec(num_classes), **read}

  def check_data(self) -> None:
    """Raises UserError unless images and classes are as many as expected."""
    block = self.options
    split = self.context.open(block.data, block.split)
    pcl_clustering.check_num_images(self.path, block.objectives, len(split))
    supervised = block.learn.supervised
    if supervised:
      expected = len(split.classes) - supervised.first_class
      if supervised.num_classes != expected:
        raise errors.UserError(
          f'{self.path}.learn.supervised.num_classes: expected {expected}, the '
          f'classes of {split.name}, got {supervised.num_classes}'
        )

  def refresh(
    self,
    trained: 'pretrain_method.Pretrain',
    streams: data_lib.Streams,
    workspace: workspace_lib.Workspace,
  ) -> 'callbacks.Refresh | None':
    """Returns the clustering between epochs, if an objective needs one."""
    for each in trained.objectives:
      spec = each.needs_embeddings
      if spec:
        return callbacks.Refresh(
          spec.first,
          spec.every,
          pcl_clustering.EpochClustering(
            each,
            self.method(self.exact_context).segmenter,
            streams[''].split,
            self.options.recipe.batch_size,
            self.context.mesh,
            self.context.operation.reading,
            workspace,
          ),
        )
    return None

  def evaluation(
    self, trained: 'pretrain_method.Pretrain', streams: data_lib.Streams
  ) -> 'loop.EvaluateFn':
    """Builds the panels of fixed views."""
    stream = streams['']
    count = min(_NUM_EVALUATED, len(stream.split))
    return panels.PretrainPanels(
      trained,
      data_lib.fixed_panel_batch(stream, count),
      evaluation.NUM_PANEL_ROWS,
      self.context.mesh,
    )


def check_large_views(large: views.ViewGroup, count: int = 2) -> None:
  """Raises ValueError unless there are as many views, named 'large'."""
  if (large.name, large.count) != ('large', count):
    raise ValueError(
      f"large: expected {count} views named 'large', got {large.count} named "
      f'{large.name!r}'
    )


def check_whole_batch(recipe: update_lib.RecipeOptions) -> None:
  """Raises ValueError if gradients are accumulated."""
  if recipe.accumulate != 1:
    raise ValueError(
      f'recipe.accumulate: expected 1, got {recipe.accumulate}: assignments '
      'need the whole batch'
    )
