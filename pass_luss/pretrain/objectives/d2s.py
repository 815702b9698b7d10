"""D2S: the deep features' assignments teach the shallow ones (spec §2.7)."""

import dataclasses
from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from segcore.ops import losses
from segcore.types import Scalar


@dataclasses.dataclass(frozen=True)
class D2SOptions:
  """Which stages are taught, and by what.

  Attributes:
    stages: of the encoder, by number: 3 is 'x3'; () for none.
    targets: of the 'deep' features, or of the stage's 'own' ones.
    view: whose targets: of the 'other' large view, or the 'same'.
  """

  stages: tuple[int, ...] = (3,)
  targets: Literal['deep', 'own'] = 'deep'
  view: Literal['other', 'same'] = 'other'

  def __post_init__(self):
    known = (3, 2, 1)
    if len(set(self.stages)) < len(self.stages) or not set(self.stages) <= set(
      known
    ):
      raise ValueError(
        f'stages: found {self.stages}, expected some of {known}, each once'
      )


def loss(
  scores: Float[Array, 'B 2 K'],
  targets: Float[Array, 'B 2 K'],
  temperature: float,
  view: Literal['other', 'same'],
) -> Scalar:
  """1/2 Σ_i mean_b(-Σ_k q_ik log softmax(s_v / τ)_k), v = 1-i or i.

  Args:
    scores: of the shallow features of both views.
    targets: that sum to 1.
    temperature: τ.
    view: which view's scores a target is compared with.
  """
  if view == 'other':
    scores = scores[:, ::-1]
  log_probs = jax.nn.log_softmax(losses.at_least_float32(scores) / temperature)
  return -jnp.mean(jnp.sum(targets * log_probs, axis=-1))
