"""EMA teacher: which variables move, and which are reported, at each step."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from segcore.models import heads as heads_lib
from segcore.models import segmenter
from segcore.models.decoders import deeplabv3plus
from segcore.models.encoders import resnet
from tests.transcriptions import u2pl as reference
from tests.u2pl import inputs
from u2pl import ema, ema_options

WARM_UP, EPOCH = 4, 2


@pytest.fixture(autouse=True)
def _in_float64():
  with jax.enable_x64():
    yield


def teacher_of(**options):
  unused = segmenter.Segmenter(
    resnet.DilatedResNet(blocks=(1, 1, 1, 1), width=4),
    deeplabv3plus.DeepLabV3Plus(width=8),
    {'logits': heads_lib.ConvHead(2)},
  )
  return ema.EmaTeacher(
    unused, ema_options.EmaOptions(**options), WARM_UP, EPOCH
  )


def state_of(step, student=1.0, teacher=3.0):
  return ema.TeacherState(
    step=jnp.int32(step),
    params={'w': jnp.full(2, student)},
    batch_stats={'mean': jnp.full(2, 10 * student)},
    opt_state={},
    rng=jax.random.PRNGKey(0),
    teacher_params={'w': jnp.full(2, teacher)},
    teacher_batch_stats={'mean': jnp.full(2, 10 * teacher)},
  )


def values(state):
  params, stats = state.teacher_params['w'], state.teacher_batch_stats['mean']
  return float(params[0]), float(stats[0])


@pytest.mark.parametrize(
  ('step', 'decay'),
  [
    (0, 1.0),
    (3, 1.0),  # The last step of the warm-up.
    (4, 0.0),  # A copy for one epoch.
    (5, 0.0),
    (6, 2 / 3),  # k = 2.
    (7, 3 / 4),
    (200, 0.99),
  ],
)
def test_decay_of_each_phase(step, decay):
  np.testing.assert_allclose(
    teacher_of().decay(state_of(step)), decay, rtol=1e-6
  )


@pytest.mark.parametrize(
  ('statistics', 'expected'), [('own', 30.0), ('ema', 70 / 3), ('copy', 10.0)]
)
def test_update_moves_parameters_and_statistics(statistics, expected):
  before = state_of(6)
  after = teacher_of(statistics=statistics).update(
    before, state_of(7, teacher=0.0)
  )
  # 2/3 of 3 and 1/3 of 1.
  np.testing.assert_allclose(values(after), (7 / 3, expected), rtol=1e-6)
  assert after.step == 7


@pytest.mark.parametrize('statistics', ['own', 'ema', 'copy'])
def test_the_teacher_is_the_student_from_the_first_step_after_the_warm_up(
  statistics,
):
  teacher = teacher_of(statistics=statistics)
  assert values(teacher.copy_student(state_of(3))) == (3, 30)
  own = 30 if statistics == 'own' else 10
  assert values(teacher.copy_student(state_of(4))) == (1, own)
  assert values(teacher.copy_student(state_of(6))) == (3, 30)


def test_the_student_is_reported_until_the_first_step_after_the_warm_up():
  teacher = teacher_of()
  for step, expected in ((0, 1), (4, 1), (5, 3), (9, 3)):
    reported = teacher.reported(state_of(step))
    assert reported['params']['w'][0] == expected
    assert reported['batch_stats']['mean'][0] == 10 * expected


@pytest.mark.parametrize(
  ('options', 'message'),
  [
    ({'decay': 1.0}, 'decay: expected 0 <= decay < 1, got 1.0'),
    ({'copy_epochs': -1}, 'copy_epochs: expected 0 or more, got -1'),
  ],
)
def test_options_out_of_range_are_refused(options, message):
  with pytest.raises(ValueError, match=message):
    ema_options.EmaOptions(**options)


def test_decay_is_that_of_the_reference():
  options = ema_options.EmaOptions()
  for k in (0, 1, 9, 10, 50, 98, 99, 100, 5000):
    actual = ema.ema_decay_at_step(jnp.asarray(k), options, 10)
    # `step` of the reference counts from the start of the run.
    inputs.assert_close(actual, reference.teacher_decay(10 + k, 10), rtol=1e-7)


def test_average_of_parameters():
  teacher_params, student = {'a': inputs.draw(3)}, {'a': inputs.draw(3, seed=1)}
  actual = ema.ema_average(teacher_params, student, 0.9)
  inputs.assert_close(
    actual['a'], reference.ema(teacher_params['a'], student['a'], 0.9)
  )
