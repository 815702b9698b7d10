"""Stage `represent_masks`: embeddings of pixels by masks (MaskContrast)."""

import dataclasses
from collections.abc import Sequence

import jax.numpy as jnp
from etils import epy

from input_pipeline import views
from pass_luss.dense import dense_options
from pass_luss.pretrain import view_colors
from pass_luss.stages import base, represent, represent_pixels, salient_masks
from runtime import files
from segcore.experiment import context as context_lib
from segcore.experiment import data as data_lib
from segcore.experiment import start as start_lib
from segcore.train import update as update_lib
from segcore.train import workspace as workspace_lib

with epy.lazy_imports():
  from pass_luss.dense import mask_contrast, salient_views
  from pass_luss.pretrain import method as pretrain_method


@dataclasses.dataclass(frozen=True, kw_only=True)
class RepresentMasksOptions:
  """Options of training by MaskContrast: views, objective and recipe.

  Attributes:
    learn: options of the objective.
    large: group of the two views.
    shares: range of the salient share of each view; views out of it are drawn
      again.
    colors: color augmentation of the views.
    output_stride: output stride of the encoder, reached by dilating its last
      blocks; 0 for that of `network`.
    frozen_blocks: number of blocks of the encoder that are frozen with its
      stem, as with supervised saliency; None for that of `network`.
    recipe: batch size, number of steps, optimizer.
    start: parameters of the encoder before step 0.
  """

  learn: dense_options.MaskContrastOptions = dense_options.MaskContrastOptions()
  large: views.ViewGroup
  shares: tuple[float, float] = (0.01, 0.99)
  colors: view_colors.ViewColors
  output_stride: int = 8
  frozen_blocks: int | None = None
  recipe: update_lib.RecipeOptions
  start: start_lib.Start = start_lib.Start()

  def __post_init__(self):
    represent.check_large_views(self.large)
    represent.check_whole_batch(self.recipe)
    self.learn.check_batch_size(self.recipe.batch_size, 'learn')
    if not 0 <= self.shares[0] < self.shares[1] <= 1:
      raise ValueError(
        f'shares: expected 0 <= least < largest <= 1, got {self.shares}'
      )

  @property
  def crop(self) -> views.MultiCrop:
    """Returns the crop of the views, with masks."""
    return views.MultiCrop((self.large,), with_labels=True)

  @property
  def objective(self) -> 'mask_contrast.MaskContrast':
    """Returns the objective of MaskContrast with these options."""
    return mask_contrast.MaskContrast(self.learn)


class RepresentMasksStage(base.ViewsStage, base.ImagesStage):
  """Trains embeddings and saliency of pixels on masks of salient objects."""

  name = 'represent_masks'
  options: RepresentMasksOptions

  @property
  def needs(self) -> tuple[str, ...]:
    """Returns the stages of the start and of the masks."""
    return (*super().needs, salient_masks.SalientMasksStage.name)

  def method(
    self, context: context_lib.Context, num_classes: int = 0
  ) -> 'pretrain_method.Pretrain':
    """Builds the method; classes play no role."""
    del num_classes
    block, objective = self.options, self.options.objective
    context = context.with_output_stride(block.output_stride).with_encoder(
      frozen_blocks=block.frozen_blocks
    )
    net = context.build(
      objective.heads(jnp.dtype(context.network.dtype)), self.size
    )
    update = block.recipe.make_update(
      ('encoder', 'heads'), net.frozen_parameters
    )
    return pretrain_method.Pretrain(
      net, update, (objective,), block.colors, 'sum'
    )

  def streams(self, workspace: workspace_lib.Workspace) -> data_lib.Streams:
    """Opens the images with salient objects as a stream of views."""
    folder = workspace.needed[salient_masks.SalientMasksStage.name]
    split = salient_masks.with_salient_masks(self.open_images(), folder)
    block = self.options
    crop = salient_views.SalientCrop(block.crop, split, block.shares)
    return {'': data_lib.ViewStream(split, crop, ('label',))}

  def write_outputs(
    self, workspace: workspace_lib.Workspace, streams: data_lib.Streams
  ) -> Sequence[files.Path]:
    """Writes names and colors of the categories, as many as classes."""
    del streams
    split = self.open_images()
    return data_lib.write_stage_classes(
      workspace,
      represent_pixels.with_categories(split, len(split.classes) - 1),
    )
