"""Options of optimizers: what is refused, and what is described."""

import dataclasses
import doctest

import jaxtyping
import pytest

from segcore.train import optimizers


@pytest.mark.parametrize(
  'changes, message',
  [
    ({'name': 'lars'}, "name: expected one of adam, sgd, got 'lars'"),
    (
      {'schedule': 'step'},
      'schedule: expected one of cosine, poly, warmed_poly, switched_poly, '
      "linear, constant, steps, got 'step'",
    ),
    (
      {'weight_decay_mode': 'L2'},
      "weight_decay_mode: expected one of decoupled, l2, got 'L2'",
    ),
    (
      {'learning_rate': 0.0},
      'learning_rate: expected a number > 0, got 0.0',
    ),
    (
      {'learning_rate': float('nan')},
      'learning_rate: expected a number > 0, got nan',
    ),
    (
      {'learning_rate': '1e-3'},
      "learning_rate: expected a number > 0, got '1e-3'",
    ),
    ({'poly_power': 0.0}, 'poly_power: expected a number > 0, got 0.0'),
    (
      {'final_learning_rate': 2.0},
      'final_learning_rate: expected a number >= 0 and <= 1, got 2.0',
    ),
    (
      {'final_learning_rate': 0.5, 'schedule': 'constant'},
      "final_learning_rate: expected 0 with schedule='constant', got 0.5",
    ),
    (
      {'milestones': (3,)},
      "milestones: expected () with schedule='cosine', got (3,)",
    ),
    (
      {'schedule': 'steps'},
      "milestones: expected steps with schedule='steps', got ()",
    ),
    (
      {'schedule': 'steps', 'milestones': (5, 3)},
      'milestones: expected increasing steps, got (5, 3)',
    ),
    (
      {'schedule_interval': 0},
      'schedule_interval: expected an integer >= 1, got 0',
    ),
    (
      {'momentum_of': 'updates'},
      "momentum_of: expected gradients unless name='sgd', got 'updates'",
    ),
    ({'b1': 1.0}, 'b1: expected a number >= 0 and < 1, got 1.0'),
    ({'b2': -0.1}, 'b2: expected a number >= 0 and < 1, got -0.1'),
    ({'eps': 0.0}, 'eps: expected a number > 0, got 0.0'),
    ({'momentum': 1.5}, 'momentum: expected a number >= 0 and < 1, got 1.5'),
    (
      {'nesterov': True},
      "nesterov: expected False unless name='sgd' and momentum > 0, got True",
    ),
    (
      {'nesterov': True, 'name': 'sgd', 'momentum': 0.0},
      "nesterov: expected False unless name='sgd' and momentum > 0, got True",
    ),
    (
      {'weight_decay': -1e-4},
      'weight_decay: expected a number >= 0, got -0.0001',
    ),
    ({'clip_norm': True}, 'clip_norm: expected a number >= 0, got True'),
    (
      {'warmup_steps': -1},
      'warmup_steps: expected an integer >= 0, got -1',
    ),
    (
      {'warmup_steps': 1.5},
      'warmup_steps: expected an integer >= 0, got 1.5',
    ),
    (
      {'warmup_start': 1.5, 'warmup_steps': 5},
      'warmup_start: expected a number >= 0 and <= 1, got 1.5',
    ),
    (
      {'warmup_start': 0.01},
      'warmup_start: expected 0 without warmup_steps, got 0.01',
    ),
    (
      {'name': 'sgd', 'adaptation': 'lamb'},
      "adaptation: expected one of none, larc, lars, got 'lamb'",
    ),
    (
      {'adaptation': 'larc'},
      "adaptation: expected none with name='adam', got 'larc'",
    ),
    (
      {'name': 'sgd', 'adaptation': 'lars', 'weight_decay': 1e-5},
      "weight_decay_mode: expected l2 with adaptation='lars', which decays "
      "gradients, got 'decoupled'",
    ),
    (
      {'trust_coefficient': 0.0},
      'trust_coefficient: expected a number > 0, got 0.0',
    ),
    (
      {'groups': (('a', 1.0),)},
      'groups[0]: expected (pattern, learning-rate and weight-decay factor), '
      "got ('a', 1.0)",
    ),
    (
      {'groups': (('a', 1.0, 1.0), ('b', -1.0, 1.0))},
      'groups[1] learning-rate factor: expected a number >= 0, got -1.0',
    ),
    (
      {'groups': (('(', 1.0, 1.0),)},
      'groups[0] pattern: expected a regular expression (missing ), '
      "unterminated subpattern at position 0), got '('",
    ),
  ],
)
def test_impossible_options_are_refused(changes, message):
  # Without jaxtyping's checks, as in production, the options' own checks run.
  jaxtyping.config.update('jaxtyping_disable', True)
  try:
    with pytest.raises(ValueError) as error:
      optimizers.OptimizerOptions(**{'learning_rate': 1.0, **changes})
  finally:
    jaxtyping.config.update('jaxtyping_disable', False)
  assert str(error.value) == message


def test_describe():
  assert optimizers.describe_optimizer(
    optimizers.OptimizerOptions(
      name='sgd',
      learning_rate=0.01,
      schedule='poly',
      warmup_steps=1500,
      weight_decay=1e-4,
      weight_decay_mode='l2',
      groups=(('norm', 0.0, 1.0), ('^decoder/', 10.0, 1.0)),
    ),
    40_000,
  ) == (
    'sgd (momentum 0.9), learning rate 0.01, warm-up of 1,500 steps, poly 0.9 '
    "to 0 at step 40,000, l2 weight decay 0.0001, 'norm' frozen, "
    "'^decoder/' x10, decay x1"
  )
  larc = optimizers.OptimizerOptions(
    name='sgd',
    learning_rate=0.6,
    final_learning_rate=6e-4,
    weight_decay=1e-6,
    weight_decay_mode='l2',
    adaptation='larc',
  )
  assert optimizers.describe_optimizer(larc, 300_600) == (
    'sgd (momentum 0.9), larc (trust 0.001), learning rate 0.6, cosine to '
    '0.0006 at step 300,600, larc weight decay 1e-06'
  )
  lars = dataclasses.replace(
    larc, adaptation='lars', warmup_steps=5, warmup_start=0.01
  )
  assert optimizers.describe_optimizer(lars, 10) == (
    'sgd (momentum 0.9), lars (trust 0.001, two axes or more), learning rate '
    '0.6, warm-up of 5 steps from 0.006, cosine to 0.0006 at step 10, lars '
    'weight decay 1e-06'
  )
  assert optimizers.describe_optimizer(
    optimizers.OptimizerOptions(learning_rate=1e-3, schedule='constant'), 5000
  ) == (
    'adam (b1 0.9, b2 0.999, eps 1e-08), learning rate 0.001, constant for '
    '5,000 steps'
  )


def test_the_examples_are_true():
  assert doctest.testmod(optimizers).failed == 0
