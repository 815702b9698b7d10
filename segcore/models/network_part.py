"""Base of encoders and decoders: their dtype and their recomputation."""

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
