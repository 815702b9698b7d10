"""SEAM's pixel correlation module, which refines class activation maps.

  cams = suppress_weaker_classes(cams)                  # no gradient
  refined = correlate_pixels(embeddings, cams)          # [B, h, w, C + 1]

Each cell of the result is the mean of the maps over the cells of similar
embeddings. Source: Wang et al. 2020 (SEAM), Sec. 3.3; spec comparators §4.1.
"""

from collections.abc import Mapping

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from pass_luss.weak import image_classifier
from segcore import types
from segcore.models import features as features_lib
from segcore.models import heads
from segcore.models.layers import resize, standardize
from segcore.ops import losses

# Channels of the shallow map, of the deep map and of the embedding.
_SHALLOW, _DEEP, _EMBEDDING = 64, 128, 192
_EPSILON = 1e-5
_EXACT = jax.lax.Precision.HIGHEST


class JoinedMatrix(heads.EncoderHead):
  """The matrix of the embedding, which reads three maps joined.

  A head reads one map: called with it, the module only makes the matrix, which
  `embed_pixels` applies.
  """

  @nn.compact
  def __call__(
    self, x: Float[Array, 'B h w D'], train: bool = False
  ) -> Float[Array, 'B h w D_out']:
    """Returns zeros of the shape of the embedding."""
    del train
    # Xavier's initialization with gain 4.
    init = nn.initializers.variance_scaling(16.0, 'fan_avg', 'uniform')
    self.param('kernel', init, (3 + _SHALLOW + _DEEP, _EMBEDDING))
    return jnp.zeros((*x.shape[:-1], _EMBEDDING))


def correlation_heads(shallow: str, deep: str) -> Mapping[str, nn.Module]:
  """Builds the heads of the module.

  Only their kernels are used, by `embed_pixels`.

  Args:
    shallow: name of the encoder's map that gets 64 channels.
    deep: name of the map that gets 128.
  """
  init = nn.initializers.kaiming_normal()
  return {
    name: heads.TagHead(size, 'mean', kernel_init=init, map_name=map_name)
    for name, size, map_name in (
      ('shallow', _SHALLOW, shallow),
      ('deep', _DEEP, deep),
    )
  } | {'embedding': JoinedMatrix()}


def embed_pixels(
  params: types.Params,
  images: Float[Array, 'B H W 3'],
  shallow: Float[Array, 'B _ _ _'],
  deep: Float[Array, 'B _ _ _'],
  size: resize.Size,
) -> Float[Array, 'B h w D']:
  """Embeds cells by their colors and by the features of two maps.

  The encoder gets no gradient.

  Args:
    params: all parameters.
    images: images in [-1, 1].
    shallow: first map of the encoder that is read.
    deep: second map of the encoder that is read.
    size: height and width of the result; corners of all maps coincide.
  """
  joined = [standardize.standardize_by_imagenet(images)]
  for name, maps in (('shallow', shallow), ('deep', deep)):
    constant = jax.lax.stop_gradient(maps)
    joined.append(
      jax.nn.relu(image_classifier.class_maps_of_head(params, name, constant))
    )
  resized = [
    resize.resize_bilinear(each, size, align_corners=True) for each in joined
  ]
  return image_classifier.class_maps_of_head(
    params, 'embedding', jnp.concatenate(resized, axis=-1)
  )


def suppress_weaker_classes(
  cams: Float[Array, 'B h w C'],
) -> Float[Array, 'B h w C']:
  """Normalizes maps and keeps the strongest class of each cell; no gradient.

  Each map is divided by its maximum. That of channel 0, the background, becomes
  1 - the largest of the others, of which all smaller ones are set to 0.
  """
  cams = jax.nn.relu(jax.lax.stop_gradient(cams))
  highest = jnp.max(cams, axis=(1, 2), keepdims=True) + _EPSILON
  classes = (jax.nn.relu(cams - _EPSILON) / highest)[..., 1:]
  strongest = jnp.max(classes, axis=-1, keepdims=True)
  kept = jnp.where(classes < strongest, 0.0, classes)
  return jnp.concatenate([1.0 - strongest, kept], axis=-1)


def correlate_pixels(
  embeddings: Float[Array, 'B h w D'], cams: Float[Array, 'B h w C']
) -> Float[Array, 'B h w C']:
  """Averages maps over similar cells.

  The weights of the cells are their cosine similarities, 0 at least; those of
  one cell sum to 1.
  """
  batch, height, width, channels = cams.shape
  flat = embeddings.reshape(batch, height * width, embeddings.shape[-1])
  flat = losses.at_least_float32(flat)
  # The gradient of a norm is not defined at 0.
  square = jnp.sum(jnp.square(flat), axis=-1, keepdims=True)
  norm = jnp.where(
    square > 0, jnp.sqrt(jnp.where(square > 0, square, 1.0)), 0.0
  )
  unit = flat / (norm + _EPSILON)
  similar = jax.nn.relu(
    jnp.einsum('bid,bjd->bij', unit, unit, precision=_EXACT)
  )
  weights = similar / (jnp.sum(similar, axis=1, keepdims=True) + _EPSILON)
  refined = jnp.einsum(
    'bic,bij->bjc',
    cams.reshape(batch, -1, channels),
    weights,
    precision=_EXACT,
  )
  return refined.reshape(batch, height, width, channels)


def refine_cams(
  params: types.Params,
  images: Float[Array, 'B H W 3'],
  maps: features_lib.Features,
  cams: Float[Array, 'B h w C'],
  names: tuple[str, str],
) -> Float[Array, 'B h w C']:
  """Refines class activation maps by the correlation of their cells.

  Args:
    params: all parameters.
    images: images in [-1, 1].
    maps: maps of the encoder.
    cams: class activation maps, with that of the background as channel 0.
    names: names of the two maps that the module reads.
  """
  shallow, deep = (maps.by_name(name).array for name in names)
  embeddings = embed_pixels(params, images, shallow, deep, cams.shape[1:3])
  return correlate_pixels(embeddings, suppress_weaker_classes(cams))
