"""Optimizers and learning-rate schedules, built from a config's block.

  options = OptimizerOptions(name='sgd', learning_rate=0.01, schedule='poly')
  tx = build_optimizer(options, num_steps=20_000, params=params)
  state = tx.init(params)

The order within one update is: clipping, l2 decay, layer-wise adaptation,
momentum or Adam, decoupled decay, learning rate, factor of the parameter group.
LARC combines adaptation and decay.
"""

import dataclasses
import math
import re

import jax.numpy as jnp
from etils import epy
from jaxtyping import Array, Float

from segcore.train import field_checks, layer_adaptation, tree_paths
from segcore.types import Params

with epy.lazy_imports():
  import optax

# (pattern of paths, learning-rate factor, weight-decay factor).
ParamGroup = tuple[str, float, float]

# Share of the learning rate when a fraction `left` of the decay remains.
_DECAY_SHAPES = {
  # sin² (π/2 · left) is (1 + cos(π · done)) / 2, and exact at both ends.
  'cosine': lambda left, _: jnp.square(jnp.sin(left * (math.pi / 2))),
  'poly': lambda left, power: jnp.power(left, power),
  'warmed_poly': lambda left, power: jnp.power(left, power),
  'switched_poly': lambda left, power: jnp.power(left, power),
  'linear': lambda left, _: left,
  'constant': lambda left, _: jnp.ones_like(left),
  # Its milestones are steps, so it does not depend on what is left.
  'steps': None,
}
# Factor of the learning rate at each milestone of the schedule 'steps'.
_MILESTONE_FACTOR = 0.1

# Schedules whose decay is counted from step 0, not from the warm-up's end.
_POLYS_FROM_STEP_0 = ('warmed_poly', 'switched_poly')


@dataclasses.dataclass(frozen=True, kw_only=True)
class OptimizerOptions:
  """Options of the optimizer, its schedule and its parameter groups.

  Attributes:
    name: adam (with decoupled decay: AdamW) or sgd (with l2 decay: torch's
      SGD).
    b1: Adam's decay of the first moment.
    b2: Adam's decay of the second moment.
    eps: Adam's epsilon, outside of the square root.
    momentum: momentum of sgd, without dampening.
    nesterov: whether to use Nesterov momentum.
    adaptation: layer-wise adaptation of sgd before the momentum: 'none', 'larc'
      of every parameter, or 'lars' of parameters with two axes or more. The
      mode of weight decay must be l2, and lars decays only what it adapts.
    trust_coefficient: ratio of the norm of an adapted gradient to the norm of
      its parameter, without weight decay.
    adaptation_eps: ε that layer-wise adaptation adds to its divisor.
    momentum_of: quantity that the momentum of sgd averages: 'gradients', which
      the learning rate multiplies after it, as in torch; or 'updates', which
      have been multiplied by the learning rate of their step.
    learning_rate: peak of the schedule, at the end of the warm-up.
    schedule: cosine, poly, linear or constant, which start after the warm-up;
      steps, a tenth of the rate from each milestone on; warmed_poly, a poly
      that starts at step 0 and that the warm-up multiplies, as in mmcv; or
      switched_poly, which starts at step 0 as well but is used after the
      warm-up alone, as in AFA: there the rate drops from the peak.
    schedule_interval: number of steps for which the rate stays the same after
      the warm-up: those of an epoch, for a schedule by epochs.
    milestones: steps of the schedule steps.
    constant_rate: pattern of the paths of parameters whose learning rate stays
      at the peak, whatever the schedule; '' for none.
    poly_power: exponent of the poly schedules.
    final_learning_rate: learning rate at the end of the schedule.
    schedule_steps: length of the schedule if longer than that of the training.
    warmup_steps: steps of the linear warm-up to the peak.
    warmup_start: learning rate at step 0 as a fraction of the peak; 1 for a
      constant rate before the schedule starts.
    weight_decay: coefficient for every parameter, biases and norms included,
      unless a group changes it.
    weight_decay_mode: decoupled (learning rate x decay x parameter is
      subtracted) or l2 (decay x parameter is added to the gradient, before the
      moments).
    clip_norm: bound on the global norm of the gradients; 0 for no clipping.
    groups: (pattern, learning-rate factor, weight-decay factor) each. The
      pattern is searched for in the parameter's path, 'encoder/block1/kernel'
      (anchor it with ^ and $); the first match decides, and other parameters
      have factors 1 and 1. A learning-rate factor of 0 freezes a parameter: no
      update, no optimizer state, no share in the global norm.
  """

  name: str = 'adam'
  b1: float = 0.9
  b2: float = 0.999
  eps: float = 1e-8
  momentum: float = 0.9
  nesterov: bool = False
  adaptation: str = 'none'
  trust_coefficient: float = 0.001
  adaptation_eps: float = 1e-8
  momentum_of: str = 'gradients'
  learning_rate: float
  schedule: str = 'cosine'
  schedule_interval: int = 1
  milestones: tuple[int, ...] = ()
  constant_rate: str = ''
  poly_power: float = 0.9
  final_learning_rate: float = 0.0
  schedule_steps: int = 0
  warmup_steps: int = 0
  warmup_start: float = 0.0
  weight_decay: float = 0.0
  weight_decay_mode: str = 'decoupled'
  clip_norm: float = 0.0
  groups: tuple[ParamGroup, ...] = ()

  def __post_init__(self):
    field_checks.check_word('name', self.name, ('adam', 'sgd'))
    field_checks.check_word(
      'adaptation', self.adaptation, ('none', 'larc', 'lars')
    )
    field_checks.check_word('schedule', self.schedule, tuple(_DECAY_SHAPES))
    field_checks.check_word(
      'momentum_of', self.momentum_of, ('gradients', 'updates')
    )
    field_checks.check_word(
      'weight_decay_mode', self.weight_decay_mode, ('decoupled', 'l2')
    )
    field_checks.check_number('learning_rate', self.learning_rate, above=0.0)
    field_checks.check_number('poly_power', self.poly_power, above=0.0)
    field_checks.check_number(
      'final_learning_rate',
      self.final_learning_rate,
      most=self.learning_rate,
    )
    field_checks.check_number('schedule_steps', self.schedule_steps)
    field_checks.check_number('b1', self.b1, below=1.0)
    field_checks.check_number('b2', self.b2, below=1.0)
    field_checks.check_number('eps', self.eps, above=0.0)
    field_checks.check_number('momentum', self.momentum, below=1.0)
    field_checks.check_number(
      'trust_coefficient', self.trust_coefficient, above=0.0
    )
    field_checks.check_number('adaptation_eps', self.adaptation_eps)
    field_checks.check_number('warmup_start', self.warmup_start, most=1.0)
    field_checks.check_number('weight_decay', self.weight_decay)
    field_checks.check_number('clip_norm', self.clip_norm)
    if type(self.warmup_steps) is not int or self.warmup_steps < 0:
      field_checks.refuse('warmup_steps', self.warmup_steps, 'an integer >= 0')
    self._check_schedule()
    if self.warmup_start and not self.warmup_steps:
      field_checks.refuse(
        'warmup_start', self.warmup_start, '0 without warmup_steps'
      )
    if self.nesterov and (self.name != 'sgd' or not self.momentum):
      field_checks.refuse(
        'nesterov', self.nesterov, "False unless name='sgd' and momentum > 0"
      )
    if self.adaptation != 'none':
      if self.name != 'sgd':
        field_checks.refuse(
          'adaptation', self.adaptation, f'none with name={self.name!r}'
        )
      if self.weight_decay and self.weight_decay_mode != 'l2':
        field_checks.refuse(
          'weight_decay_mode',
          self.weight_decay_mode,
          f'l2 with adaptation={self.adaptation!r}, which decays gradients',
        )
    for index, group in enumerate(self.groups):
      field_checks.check_group(f'groups[{index}]', group)

  def _check_schedule(self) -> None:
    """Raises ValueError for fields that the schedule does not have."""
    if self.schedule in ('constant', 'steps') and self.final_learning_rate:
      field_checks.refuse(
        'final_learning_rate',
        self.final_learning_rate,
        f'0 with schedule={self.schedule!r}',
      )
    if (self.schedule == 'steps') != bool(self.milestones):
      expected = 'steps' if self.schedule == 'steps' else '()'
      field_checks.refuse(
        'milestones',
        self.milestones,
        f'{expected} with schedule={self.schedule!r}',
      )
    if list(self.milestones) != sorted({*self.milestones}):
      field_checks.refuse('milestones', self.milestones, 'increasing steps')
    if self.schedule_interval < 1:
      field_checks.refuse(
        'schedule_interval', self.schedule_interval, 'an integer >= 1'
      )
    if self.momentum_of == 'updates' and (
      self.name != 'sgd' or not self.momentum
    ):
      field_checks.refuse(
        'momentum_of', self.momentum_of, "gradients unless name='sgd'"
      )

  def factors(self, path: str) -> tuple[float, float]:
    """Returns the learning-rate and weight-decay factor of a parameter."""
    index = find_parameter_group(path, self.groups)
    return (1.0, 1.0) if index is None else self.groups[index][1:]


def find_parameter_group(
  path: str, groups: tuple[ParamGroup, ...]
) -> int | None:
  """Returns the index of the first group that matches a path, or None.

  >>> groups = (('^decoder/', 10.0, 1.0), ('bias$', 2.0, 0.0))
  >>> find_parameter_group('encoder/bias', groups)
  1
  """
  for index, (pattern, *_) in enumerate(groups):
    if re.search(pattern, path):
      return index
  return None


def learning_rate_schedule(
  options: OptimizerOptions, num_steps: int
) -> 'optax.Schedule':
  """Builds the schedule: learning rate, float32, by step counted from 0.

  With a warm-up of w steps the rate is `warmup_start` x peak at step 0, the
  peak at step w, and linear between. Then it decays with the remaining fraction
  (num_steps - step) / (num_steps - w), to the final rate at `num_steps`. The
  last update uses step num_steps - 1, one before the final rate, as in torch.
  A warmed_poly decays with (num_steps - step) / num_steps instead; the rate at
  steps before w is multiplied by the share of the warm-up. A switched_poly
  decays alike, and before w its rate is that of the others. With an interval,
  step - w is rounded down to a multiple of it in the decay.

  Raises:
    ValueError: `num_steps` is below 1, or not above the warm-up.

  >>> options = OptimizerOptions(learning_rate=0.5, schedule='linear')
  >>> rate = learning_rate_schedule(options, num_steps=10)
  >>> [float(rate(step)) for step in (0, 5, 10)]
  [0.5, 0.25, 0.0]
  """
  if num_steps < 1:
    field_checks.refuse('num_steps', num_steps, '>= 1')
  num_steps = max(options.schedule_steps, num_steps)
  warmup = options.warmup_steps
  if warmup >= num_steps:
    field_checks.refuse(
      'warmup_steps', warmup, f'fewer than num_steps = {num_steps}'
    )
  peak, final = options.learning_rate, options.final_learning_rate
  decay_shape = _DECAY_SHAPES[options.schedule]
  is_warmed = options.schedule == 'warmed_poly'
  first = 0 if options.schedule in _POLYS_FROM_STEP_0 else warmup

  def learning_rate(step) -> Float[Array, '*shape']:
    step = jnp.clip(jnp.asarray(step, jnp.int32), 0, num_steps)
    if options.schedule == 'steps':
      passed = sum((step >= each).astype(int) for each in options.milestones)
      share = jnp.power(_MILESTONE_FACTOR, passed)
    else:
      done = jnp.maximum(step, first) - first
      done = done // options.schedule_interval * options.schedule_interval
      left = (num_steps - first - done) / (num_steps - first)
      share = decay_shape(left, options.poly_power)
    # Not final + (peak - final) x share, which need not round to the peak.
    decayed = peak * share + final * (1.0 - share)
    if not warmup:
      return decayed
    start = options.warmup_start
    share = start + (1.0 - start) * (step / warmup)
    warming_up = share * (decayed if is_warmed else peak)
    return jnp.where(step < warmup, warming_up, decayed)

  return learning_rate


def has_same_learning_rates(
  options: OptimizerOptions, num_steps: int, longer: int
) -> bool:
  """Returns whether the schedules of two lengths agree on the shorter one.

  Args:
    options: options of the optimizer.
    num_steps: length of the shorter schedule.
    longer: length of the longer schedule.
  """
  steps = jnp.arange(num_steps)
  rates, others = (
    learning_rate_schedule(options, length)(steps)
    for length in (num_steps, longer)
  )
  return bool(jnp.array_equal(rates, others))


def build_optimizer(
  options: OptimizerOptions, num_steps: int, params: Params
) -> 'optax.GradientTransformation':
  """Builds gradient clipping, update rule, decay and rates of all groups.

  Args:
    options: options of the optimizer.
    num_steps: length of the schedule.
    params: arrays or their shapes; only their paths are read.

  Raises:
    ValueError: a group matches no parameter.
  """
  paths = list(tree_paths.list_paths(params))
  _check_groups(options.groups, paths)
  factors = {path: options.factors(path) for path in paths}
  learning_rates = {lr for lr, _ in factors.values()}

  steps = []
  if options.clip_norm:
    steps.append(optax.clip_by_global_norm(options.clip_norm))
  if options.adaptation == 'larc':
    steps.append(
      layer_adaptation.scale_by_larc(
        options.trust_coefficient,
        options.adaptation_eps,
        lambda path: options.weight_decay * options.factors(path)[1],
      )
    )
  elif options.weight_decay and options.weight_decay_mode == 'l2':
    steps.append(_add_decayed_weights(options))
  if options.adaptation == 'lars':
    steps.append(
      layer_adaptation.scale_by_lars(
        options.trust_coefficient, options.adaptation_eps
      )
    )
  if options.name == 'adam':
    steps.append(optax.scale_by_adam(options.b1, options.b2, options.eps))
  elif options.momentum and options.momentum_of == 'gradients':
    steps.append(optax.trace(options.momentum, options.nesterov))
  if options.weight_decay and options.weight_decay_mode == 'decoupled':
    steps.append(_add_decayed_weights(options))
  steps.append(_scale_by_rate(options, num_steps, paths))
  if options.momentum_of == 'updates':
    steps.append(optax.trace(options.momentum, options.nesterov))
  if learning_rates - {0.0, 1.0}:
    steps.append(_scale_by_group(options))
  trained = optax.chain(*steps)
  if 0.0 not in learning_rates:
    return trained
  return optax.partition(
    {'trained': trained, 'frozen': optax.set_to_zero()},
    lambda tree: tree_paths.map_with_paths(
      lambda path, _: 'trained' if options.factors(path)[0] else 'frozen', tree
    ),
  )


def describe_optimizer(options: OptimizerOptions, num_steps: int) -> str:
  """Describes the optimizer in one line, for the log.

  >>> options = OptimizerOptions(learning_rate=6e-5, clip_norm=1.0)
  >>> print(describe_optimizer(options, 1000))  # doctest: +NORMALIZE_WHITESPACE
  adam (b1 0.9, b2 0.999, eps 1e-08), learning rate 6e-05,
  cosine to 0 at step 1,000, clip at norm 1
  """
  if options.name == 'adam':
    inner = f'b1 {options.b1:g}, b2 {options.b2:g}, eps {options.eps:g}'
  else:
    nesterov = ', nesterov' if options.nesterov else ''
    inner = f'momentum {options.momentum:g}{nesterov}'
  parts = [f'{options.name} ({inner})']
  if options.adaptation != 'none':
    axes = ', two axes or more' if options.adaptation == 'lars' else ''
    parts.append(
      f'{options.adaptation} (trust {options.trust_coefficient:g}{axes})'
    )
  parts.append(f'learning rate {options.learning_rate:g}')
  if options.warmup_steps:
    warmup = f'warm-up of {options.warmup_steps:,} steps'
    start = options.warmup_start * options.learning_rate
    parts.append(f'{warmup} from {start:g}' if start else warmup)
  num_steps = max(options.schedule_steps, num_steps)
  end = f'to {options.final_learning_rate:g} at step {num_steps:,}'
  is_poly = options.schedule in ('poly', *_POLYS_FROM_STEP_0)
  power = f' {options.poly_power:g}' if is_poly else ''
  if options.schedule == 'constant':
    parts.append(f'constant for {num_steps:,} steps')
  elif options.schedule == 'steps':
    steps = ', '.join(f'{step:,}' for step in options.milestones)
    parts.append(f'a tenth of it from each of the steps {steps} on')
  else:
    parts.append(f'{options.schedule}{power} {end}')
  if options.schedule_interval > 1:
    parts.append(f'the same for {options.schedule_interval:,} steps each')
  if options.constant_rate:
    parts.append(f'{options.constant_rate!r} at the peak')
  if options.weight_decay:
    adapted = options.adaptation != 'none'
    mode = options.adaptation if adapted else options.weight_decay_mode
    parts.append(f'{mode} weight decay {options.weight_decay:g}')
  if options.clip_norm:
    parts.append(f'clip at norm {options.clip_norm:g}')
  for pattern, learning_rate, weight_decay in options.groups:
    parts.append(
      f'{pattern!r} frozen'
      if not learning_rate
      else f'{pattern!r} x{learning_rate:g}, decay x{weight_decay:g}'
    )
  return ', '.join(parts)


def _add_decayed_weights(
  options: OptimizerOptions,
) -> 'optax.GradientTransformation':
  """Builds optax.add_decayed_weights with the factor of each group."""

  def decay(updates, params):
    if params is None:
      raise ValueError('weight decay needs params: call update(…, params)')

    def decay_leaf(path, update, param):
      # LARS decays only what it adapts: neither biases nor norms.
      if options.adaptation == 'lars' and not layer_adaptation.is_matrix_like(
        param
      ):
        return update
      coefficient = options.weight_decay * options.factors(path)[1]
      return update + coefficient * param if coefficient else update

    return tree_paths.map_with_paths(decay_leaf, updates, params)

  return optax.stateless(decay)


def _scale_by_rate(
  options: OptimizerOptions, num_steps: int, paths: list[str]
) -> 'optax.GradientTransformation':
  """Builds the multiplication by minus the learning rate.

  Raises:
    ValueError: no path matches `constant_rate`.
  """
  scale = optax.scale_by_learning_rate(
    learning_rate_schedule(options, num_steps)
  )
  pattern = options.constant_rate
  if not pattern:
    return scale
  if not any(re.search(pattern, path) for path in paths):
    field_checks.refuse('constant_rate', pattern, 'a pattern of parameters')
  return optax.partition(
    {'scheduled': scale, 'constant': optax.scale(-options.learning_rate)},
    lambda tree: tree_paths.map_with_paths(
      lambda path, _: 'constant' if re.search(pattern, path) else 'scheduled',
      tree,
    ),
  )


def _scale_by_group(
  options: OptimizerOptions,
) -> 'optax.GradientTransformation':
  return optax.stateless(
    lambda updates, _: tree_paths.map_with_paths(
      lambda path, update: options.factors(path)[0] * update, updates
    )
  )


def _check_groups(groups: tuple[ParamGroup, ...], paths: list[str]) -> None:
  """Raises ValueError for a group that has no effect."""
  used = {find_parameter_group(path, groups) for path in paths}
  for index, (pattern, *_) in enumerate(groups):
    if index in used:
      continue
    matches = [path for path in paths if re.search(pattern, path)]
    if matches:
      first = groups[find_parameter_group(matches[0], groups)][0]
      raise ValueError(
        f'groups[{index}]: expected a parameter that no earlier group matches, '
        f'got {pattern!r}, whose {matches[0]} is matched by {first!r} before: '
        'put it first'
      )
    examples = ', '.join(sorted(paths)[:: max(1, len(paths) // 5)][:5])
    raise ValueError(
      f'groups[{index}]: expected a pattern of parameters, got {pattern!r}, '
      f'which matches none of the {len(paths)} parameters, such as {examples}'
    )
