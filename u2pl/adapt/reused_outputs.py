"""Outputs for source and mixed images, without another pass of the teacher.

outputs = mix_outputs(student_of_source, teacher_of_target, kept)
"""

from collections.abc import Mapping
from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from input_pipeline import batch as batch_lib
from segcore.models.layers import resize
from u2pl import pseudo_labels


class JoinedOutputs(NamedTuple):
  """Outputs for source and mixed images.

  Attributes:
    by_head: `logits` and `rep` at their cells, source and mixed images joined.
    entropy: entropy of each pixel of the mixed images, in nats.
  """

  by_head: Mapping[str, Array]
  entropy: Float[Array, 'B H W']


def mix_outputs(
  source: Mapping[str, Array],
  target: Mapping[str, Array],
  kept: Bool[Array, 'B H W'],
) -> JoinedOutputs:
  """Mixes outputs for source and target images as the images are mixed.

  A cell is that of the source where its top left pixel is; entropies are mixed
  pixel by pixel.

  Args:
    source: outputs for source images, by head.
    target: outputs for target images of the same heads, at least.
    kept: pixels of the source image in mixed images.
  """

  def join(name: str) -> Float[Array, 'B_joined h w D']:
    own = source[name]
    cells = resize.resize_nearest_floor(kept, own.shape[1:3])[..., None]
    mixed = jnp.where(cells, own, target[name])
    return batch_lib.join_batch_rows([own, mixed])

  own, others = (
    pseudo_labels.pixel_entropy(
      resize.resize_bilinear(each['logits'], kept.shape[1:])
    )
    for each in (source, target)
  )
  return JoinedOutputs(
    {name: join(name) for name in source}, jnp.where(kept, own, others)
  )
