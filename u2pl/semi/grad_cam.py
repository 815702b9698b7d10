"""Self-attention Grad-CAM of PseudoSeg: class scores from image labels.

  cams = class_activation_maps(deepest, kernel, tags)
  logits = SelfAttention(num_classes)(maps, train, cams, valid)
  targets = fuse_predictions(decoder_logits, logits)

Class 0 is the background; the other classes have image labels ("tags"). Source:
Zou et al. 2021, "PseudoSeg: Designing Pseudo Labels for Semantic Segmentation".
"""

from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from segcore.models.layers import norm, resize
from segcore.ops import losses

# Maps of the encoder that queries and keys are computed from.
_NUM_MAPS = 2


def image_tags(
  labels: Int[Array, 'B H W'], num_classes: int
) -> Bool[Array, 'B C_tags']:
  """Computes which classes but the background an image shows.

  Args:
    labels: ground truth; negative where ignored.
    num_classes: number C of classes; there are C - 1 tags.
  """
  classes = jnp.arange(1, num_classes)
  return jnp.any(labels[..., None] == classes, axis=(1, 2))


def class_activation_maps(
  features: Float[Array, 'B h w D'],
  kernel: Float[Array, 'D C_tags'],
  tags: Bool[Array, 'B C_tags'],
) -> Float[Array, 'B h w C_tags']:
  """Computes the Grad-CAM of each tag, from 0 to 1, without a gradient.

  The gradient of a logit is its column of the kernel, divided by the number of
  cells, at every cell: pooling is global and linear. So Grad-CAM is exactly
  relu(features · kernel), up to a factor that scaling to the largest value of
  an image and a class removes.

  Args:
    features: map that is pooled and classified.
    kernel: kernel of the classifier.
    tags: image labels; maps of others are 0.
  """
  exact = jax.lax.Precision.HIGHEST
  scores = jnp.einsum(
    'bhwd,dc->bhwc', losses.at_least_float32(features), kernel, precision=exact
  )
  cams = nn.relu(scores) * tags[:, None, None]
  largest = jnp.max(cams, axis=(1, 2), keepdims=True)
  scaled = cams / jnp.where(largest > 0, largest, 1.0)
  return jax.lax.stop_gradient(scaled)


class SelfAttention(nn.Module):
  """Spreads class activation maps over similar cells; C logits for each cell.

  The values of all cells are averaged with the weights softmax(q·k/√d) and
  added to the map; 2 minus the largest score is that of the background. A 1x1
  with batch norm turns scores into logits. Queries and keys are 1x1s of the
  last two maps of the encoder, which get no gradient.

  Attributes:
    num_classes: number C of classes.
    width: d, channels of queries and keys.
    num_maps: 2, maps that the head reads.
    reads: 'encoder', whose maps the head reads.
  """

  num_classes: int
  width: int = 128
  num_maps: int = _NUM_MAPS
  reads: str = 'encoder'

  @nn.compact
  def __call__(
    self,
    maps: tuple[Float[Array, 'B ...'], ...],
    train: bool = False,
    cams: Float[Array, 'B h w C_tags'] | None = None,
    valid: Bool[Array, 'B H W'] | None = None,
  ) -> Float[Array, 'B h w C']:
    """Computes the logits on the grid of the deepest map, in float32 at least.

    Args:
      maps: the last maps of the encoder, the deepest one first.
      train: whether batch statistics are those of training.
      cams: class activation maps; None for zeros, to initialize.
      valid: False on pixels that neither attend nor are attended to; None if
        there are none.
    """
    size = maps[0].shape[1:3]
    if cams is None:
      cams = jnp.zeros((*maps[0].shape[:3], self.num_classes - 1))
    dtype = jnp.promote_types(cams.dtype, jnp.float32)
    resized = [
      resize.resize_bilinear(x.astype(dtype), size, align_corners=True)
      for x in maps
    ]
    cells = jax.lax.stop_gradient(jnp.concatenate(resized, axis=-1))

    def conv(channels: int, name: str) -> nn.Conv:
      return nn.Conv(channels, (1, 1), use_bias=False, dtype=dtype, name=name)

    queries, keys = (
      conv(self.width, name)(cells).reshape(len(cells), -1, self.width)
      for name in ('query', 'key')
    )
    scores = jnp.einsum('bid,bjd->bij', queries, keys) / self.width**0.5
    if valid is not None:
      cell = resize.resize_nearest_floor(valid, size).reshape(len(cells), -1)
      scores += jnp.where(cell[:, :, None] & cell[:, None], 0.0, -1e9)
    values = cams.reshape(len(cells), -1, cams.shape[-1])
    spread = jnp.einsum('bij,bjc->bic', jax.nn.softmax(scores), values)
    spread = spread.reshape(cams.shape) + cams
    background = 2 - jnp.max(spread, axis=-1, keepdims=True)
    logits = conv(self.num_classes, 'scores')(
      jnp.concatenate([background, spread], axis=-1)
    )
    return norm.batch_norm(train=train, dtype=dtype, name='bn')(logits)


def fuse_predictions(
  decoder: Float[Array, 'B h w C'],
  attention: Float[Array, 'B h w C'],
  temperature: float = 0.5,
  scale: Literal['batch', 'pixel'] = 'batch',
) -> Float[Array, 'B h w C']:
  """Computes soft pseudo-labels of two predictions (calibrated fusion).

  p = ½ softmax(a/n) + ½ softmax(m/n), sharpened to p^(1/T) / Σ p^(1/T)

  Args:
    decoder: logits a of the decoder.
    attention: logits m of the self-attention Grad-CAM, on the same grid.
    temperature: T.
    scale: n, the root of the mean square of all logits of both ('batch', as in
      the released code), or the norm of both logits of a pixel ('pixel', as in
      the paper).
  """
  logits = losses.at_least_float32(jnp.stack([decoder, attention]))
  if scale == 'batch':
    norms = jnp.sqrt(jnp.mean(jnp.square(logits)) + 1e-8)
  else:
    norms = jnp.sqrt(jnp.sum(jnp.square(logits), (0, -1))[..., None] + 1e-8)
  probs = jnp.mean(jax.nn.softmax(logits / norms), axis=0)
  sharpened = probs ** (1 / temperature)
  return sharpened / jnp.sum(sharpened, axis=-1, keepdims=True)
