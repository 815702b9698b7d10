"""EMA teacher: schedule, state, forward passes and update (spec U2PL §4)."""

import dataclasses
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float, Int

from segcore import types
from segcore.models import segmenter as segmenter_lib
from segcore.train import method, train_state
from u2pl import ema_options


@flax.struct.dataclass
class TeacherState(train_state.TrainState):
  """Training state of a student with an EMA teacher.

  Attributes:
    teacher_params: parameters of the teacher, structured as `params`; None
      without a teacher.
    teacher_batch_stats: batch statistics of the teacher, structured as
      `batch_stats`; None without a teacher.
  """

  teacher_params: Any
  teacher_batch_stats: Any


def ema_decay_at_step(
  step: Int[Array, ''], options: ema_options.EmaOptions, steps_per_epoch: int
) -> types.Scalar:
  """Computes the decay d of the update θ_t ← d·θ_t + (1 - d)·θ_s.

  The decay is 1 in the warm-up, 0 while the teacher is a copy of the student,
  and then min(1 - 1/(k + 1), options.decay), or options.decay if it does not
  rise.

  Args:
    step: number k of steps since the end of the warm-up; negative before.
    options: options of the teacher.
    steps_per_epoch: number of steps in which all unlabeled images are read
      once.
  """
  ramp = 1 - 1 / (jnp.maximum(step, 0).astype(jnp.float32) + 1)
  is_copy = step < options.copy_epochs * steps_per_epoch
  later = jnp.minimum(ramp, options.decay) if options.rises else options.decay
  decay = jnp.where(is_copy, 0.0, later)
  return jnp.where(step < 0, 1.0, decay)


def ema_average(
  teacher: types.Params, student: types.Params, decay: ArrayLike
) -> types.Params:
  """Computes decay·teacher + (1 - decay)·student, leaf by leaf."""
  return jax.tree.map(
    lambda t, s: decay * t + (1 - decay) * s, teacher, student
  )


def select_teacher_tree(
  condition: Bool[Array, ''], if_true: types.Params, if_false: types.Params
) -> types.Params:
  """Returns one of two trees of the same structure, chosen on the device.

  Args:
    condition: scalar that is known on the device only.
    if_true: tree that is returned where it is true.
    if_false: tree that is returned otherwise.
  """
  return jax.tree.map(
    lambda a, b: jnp.where(condition, a, b), if_true, if_false
  )


@dataclasses.dataclass(frozen=True)
class EmaTeacher:
  """Exponential moving average of the student.

  Attributes:
    segmenter: network of both student and teacher.
    options: decay and batch statistics.
    warmup_steps: number of steps before the teacher is used, in which its
      parameters do not change.
    steps_per_epoch: number of steps in which all unlabeled images are read
      once.
  """

  segmenter: segmenter_lib.Segmenter
  options: ema_options.EmaOptions
  warmup_steps: int
  steps_per_epoch: int

  def variables(self, state: TeacherState) -> dict[str, types.Params]:
    """Returns the teacher's variables, as `Segmenter.apply` takes them."""
    return {
      'params': state.teacher_params,
      'batch_stats': state.teacher_batch_stats,
    }

  def decay(self, state: TeacherState) -> types.Scalar:
    """Computes the decay of the step that starts at `state`."""
    return ema_decay_at_step(
      state.step - self.warmup_steps, self.options, self.steps_per_epoch
    )

  def copy_student(self, state: TeacherState) -> TeacherState:
    """Copies the student's parameters where the decay of the step is 0.

    `update` copies after a step. The first step after the warm-up needs the
    copy before, whatever the decay, since its teacher still has its initial
    parameters.
    """
    is_copy = self.decay(state) == 0
    if not self.options.rises:
      is_copy |= state.step == self.warmup_steps
    state = state.replace(
      teacher_params=select_teacher_tree(
        is_copy, state.params, state.teacher_params
      )
    )
    if self.options.statistics == 'own':
      return state
    return state.replace(
      teacher_batch_stats=select_teacher_tree(
        is_copy, state.batch_stats, state.teacher_batch_stats
      )
    )

  def forward(
    self,
    state: TeacherState,
    images: Float[Array, 'B H W 3'],
    heads: tuple[str, ...],
    rng: Array | None,
  ) -> tuple[dict[str, Array], TeacherState]:
    """Computes outputs in training mode, without gradient.

    Args:
      state: state whose teacher is applied.
      images: images in [-1, 1].
      heads: names of the heads to compute.
      rng: key of dropout and stochastic depth; None to leave both out.

    Returns:
      Outputs by head, and the state with the batch statistics of this pass, if
      the teacher keeps its own. In evaluation mode only, the authors' teacher
      was much worse (spec U2PL §0, row 7).
    """
    outputs, batch_stats = method.training_forward_pass(
      self.segmenter,
      state.teacher_params,
      state.teacher_batch_stats,
      images,
      heads=heads,
      rng=rng,
    )
    if self.options.statistics == 'own':
      state = state.replace(teacher_batch_stats=batch_stats)
    return jax.lax.stop_gradient(outputs), state

  def update(self, before: TeacherState, after: TeacherState) -> TeacherState:
    """Moves the teacher toward the student of `after`.

    Args:
      before: state before the student's update; its step sets the decay.
      after: state after that update, with the teacher of `before`.
    """
    decay = self.decay(before)
    batch_stats = before.teacher_batch_stats
    if self.options.statistics == 'ema':
      batch_stats = ema_average(batch_stats, after.batch_stats, decay)
    elif self.options.statistics == 'copy':
      batch_stats = after.batch_stats
    return after.replace(
      teacher_params=ema_average(before.teacher_params, after.params, decay),
      teacher_batch_stats=batch_stats,
    )

  def reported(self, state: TeacherState) -> dict[str, types.Params]:
    """Returns the teacher's variables, or the student's in the warm-up."""
    # After the last step of the warm-up, `step` equals its number of steps.
    in_warm_up = state.step <= self.warmup_steps
    return select_teacher_tree(
      in_warm_up,
      train_state.train_state_variables(state),
      self.variables(state),
    )
