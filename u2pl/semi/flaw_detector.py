"""The flaw detector of GCT: a network that finds errors of a prediction.

  detector = DetectorTraining(options, num_steps)
  flaw_maps = detector.detect(state, images, probabilities)
  state, loss = detector.step(state, images, probabilities, labels)

Source: Ke et al. 2020, "Guided Collaborative Training for Pixel-wise
Semi-Supervised Learning" (GCT).
"""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from input_pipeline import batch as batch_lib
from segcore import types
from segcore.models.encoders import resnet
from segcore.models.layers import norm, resize
from segcore.ops import losses
from segcore.train import optimizers, train_state
from segcore.train import update as update_lib
from u2pl.semi import flaw_maps, two_network_options

# Predictions of two networks for the same images, and their flaw maps.
Predictions = tuple[Float[Array, 'rows H W C'], Float[Array, 'rows H W C']]
FlawMaps = tuple[Float[Array, 'rows H W'], Float[Array, 'rows H W']]


class FlawDetector(nn.Module):
  """Predicts a value of each pixel, which is large where a prediction is wrong.

  4x4 convolutions with padding 1, each with `SplitNorm` and a leaky ReLU of
  slope 0.2: one of stride 2, then two a level, of strides 2 and 1, and twice
  the channels of the level before. The last one, of stride 2 to one channel,
  has neither. The map is resized with aligned corners.

  Attributes:
    width: channels of the first convolution.
    num_levels: number of levels, with that of the first convolution.
  """

  width: int = 64
  num_levels: int = 4

  @nn.compact
  def __call__(
    self,
    images: Float[Array, 'B H W 3'],
    probabilities: Float[Array, 'B H W C'],
    train: bool = False,
  ) -> Float[Array, 'B H W']:
    """Computes the flaw map, in float32 at least.

    Args:
      images: images in [-1, 1], standardized here as for the networks.
      probabilities: prediction for them.
      train: whether batch statistics are those of training.
    """
    x = jnp.concatenate(
      [resnet.standardize_images(images), probabilities], axis=-1
    )
    x = losses.at_least_float32(x)

    def conv(
      x: Float[Array, 'B h w D'], channels: int, stride: int, name: str
    ) -> Float[Array, 'B h_out w_out D_out']:
      return nn.Conv(
        channels,
        (4, 4),
        strides=stride,
        padding=1,
        dtype=x.dtype,
        name=name,
      )(x)

    layers = two_network_options.detector_layers(self.num_levels)
    for i, (factor, stride) in enumerate(layers, 1):
      x = conv(x, factor * self.width, stride, f'conv{i}')
      x = SplitNorm(name=f'norm{i}')(x, train)
      x = nn.leaky_relu(x, 0.2)
    x = conv(x, 1, 2, 'scores')
    size = images.shape[1:3]
    return resize.resize_bilinear(x, size, align_corners=True)[..., 0]


class SplitNorm(nn.Module):
  """Batch norm of the first half of the channels, instance norm of the rest.

  The instance norm has no parameters, and no running statistics.
  """

  @nn.compact
  def __call__(
    self, x: Float[Array, 'B h w D'], train: bool
  ) -> Float[Array, 'B h w D']:
    """Normalizes each half of the channels of a feature map."""
    first, second = jnp.split(x, [(x.shape[-1] + 1) // 2], axis=-1)
    first = norm.batch_norm(train=train, dtype=x.dtype, name='bn')(first)
    mean = jnp.mean(second, axis=(1, 2), keepdims=True)
    variance = jnp.var(second, axis=(1, 2), keepdims=True)
    second = (second - mean) * jax.lax.rsqrt(variance + 1e-5)
    return jnp.concatenate([first, second], axis=-1)


@dataclasses.dataclass(frozen=True)
class DetectorTraining:
  """Training of a flaw detector.

  Its parameters are in the part 'detector' of those of its state.

  Attributes:
    options: width, rate and weight.
    num_steps: length of the training.
  """

  options: two_network_options.DetectorOptions
  num_steps: int

  @property
  def network(self) -> FlawDetector:
    """Builds the network that predicts flaw maps."""
    return FlawDetector(self.options.width, self.options.num_levels)

  @property
  def optimizer(self) -> optimizers.OptimizerOptions:
    """Returns the options of the optimizer."""
    return optimizers.OptimizerOptions(
      name='adam',
      b2=0.99,
      learning_rate=self.options.learning_rate,
      schedule=self.options.schedule,
    )

  def init(
    self, rng: Array, size: tuple[int, int], num_classes: int
  ) -> train_state.TrainState:
    """Initializes network and optimizer.

    Args:
      rng: key.
      size: height and width of the images.
      num_classes: number C of classes.
    """
    variables = self.network.init(
      rng, jnp.zeros((1, *size, 3)), jnp.zeros((1, *size, num_classes))
    )
    params = {'detector': variables['params']}
    transformation = optimizers.build_optimizer(
      self.optimizer, self.num_steps, params
    )
    return train_state.TrainState(
      step=jnp.zeros((), jnp.int32),
      params=params,
      batch_stats=variables['batch_stats'],
      opt_state=transformation.init(params),
      rng=rng,
    )

  def detect(
    self,
    state: train_state.TrainState,
    images: Float[Array, 'rows H W 3'],
    predictions: Predictions,
  ) -> FlawMaps:
    """Computes the flaw maps of both networks, in training mode.

    Args:
      state: state of the detector; its batch statistics stay as they are.
      images: images in [-1, 1].
      predictions: probabilities of both networks for them.
    """
    flaws, _ = self._apply(state.params, state.batch_stats, images, predictions)
    return flaws

  def step(
    self,
    state: train_state.TrainState,
    images: Float[Array, 'rows H W 3'],
    predictions: Predictions,
    labels: Int[Array, 'B H W'],
  ) -> tuple[train_state.TrainState, types.Scalar]:
    """Runs one step on labeled images; returns the loss, too.

    Args:
      state: state before the step.
      images: labeled and unlabeled images, joined: all of them have common
        batch statistics.
      predictions: probabilities of both networks for them.
      labels: ground truth of the labeled ones.
    """
    targets = [
      flaw_maps.flaw_target(labels, batch_lib.split_batch_rows(x, 2)[0])
      for x in predictions
    ]

    def loss(params):
      flaws, stats = self._apply(params, state.batch_stats, images, predictions)
      # Half of the sum of both networks' mean squared errors.
      errors = [
        losses.squared_error(batch_lib.split_batch_rows(x, 2)[0], target)
        for x, target in zip(flaws, targets, strict=True)
      ]
      return self.options.weight * sum(map(jnp.mean, errors)) / 2, stats

    (value, stats), gradient = jax.value_and_grad(loss, has_aux=True)(
      state.params
    )
    update = update_lib.Update(('detector',), self.optimizer, self.num_steps)
    return update.apply_gradients(state, gradient, stats), value

  def _apply(
    self,
    params: types.Params,
    batch_stats: types.Params,
    images: Float[Array, 'rows H W 3'],
    predictions: Predictions,
  ) -> tuple[FlawMaps, types.Params]:
    """Computes the flaw maps, one after the other, and the statistics after."""
    results = []
    for each in predictions:
      flaws, updated = self.network.apply(
        {'params': params['detector'], 'batch_stats': batch_stats},
        images,
        each,
        train=True,
        mutable=['batch_stats'],
      )
      batch_stats = updated['batch_stats']
      results.append(flaws)
    return tuple(results), batch_stats
