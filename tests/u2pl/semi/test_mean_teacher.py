"""Steps of Mean Teacher and U2PL+: the warm-up, the teacher, on 8 devices."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from segcore.ops import photometric_distortion
from tests.support import meshes
from tests.u2pl.semi import tiny
from u2pl import contrast, ema_options, mixing
from u2pl.semi import options as options_lib

PLUS = tiny.PLUS


def test_warm_up_is_supervised_training(trained, warm):
  alone = tiny.make_method(
    dataclasses.replace(PLUS, consistency=None, contrast=None)
  )
  alone = dataclasses.replace(alone, segmenter=trained.segmenter)
  state = tiny.init_state(alone)
  step = jax.jit(alone.train_step)
  for i in range(4):
    state, scalars = step(state, tiny.draw_batch(i)['labeled'])
  after, logged = warm
  heads = after.params['heads']
  for part in ('encoder', 'decoder'):
    assert tiny.difference(after.params[part], state.params[part]) < 1e-4
  assert (
    tiny.difference(heads['logits'], state.params['heads']['logits']) < 1e-4
  )
  np.testing.assert_allclose(logged['loss'], scalars['loss'], rtol=1e-4)
  assert logged['loss_supervised'] == logged['loss']
  assert logged['loss_unsupervised'] == logged['loss_contrast'] == 0


def test_warm_up_leaves_the_bank_and_the_prototypes_empty(trained, warm):
  state, _ = warm
  assert not state.bank.count.any() and not state.bank.rows.any()
  assert not state.prototypes.updates.any()


def test_warm_up_updates_of_the_teacher_only_its_statistics(trained, warm):
  before, (after, _) = tiny.init_state(trained), warm
  assert tiny.difference(before.teacher_params, after.teacher_params) == 0
  moved = tiny.difference(before.teacher_batch_stats, after.teacher_batch_stats)
  assert moved > 0
  assert tiny.difference(before.params, after.params) > 0


def test_warm_up_ignores_unlabeled_images(trained, jitted):
  batch = tiny.draw_batch()
  other = {**batch, 'unlabeled': tiny.draw_batch(7)['unlabeled']}
  a, b = (jitted(tiny.init_state(trained), x) for x in (batch, other))
  assert tiny.difference(a, b) == 0


def test_the_student_is_evaluated_until_the_warm_up_is_over(trained, warm):
  state, _ = warm
  reported = trained.reported(state)
  assert tiny.difference(reported['params'], state.params) == 0
  later = state.replace(step=jnp.int32(5))
  reported = trained.reported(later)
  assert tiny.difference(reported['params'], state.teacher_params) == 0


def test_the_teacher_is_a_copy_for_an_epoch_and_then_an_average(
  trained, warm, jitted
):
  state, _ = warm
  state, _ = tiny.run_steps(trained, state, 4, first=4, jitted=jitted)
  assert tiny.difference(state.teacher_params, state.params) == 0
  before = state
  state, _ = tiny.run_steps(trained, state, 1, first=8, jitted=jitted)
  # k = 4 steps after the warm-up: 1 - 1/5.
  expected = jax.tree.map(
    lambda t, s: 0.8 * np.asarray(t) + 0.2 * np.asarray(s),
    before.teacher_params,
    state.params,
  )
  assert tiny.difference(state.teacher_params, expected) < 1e-6
  assert tiny.difference(state.teacher_params, state.params) > 0


def statistics_after_step(method, state):
  """Returns the statistics of teacher and student; no gradient is compiled."""

  @jax.jit
  def step(state, batch):
    after, _ = method.train_step(state, batch)
    return after.teacher_batch_stats, after.batch_stats

  return jax.device_get(step(state, tiny.draw_batch(3)))


def test_each_rule_for_the_statistics_of_the_teacher(warm, trained, jitted):
  assert trained.options.teacher.statistics == 'own'
  state = warm[0].replace(step=jnp.int32(9))
  for rule in ('own', 'ema', 'copy'):
    if rule == 'own':
      after, _ = jitted(state, tiny.draw_batch(3))
      teacher, student = after.teacher_batch_stats, after.batch_stats
    else:
      options = dataclasses.replace(
        PLUS, contrast=None, teacher=ema_options.EmaOptions(statistics=rule)
      )
      teacher, student = statistics_after_step(tiny.make_method(options), state)
    same = tiny.difference(teacher, student)
    if rule == 'copy':
      assert same == 0
    else:
      assert same > 0
    if rule == 'ema':
      k = 5
      expected = jax.tree.map(
        lambda t, s, k=k: (1 - 1 / (k + 1)) * t + s / (k + 1),
        jax.device_get(state.teacher_batch_stats),
        student,
      )
      assert tiny.difference(teacher, expected) < 1e-5


def test_a_strong_view_that_nothing_needs_is_not_read(trained):
  # With the student's statistics and no filter, one pass is enough: labels and
  # strong view are those of two passes, the entropy that of the weak view.
  state, batch = tiny.init_state(trained), tiny.draw_batch(3)
  outputs = {}
  for rule in ('own', 'ema'):
    method = tiny.make_method(
      options_lib.LearnOptions(
        consistency=dataclasses.replace(
          PLUS.consistency, denoise='off', filtered=False
        ),
        contrast=None,
        teacher=ema_options.EmaOptions(statistics=rule),
      )
    )
    assert method.options.reads_strong_view == (rule == 'own')
    _, outputs[rule] = jax.jit(method.teacher_output)(
      state, batch, jax.random.key(0)
    )
  own, averaged = outputs['own'], outputs['ema']
  assert averaged.outputs == {}
  assert 'logits' in own.outputs
  for name in ('images', 'labels', 'weak_labels', 'kept', 'num_pixels'):
    np.testing.assert_array_equal(getattr(own, name), getattr(averaged, name))
  # Mixing moves values only: each is an entropy of the weak view.
  assert tiny.difference(own.entropy, averaged.entropy) > 0
  assert np.all(np.asarray(averaged.entropy) <= np.log(tiny.CLASSES) + 1e-6)


def without_decay(weight):
  """Builds a method without weight decay, of a weight of the contrast."""
  options = dataclasses.replace(
    PLUS, contrast=dataclasses.replace(PLUS.contrast, weight=weight)
  )
  trained = tiny.make_method(options)
  optimizer = dataclasses.replace(trained.update.optimizer, weight_decay=0.0)
  update = dataclasses.replace(trained.update, optimizer=optimizer)
  return dataclasses.replace(trained, update=update)


@pytest.mark.slow
def test_only_the_contrastive_loss_trains_representations(late):
  methods = [without_decay(weight) for weight in (0.1, 0.0)]

  # Both in one program: what they have in common is compiled once.
  @jax.jit
  def step(state, batch):
    fresh = methods[0].init(jax.random.PRNGKey(0), tiny.batch_spec(), None)
    state = state.replace(opt_state=fresh.opt_state)
    # Of all updates, only that of this head is compiled.
    return [
      trained.train_step(state, batch)[0].params['heads']['rep']
      for trained in methods
    ]

  with_contrast, without = (
    tiny.difference(after, late.params['heads']['rep'])
    for after in step(late, tiny.draw_batch(11))
  )
  assert with_contrast > 1e-7
  assert without <= 1e-7


@pytest.mark.parametrize(
  ('options', 'names'),
  [
    (options_lib.LearnOptions(consistency=None, contrast=None), {'loss'}),
    (
      dataclasses.replace(
        PLUS,
        contrast=None,
        consistency=options_lib.ConsistencyOptions(
          filtered=False, mixing=mixing.MixingOptions('none', group=1)
        ),
      ),
      {'loss', 'loss_supervised', 'loss_unsupervised'},
    ),
    (
      dataclasses.replace(
        PLUS,
        contrast=None,
        consistency=dataclasses.replace(PLUS.consistency, denoise='l2'),
      ),
      {'loss', 'loss_supervised', 'loss_unsupervised'},
    ),
    (
      dataclasses.replace(
        PLUS, contrast=dataclasses.replace(PLUS.contrast, bank=False)
      ),
      {'loss', 'loss_supervised', 'loss_unsupervised', 'loss_contrast'},
    ),
  ],
  ids=['sup_only', 'mean_teacher', 'denoised', 'no_bank'],
)
def test_baselines_are_options_of_the_method(options, names):
  trained = tiny.make_method(options)
  batch = (
    tiny.draw_batch() if options.consistency else tiny.draw_batch()['labeled']
  )
  state = jax.eval_shape(
    lambda rng: trained.init(
      rng,
      jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), batch),
      None,
    ),
    jax.random.PRNGKey(0),
  )
  after, scalars = jax.eval_shape(trained.train_step, state, batch)
  assert {name for name in scalars if name.startswith('loss')} == names
  assert jax.tree.structure(after) == jax.tree.structure(state)


@pytest.mark.parametrize('fsdp', meshes.SPLIT)
def test_eight_devices_are_one_in_float64(warm, fsdp, monkeypatch):
  """Compares bank, prototypes, percentiles and draws, replicated or split."""
  with jax.enable_x64():
    trained = tiny.make_method(dtype=jnp.float64)
    whole = jax.tree.map(
      lambda x: x.astype(jnp.float64) if x.dtype == jnp.float32 else x, warm[0]
    )
    batches = [tiny.draw_batch(4), tiny.draw_batch(5)]
    one, eight = meshes.one_and_eight(
      *(trained, whole, batches, fsdp, monkeypatch)
    )
  assert one[0].bank.count.sum() > 20
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-6),
    one,
    eight,
  )


@pytest.fixture
def scopes_in_names():
  """Names operations of compiled programs by all scopes that they are in."""
  option = 'jax_include_full_tracebacks_in_locations'
  before = getattr(jax.config, option)
  jax.config.update(option, True)
  yield
  jax.config.update(option, before)


@pytest.mark.slow
@pytest.mark.usefixtures('scopes_in_names')
def test_collectives_of_a_step(trained, warm):
  kinds = meshes.collectives_of_step(trained, warm[0], tiny.draw_batch())
  # Each image's count of each class, to locate the n-th pixel of a class: for
  # the rows that are enqueued, and for the anchors.
  counts = 4 * 2 * tiny.BATCH * tiny.CLASSES
  assert [c.size for c in kinds.pop('all-gather')] == [counts, counts]
  # Images are mixed in pairs, and here each device has only one.
  permuted = sorted(c.size for c in kinds.pop('collective-permute'))
  assert permuted == [4 * tiny.SIZE**2, 4 * 3 * tiny.SIZE**2]
  # All else is summed: gradients and batch statistics, then of the method …
  assert set(kinds) == {'all-reduce'}
  of_method = [c for c in kinds['all-reduce'] if 'cond' in c.source]
  of_method = [c for c in of_method if 'Segmenter' not in c.source]
  # … the rows enqueued, class means, the cells of the draws …
  enqueued_rows = 4 * tiny.CLASSES * 16 * 8
  means, cells = 4 * tiny.CLASSES * 8, 4 * tiny.CLASSES * (16 + 6)
  # … and counts and scalars, of a few bytes each.
  total = sum(c.size for c in of_method)
  assert (
    enqueued_rows + means + cells <= total < enqueued_rows + means + cells + 400
  )
  # The anchors themselves, to every device.
  anchors = 4 * tiny.CLASSES * 6 * 8
  assert [
    c.size for c in kinds['all-reduce'] if c.source == 'jvp()/gather'
  ] == [anchors]


@pytest.mark.parametrize(
  ('fields', 'message'),
  [
    ({'low_rank': 20}, 'expected low_rank < high_rank'),
    ({'capacity': 40}, 'expected at least num_negatives = 50'),
    ({'capacity': 400}, 'expected at most the smallest capacity of 400'),
    ({'temperature': 0.0}, 'temperature'),
  ],
)
def test_options_of_a_loss_that_is_0_are_refused(fields, message):
  with pytest.raises(ValueError, match=message):
    contrast.ContrastOptions(**fields)


def test_distortion_is_of_training_on_labels_alone():
  distortion = photometric_distortion.DistortionOptions(probability=1.0)
  with pytest.raises(ValueError, match='distortion: expected None with cons'):
    dataclasses.replace(PLUS, distortion=distortion)
  trained = tiny.make_method(
    dataclasses.replace(
      PLUS, consistency=None, contrast=None, distortion=distortion
    )
  )
  batch = tiny.draw_batch()['labeled']
  spec = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), batch)

  @jax.jit
  def loss(batch, rng):
    state = trained.init(jax.random.PRNGKey(0), spec, None).replace(rng=rng)
    return trained.train_step(state, batch)[1]['loss']

  # Only the distortion depends on the key of the run: nothing is dropped.
  one, other = (float(loss(batch, jax.random.PRNGKey(i))) for i in (0, 1))
  assert abs(one - other) > 1e-4


def test_too_few_classes_for_the_ranks_are_refused():
  with pytest.raises(ValueError, match='less than the 3 classes'):
    contrast.ContrastOptions().check_classes(3)


@pytest.mark.slow
def test_a_bank_in_bfloat16_rounds_its_rows_and_nothing_else(
  trained, jitted, warm
):
  """Compares losses of the same draws, whose negatives are rounded."""
  half = dataclasses.replace(
    trained,
    options=dataclasses.replace(
      PLUS, contrast=dataclasses.replace(PLUS.contrast, dtype='bfloat16')
    ),
  )
  state, _ = warm
  results = []
  for each, step in ((trained, jitted), (half, jax.jit(half.train_step))):
    rows = state.bank.rows.astype(jnp.dtype(each.options.contrast.dtype))
    start = state.replace(bank=state.bank.replace(rows=rows))
    after, scalars = step(start, tiny.draw_batch(4))
    results.append((after.bank, float(scalars['loss_contrast'])))
  (bank, loss), (rounded, rounded_loss) = results
  assert rounded.rows.dtype == jnp.bfloat16
  np.testing.assert_array_equal(bank.count, rounded.count)
  np.testing.assert_array_equal(bank.rows.astype(jnp.bfloat16), rounded.rows)
  assert loss > 0
  np.testing.assert_allclose(rounded_loss, loss, rtol=2e-2)
