"""Stage `denoise`: DDeP of a decoder, or DeP of the whole network."""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from etils import epy
from jax.sharding import Mesh
from jaxtyping import Array, Float, UInt8

from ddep import noise as noise_lib
from input_pipeline import batch as batch_lib
from input_pipeline import datasets
from runtime import console, files
from segcore import types
from segcore.experiment import context as context_lib
from segcore.experiment import data as data_lib
from segcore.experiment import experiment_stage
from segcore.experiment import start as start_lib
from segcore.train import method as method_lib
from segcore.train import update as update_lib
from segcore.train import workspace as workspace_lib

with epy.lazy_imports():
  from ddep import decoder_report
  from segcore.distributed import sharding
  from segcore.eval import panels
  from segcore.experiment import evaluation
  from segcore.models import heads
  from segcore.ops import losses
  from segcore.train import loop, tensorboard, train_state
  from segcore.weights import load

# Images of the validation split that are denoised during training.
_NUM_EVALUATED = 32
# A loss above this share of that of predicting 0 is a warning.
_TRIVIAL_LOSS = 0.95
_PARTS = ('encoder', 'decoder', 'heads')


@dataclasses.dataclass(frozen=True, kw_only=True)
class DenoiseOptions:
  """Options of denoising pretraining.

  Attributes:
    data: images; their labels are not read.
    split: name of the training split.
    val_split: name of the split of which some images are denoised during
      training.
    start: parameters of the frozen encoder (DDeP); random ones for DeP.
    trained: parts that train: ('decoder', 'heads') is DDeP, with 'encoder' DeP.
    noise: kind and strength of the noise.
    crop: name and fields of a crop (see `transforms.CROPS`).
    flips: directions of random flips.
    recipe: batch size, number of steps, optimizer.
    also: further images that are trained on.
    shown_skips: strides of a U-Net's skips that denoising sees, True for all,
      False for none. The others are zeros, so that deeper blocks have to learn;
      stages that start from this one see them.
  """

  data: datasets.DataOptions
  split: str = 'train'
  val_split: str = 'val'
  start: start_lib.Start = start_lib.Start()
  trained: tuple[str, ...] = ('decoder', 'heads')
  noise: noise_lib.NoiseOptions
  crop: Mapping[str, Any]
  flips: tuple[str, ...] = ('horizontal',)
  recipe: update_lib.RecipeOptions
  also: tuple[data_lib.Images, ...] = ()
  shown_skips: bool | tuple[int, ...] = True

  def __post_init__(self):
    if not self.trained or not set(self.trained) <= set(_PARTS):
      raise ValueError(
        f'trained: expected some of {_PARTS}, got {self.trained}'
      )

  @property
  def images(self) -> tuple[data_lib.Images, ...]:
    """Returns all images that are trained on."""
    return (data_lib.Images(self.data, self.split), *self.also)


@dataclasses.dataclass(frozen=True)
class Denoise(method_lib.SingleLossMethod):
  """Predicts the noise added to unlabeled images (Eq. 6).

    gamma ~ its distribution;  eps ~ N(0, 1)
    noisy = corrupt_with_noise(image, eps, gamma)
    loss = mean((head_noise(noisy) - denoising_target(image, eps, gamma))**2)

  The segmenter has a head `noise` of 3 channels at full resolution, which
  predicts the pixels of each cell where the decoder ends at another one. With
  `update.trained = ('decoder', 'heads')` the encoder is frozen and sees the
  noisy image (DDeP); with 'encoder' among them the whole network trains (DeP).
  A conditional decoder receives the noise level of each image; in fine-tuning
  it receives no level and assumes an image without noise.

  Attributes:
    noise: kind and strength of the noise.
  """

  noise: noise_lib.NoiseOptions

  def loss(self, params, batch_stats, batch, keys) -> update_lib.LossOutput:
    """Computes the sum of the squared errors of the predicted target."""
    images = batch_lib.batch_images_to_symmetric(batch['image'])
    gamma = noise_lib.sample_noise_gamma(keys.rows, self.noise)
    eps = noise_lib.sample_noise(keys.rows, images.shape)
    noisy = noise_lib.corrupt_with_noise(images, eps, gamma, self.noise)
    predicted, batch_stats = self.forward(
      params, batch_stats, noisy, 'noise', keys, self._condition(gamma)
    )
    error = losses.squared_error(
      predicted, noise_lib.denoising_target(images, eps, gamma, self.noise)
    )
    mask = jnp.broadcast_to(batch['mask'][:, None, None, None], error.shape)
    total, count = losses.masked_sum_and_count(error, mask)
    return update_lib.LossOutput(total, count, {}, batch_stats)

  def predict(
    self,
    state: 'train_state.TrainState',
    images: Float[Array, 'B H W 3'],
    gamma: Float[Array, 'B'] | None = None,
  ) -> Float[Array, 'B H W 3']:
    """Predicts the denoising target of noisy images.

    Args:
      state: training state whose network predicts the noise.
      images: noisy images; without the noise they are in [-1, 1].
      gamma: noise level of each image, for a conditional decoder.
    """
    return self.apply(state, images, 'noise', self._condition(gamma))

  def _condition(
    self, gamma: Float[Array, 'B'] | None
  ) -> Float[Array, 'B'] | None:
    return gamma if self.segmenter.conditional else None


class DenoiseStage(experiment_stage.TrainingStage):
  """Trains the decoder, or the whole network, to denoise images."""

  name = 'denoise'
  options: DenoiseOptions

  def inputs(self) -> experiment_stage.Inputs:
    """Returns the splits to read, and the source of the initial parameters."""
    block = self.options
    read = [data_lib.Images(block.data, block.val_split), *block.images]
    return experiment_stage.Inputs(
      tuple(experiment_stage.SplitInput(x.data, x.split) for x in read),
      block.start,
    )

  def batch_spec(self, num_classes: int) -> types.BatchSpec:
    """Returns the spec of images without labels."""
    del num_classes
    return batch_lib.batch_spec(
      self.options.recipe.batch_size, self.size, label=False
    )

  def streams(self, workspace: workspace_lib.Workspace) -> data_lib.Streams:
    """Opens all images that are trained on, as one stream."""
    split = datasets.concatenate_splits(
      [self.context.open(x.data, x.split) for x in self.options.images]
    )
    return {'': data_lib.ImageStream(split, *self.augmentations())}

  def method(self, context: context_lib.Context, num_classes: int) -> Denoise:
    """Builds the denoising method."""
    del num_classes
    block = self.options
    if block.shown_skips is not True:
      context = context.with_decoder(shown_skips=block.shown_skips)
    net = context.build({'noise': heads.SubpixelHead(3)}, self.size)
    update = block.recipe.make_update(block.trained, net.frozen_parameters)
    return Denoise(net, update, block.noise)

  def evaluation(
    self, trained: Denoise, streams: data_lib.Streams
  ) -> 'loop.EvaluateFn':
    """Builds the evaluation on fixed noisy images of the validation split."""
    return DenoisingPanels(
      trained,
      self.options.val_split,
      self._evaluated_images(),
      evaluation.NUM_PANEL_ROWS,
      self.context.mesh,
    )

  def _evaluated_images(self) -> UInt8[np.ndarray, 'N H W 3']:
    """Returns the first crops of the validation split, always the same."""
    val = self.context.open(self.options.data, self.options.val_split)
    stream = data_lib.ImageStream(val, *self.augmentations())
    images = [
      stream.transform(val.records[i], np.random.default_rng(i))['image']
      for i in range(min(_NUM_EVALUATED, len(val)))
    ]
    return np.stack(images)

  def reported_metrics(self) -> tuple[str, ...]:
    """Returns those of the decoder, whose names depend on the network."""
    return (f'{self.options.val_split}/*',)

  def write_outputs(
    self, workspace: workspace_lib.Workspace, streams: data_lib.Streams
  ) -> Sequence[files.Path]:
    """Reports which parts of the decoder denoise held-out images."""
    block, mesh = self.options, self.context.mesh
    # Without a backward pass there is nothing to recompute.
    trained = self.method(self.context.with_network(remat=False), 0)
    loaded = None
    if 'decoder' in block.start.take:
      loaded = block.start.read(workspace, trained.segmenter, self.size)
    images = self._evaluated_images()
    report = decoder_report.measure_decoder(
      trained.segmenter,
      block.noise,
      train_state.inference_train_state(
        load.read_weight_variables(workspace.directory), mesh
      ),
      method_lib.initial_parameters(
        trained, block.recipe.seed, self.batch_spec(0), loaded, 'decoder'
      ),
      images,
      mesh,
    )
    for line in report.describe():
      console.print_line(line)
    return report.write(
      workspace, block.val_split, len(images), block.recipe.num_steps
    )


@dataclasses.dataclass(frozen=True, eq=False)
class DenoisingPanels:
  """Evaluates denoising of the same few noisy images during training.

  Attributes:
    trained: the method.
    split: name of the images' split; the first part of the tags.
    images: uint8 [N, H, W, 3].
    num_rows: images that the panel shows as clean, noisy, denoised.
    mesh: the devices; each of them denoises all images, one at a time.
  """

  trained: Denoise
  split: str
  images: np.ndarray
  num_rows: int
  mesh: Mesh

  def __call__(
    self, state: 'train_state.TrainState'
  ) -> 'tensorboard.Summaries':
    """Computes the loss and draws the panel; the same on every host."""
    loss, trivial, noisy, denoised = jax.device_get(
      self._denoise(state, self.images)
    )
    rows = [
      [
        image,
        batch_lib.batch_images_to_uint8(before),
        batch_lib.batch_images_to_uint8(after),
      ]
      for image, before, after in zip(
        self.images[: self.num_rows], noisy, denoised, strict=False
      )
    ]
    panel = panels.draw_picture_grid(rows, ('clean', 'noisy', 'denoised'))
    return tensorboard.Summaries(
      {f'{self.split}/loss': float(loss)},
      {f'{self.split}/panels': panel},
      report=describe_trivial_denoising(float(loss), float(trivial)),
    )

  @functools.cached_property
  def _denoise(self):
    options = self.trained.noise

    def denoise_one(state, image, key):
      clean = batch_lib.batch_images_to_symmetric(image[None])
      gamma = noise_lib.sample_noise_gamma(key[None], options)
      eps = noise_lib.sample_noise(key[None], clean.shape)
      noisy = noise_lib.corrupt_with_noise(clean, eps, gamma, options)
      predicted = self.trained.predict(state, noisy, gamma)
      target = noise_lib.denoising_target(clean, eps, gamma, options)
      error = losses.squared_error(predicted, target)
      denoised = noise_lib.denoised_images(noisy, predicted, gamma, options)
      trivial = losses.squared_error(jnp.zeros_like(target), target)
      return jnp.mean(error), jnp.mean(trivial), noisy[0], denoised[0]

    def denoise_all(state, images):
      keys = update_lib.row_prng_keys(jax.random.PRNGKey(0), len(images))
      errors, trivial, noisy, denoised = jax.lax.map(
        lambda pair: denoise_one(state, *pair), (images, keys)
      )
      return jnp.mean(errors), jnp.mean(trivial), noisy, denoised

    return jax.jit(
      denoise_all, out_shardings=sharding.replicated_sharding(self.mesh)
    )


def describe_trivial_denoising(loss: float, trivial: float) -> list[str]:
  """Describes in a line a loss that predicting 0 has; [] for a lower one.

  Args:
    loss: loss of the validation images after training.
    trivial: loss of a network that predicts 0 everywhere: 1 where the target is
      the noise.
  """
  if loss < _TRIVIAL_LOSS * trivial:
    return []
  return [
    f'warning: the denoising loss {loss:.3f} is about that of predicting 0, '
    f'{trivial:.3f}: nothing was learned; train longer or with another '
    'learning rate, or start fine-tuning without it (init=none)'
  ]
