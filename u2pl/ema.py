"""The teacher: a moving average of the student (spec U2PL §4)."""

import dataclasses
from typing import Literal

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Int

from segcore.types import Params, Scalar


@dataclasses.dataclass(frozen=True)
class EmaOptions:
  """How the teacher follows the student.

  Attributes:
    decay: most of the old teacher that an update keeps.
    copy_epochs: epochs after the warm-up in which it is the student itself.
    statistics: its batch statistics: its 'own' forward passes in training mode
      collect them, or it takes the student's: 'ema' of them, or a 'copy'.
  """

  decay: float = 0.99
  copy_epochs: int = 1
  statistics: Literal['own', 'ema', 'copy'] = 'own'

  def __post_init__(self):
    if not 0 <= self.decay < 1:
      raise ValueError(f'decay: found {self.decay}, expected 0 <= decay < 1')
    if self.copy_epochs < 0:
      raise ValueError(
        f'copy_epochs: found {self.copy_epochs}, expected 0 or more'
      )


def decay_at(
  step: Int[Array, ''], options: EmaOptions, steps_per_epoch: int
) -> Scalar:
  """What an update keeps of the old teacher.

  All in the warm-up, 0 while the teacher is a copy, then
  min(1 - 1/(k + 1), decay).

  Args:
    step: k, steps since the end of the warm-up; negative before.
    options: of the teacher.
    steps_per_epoch: of the unlabeled images.
  """
  rising = 1 - 1 / (jnp.maximum(step, 0).astype(jnp.float32) + 1)
  copied = step < options.copy_epochs * steps_per_epoch
  following = jnp.where(copied, 0.0, jnp.minimum(rising, options.decay))
  return jnp.where(step < 0, 1.0, following)


def average(teacher: Params, student: Params, decay: ArrayLike) -> Params:
  """decay·teacher + (1 - decay)·student, leaf by leaf."""
  return jax.tree.map(
    lambda t, s: decay * t + (1 - decay) * s, teacher, student
  )
