"""Steps of DAFormer and of U2PL+ on it: options, teacher, on 8 devices."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from input_pipeline import batch as batch_lib
from tests.support import meshes
from tests.u2pl import inputs
from tests.u2pl.adapt import tiny
from tests.u2pl.semi.tiny import difference
from u2pl.adapt import options as options_lib
from u2pl.adapt import target_teacher

NO_DISTANCE = dataclasses.replace(tiny.DAFORMER, feature_distance=None)
FILTERED = dataclasses.replace(
  NO_DISTANCE,
  self_training=dataclasses.replace(
    tiny.SELF_TRAINING, filtered=True, weighting='both'
  ),
)


@pytest.mark.parametrize(
  ('options', 'terms', 'scalars'),
  [
    (tiny.SOURCE_ONLY, {'source'}, set()),
    (
      dataclasses.replace(tiny.DAFORMER, self_training=None),
      {'source', 'feature_distance'},
      set(),
    ),
    (FILTERED, {'source', 'mixed'}, {'reliable_share', 'entropy'}),
    (
      tiny.PLUS,
      {'source', 'mixed', 'feature_distance', 'contrast'},
      {'reliable_share', 'entropy', 'bank_fill/0', 'contrasted_share'},
    ),
    (
      dataclasses.replace(FILTERED, mixed_outputs='reuse', partition_epochs=5),
      {'source', 'mixed'},
      {'reliable_share', 'entropy'},
    ),
  ],
  ids=['source_only', 'distance_only', 'filtered', 'plus', 'reuse'],
)
def test_systems_are_options_of_the_method(options, terms, scalars):
  trained, batch = tiny.make_method(options, jnp.float32), tiny.draw_batch()
  if not options.self_training:
    del batch['target']
  state = jax.eval_shape(
    lambda rng: trained.init(rng, inputs.spec_of(batch), None),
    jax.random.PRNGKey(0),
  )
  assert (state.teacher_params is None) == (options.self_training is None)
  assert (state.frozen is None) == (options.feature_distance is None)
  assert (state.bank is None) == (options.contrast is None)
  assert (state.prototypes is None) == (not options.needs_representations)
  after, logged = jax.eval_shape(trained.train_step, state, batch)
  assert jax.tree.structure(after) == jax.tree.structure(state)
  found = {name for name in logged if name.startswith('loss')}
  assert found == {'loss', *(f'loss_{term}' for term in terms)}
  assert scalars <= {*logged}
  assert ('pseudo_label_accuracy' in logged) == bool(options.self_training)


def test_the_teacher_is_averaged_before_the_step():
  """A copy at step 0; then min(1 - 1/(i + 1), 0.999)."""
  trained = tiny.make_method(tiny.DAFORMER, jnp.float32)
  ema = trained.teacher.ema
  state = jax.eval_shape(
    lambda rng: trained.init(rng, inputs.spec_of(tiny.draw_batch()), None),
    jax.random.PRNGKey(0),
  )
  student, teacher = {'w': jnp.ones(2)}, {'w': jnp.full(2, 3.0)}
  for step, expected in ((0, 1), (1, 2), (3, 2.5), (5000, 2.998)):
    at = state.replace(
      step=jnp.int32(step), params=student, teacher_params=teacher
    )
    moved = ema.update(at, at).teacher_params['w']
    np.testing.assert_allclose(moved, expected, rtol=1e-6)


@pytest.mark.parametrize(
  ('epochs', 'step', 'share'), [(0, 22, 18 / 40), (5, 22, 0.6), (5, 39, 0.2)]
)
def test_unreliable_share_falls_by_steps_or_by_epochs(epochs, step, share):
  """Of 40 steps; 5 epochs are of 8 steps."""
  options = dataclasses.replace(tiny.PLUS, partition_epochs=epochs)
  teacher = tiny.make_method(options, jnp.float32).teacher
  progress = jax.jit(teacher.progress)(np.int32(step))
  np.testing.assert_allclose(1 - progress, share, rtol=1e-6)


def test_panels_show_the_labels_that_have_a_weight():
  trained = tiny.make_method(NO_DISTANCE, jnp.float32)
  state, batch = tiny.init_state(trained), tiny.draw_batch()

  @jax.jit
  def compute(state, batch):
    rng = jax.random.PRNGKey(0)
    keys = target_teacher.StepKeys(*jax.random.split(rng, 5))
    source = batch_lib.batch_images_to_symmetric(batch['source']['image'])
    _, targets = trained.teacher.teach(
      state, source, batch['source']['label'], batch['target'], keys
    )
    return targets, trained.panel_output(state, batch, rng)

  targets, panel = jax.device_get(compute(state, batch))
  learned = targets.weights > 0
  assert 0 < learned.mean() < 1
  np.testing.assert_array_equal(
    panel.labels, np.where(learned, targets.mixed.labels, batch_lib.IGNORE)
  )
  np.testing.assert_allclose(panel.images, targets.mixed.images, atol=1e-5)
  # Pseudo-labels are those of the pixels that no source image covers.
  own = ~targets.mixed.kept
  np.testing.assert_array_equal(
    panel.weak_labels[own], targets.mixed.labels[own]
  )
  assert np.all((panel.entropy > 0) & (panel.entropy < np.log(tiny.CLASSES)))


def test_contrast_without_mixed_images_is_refused():
  with pytest.raises(ValueError, match='contrast: expected None without self'):
    dataclasses.replace(tiny.PLUS, self_training=None)
  for fields, message in (
    ({'start_step': -1}, 'start_step: expected 0 or more'),
    ({'prototype_momentum': 1.0}, 'momentum < 1'),
    ({'partition_epochs': -1}, 'partition_epochs: expected 0 or more'),
    ({'mixed_outputs': 'reuse'}, "mixed_outputs='reuse': expected filtered"),
    ({'ignored_rows': True}, 'ignored_rows=True: expected contrast or'),
    ({'source_pixels': 'ignored'}, "='ignored': expected contrast or"),
  ):
    with pytest.raises(ValueError, match=message):
      options_lib.LearnOptions(**fields)


@pytest.fixture(scope='module')
def plus():
  """Returns U2PL+ and its first state, in float32, of a batch of 8."""
  trained, batch = (
    tiny.make_method(tiny.PLUS, jnp.float32),
    tiny.draw_batch(0, 8),
  )
  return trained, tiny.init_state(trained, batch=batch)


@pytest.mark.slow
def test_contrast_begins_at_its_step(plus):
  trained, state = plus
  step = jax.jit(trained.train_step)
  for i in range(4):
    state, scalars = step(state, tiny.draw_batch(i, 8))
    begun = i >= trained.options.start_step
    assert (scalars['loss_contrast'] > 0) == begun
    assert bool(state.bank.count.any()) == begun
    assert bool(state.prototypes.updates.any()) == begun
    # The frozen encoder is that of the start.
    assert difference(state.frozen, plus[1].frozen) == 0
  assert difference(state.params, state.teacher_params) > 0


@pytest.mark.slow
def test_without_mixing_labels_of_the_target_are_pseudo_labels():
  options = dataclasses.replace(
    NO_DISTANCE,
    self_training=dataclasses.replace(tiny.SELF_TRAINING, mixing='none'),
  )
  trained = tiny.make_method(options, jnp.float32)
  state, batch = tiny.init_state(trained), tiny.draw_batch()
  keys = jax.random.split(jax.random.PRNGKey(0), 5)
  _, targets = jax.jit(
    lambda state, source, target: trained.teacher.teach(
      state,
      source,
      jnp.zeros((2, tiny.SIZE, tiny.SIZE), jnp.int32),
      target,
      target_teacher.StepKeys(*keys),
    )
  )(state, jnp.zeros((2, tiny.SIZE, tiny.SIZE, 3)), batch['target'])
  assert not targets.mixed.kept.any()
  assert targets.mixed.trusted[:, 3:-7].all()
  np.testing.assert_allclose(
    np.unique(targets.weights), [0, targets.scalars['confident_share']]
  )


@pytest.mark.slow
@pytest.mark.parametrize('fsdp', [1, 4])
def test_eight_devices_are_one_in_float64(fsdp, monkeypatch):
  """Compares masks, weights, bank and prototypes, replicated or split."""
  with jax.enable_x64():
    trained, batch = tiny.make_method(tiny.PLUS), tiny.draw_batch(0, 8)
    state = inputs.to_float64(tiny.init_state(trained, 2, batch))
    batches = [batch, tiny.draw_batch(1, 8)]
    one, eight = meshes.one_and_eight(
      trained, state, batches, fsdp, monkeypatch
    )
  assert one[0].bank.count.sum() > 20
  meshes.assert_close(one, eight)


@pytest.mark.slow
def test_collectives_of_a_step(plus):
  trained, state = plus
  kinds = meshes.collectives_of_step(trained, state, tiny.draw_batch(0, 8))
  # Each image's count of each class, as in semi-supervised training.
  counts = 4 * 2 * 8 * tiny.CLASSES
  assert [c.size for c in kinds.pop('all-gather')] == [counts, counts]
  # All else is summed: gradients and batch statistics, then of the method …
  assert set(kinds) == {'all-reduce'}
  of_method = [c for c in kinds['all-reduce'] if 'Segmenter' not in c.source]
  # … the classes of the batch, which are mixed …
  classes = [c.size for c in of_method if c.source == 'reduce_or']
  assert classes == [tiny.CLASSES + 1]
  # … anchors, rows enqueued with class means, their cells, and the gradients;
  anchors = [c.size for c in of_method if c.source == 'jvp()/gather']
  assert anchors == [4 * tiny.CLASSES * 6 * 8]
  in_branch = sum(c.size for c in of_method if 'cond' in c.source)
  rows, means = 4 * tiny.CLASSES * 16 * 8, 4 * tiny.CLASSES * 8
  cells = 4 * tiny.CLASSES * (16 + 6)
  assert rows + means + cells <= in_branch < rows + means + cells + 200
  params = 4 * sum(x.size for x in jax.tree.leaves(state.params))
  # … and scalars and counts, of a few bytes each.
  rest = sum(c.size for c in of_method) - in_branch - classes[0] - anchors[0]
  assert rest < params + 200
