"""Base of encoders and decoders: their dtype and their recomputation."""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jax.typing import DTypeLike


class NetworkPart(nn.Module, kw_only=True):
  """An encoder or a decoder.

  Attributes:
    dtype: dtype of the activations; parameters, softmax and statistics are
      float32.
    remat: whether units and blocks are recomputed in the backward pass, to
      save memory.
  """

  dtype: DTypeLike = jnp.float32
  remat: bool = False


def check_image_sides(sides: tuple[Any, Any], multiple: int) -> None:
  """Raises ValueError unless the sides of images are multiples of a number.

  Args:
    sides: height and width in pixels; symbolic in an export.
    multiple: number of pixels.
  """
  height, width = sides
  if height % multiple or width % multiple:
    raise ValueError(
      f'images: expected sides that are multiples of {multiple}, got '
      f'{height}x{width}: pad or crop them'
    )
