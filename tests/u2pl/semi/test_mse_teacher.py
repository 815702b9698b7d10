"""A whole step of the mean teacher of squared errors, in numpy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.transcriptions import u2pl as u2pl_reference
from tests.u2pl.semi import pointwise
from u2pl import ema_options
from u2pl.semi import options as options_lib

SIDE = 24


@pytest.fixture(scope='module')
def stepped():
  """Returns method, states before and after a step, batch and scalars."""
  with jax.enable_x64():
    trained = pointwise.make_method(options_lib.MseTeacherOptions())
    state = pointwise.init_state(trained, SIDE)
    # Else the teacher would be the student, and the error 0.
    state = state.replace(
      teacher_params=jax.tree.map(lambda x: 1.2 * x, state.teacher_params)
    )
    batch = pointwise.draw_batch(SIDE)
    after, scalars = jax.device_get(jax.jit(trained.train_step)(state, batch))
  return trained, state, batch, after, scalars


def both_logits(params, batch):
  """Returns logits of each stream, with batch statistics of its own."""
  return [
    pointwise.upsample(
      pointwise.classify(
        params, pointwise.decode(params, pointwise.encode(params, images))
      ),
      (SIDE, SIDE),
    )
    for images in pointwise.images_of(batch)
  ]


def test_a_whole_step_equals_the_reference(stepped):
  _, state, batch, after, scalars = stepped
  valid = batch['unlabeled']['valid']
  counted = np.stack([np.ones_like(valid), valid])
  target = np.stack(
    [
      u2pl_reference.softmax(x)
      for x in both_logits(state.teacher_params, batch)
    ]
  )

  def losses(params):
    logits = both_logits(params, batch)
    error = np.square(u2pl_reference.softmax(np.stack(logits)) - target)
    return {
      'loss_supervised': u2pl_reference.cross_entropy(
        logits[0], batch['labeled']['label'].astype(int)
      ),
      'loss_unsupervised': 100 * error[counted].mean(),
    }

  pointwise.check_step(losses, state.params, after.params, scalars)
  followed = jax.tree.map(
    lambda t, s: 0.99 * t + 0.01 * s, state.teacher_params, after.params
  )
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-9),
    after.teacher_params,
    followed,
  )


def test_the_student_is_evaluated(stepped):
  trained, _, _, after, _ = stepped
  assert trained.reported(after)['params'] is after.params


def test_a_constant_decay_copies_the_student_before_the_first_step(stepped):
  trained, state, *_ = stepped
  teacher = trained.teacher
  assert teacher.options == ema_options.ConstantEmaOptions(0.99)
  with jax.enable_x64():
    for step, expected in ((0, state.params), (1, state.teacher_params)):
      now = state.replace(step=jnp.int32(step))
      copied = teacher.copy_student(now).teacher_params
      jax.tree.map(np.testing.assert_array_equal, copied, expected)
      assert abs(float(teacher.decay(now)) - 0.99) < 1e-6
