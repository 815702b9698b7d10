"""Steps of AFA and of U2PL+ on it: systems, on 8 devices, collectives."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.support import meshes
from tests.u2pl import inputs
from tests.u2pl.weak import tiny
from u2pl import ema
from u2pl.weak import cam_contrast
from u2pl.weak import options as options_lib

PLUS = dataclasses.replace(tiny.AFA, contrast=tiny.CONTRAST)
# What the paper leaves open, by the other of two readings.
READINGS = dataclasses.replace(
  tiny.AFA,
  contrast=dataclasses.replace(
    tiny.CONTRAST, maps='propagated', key_source='teacher', teacher_decay=0.9
  ),
)
REFINED = dataclasses.replace(tiny.AFA, affinity=None, energy=None)
CAM = options_lib.LearnOptions(segmentation=False, affinity=None)
MASKS = options_lib.LearnOptions(supervision='masks', affinity=None)


@pytest.mark.parametrize(
  ('options', 'terms', 'scalars'),
  [
    (CAM, {'class'}, set()),
    (MASKS, {'segmentation'}, set()),
    (REFINED, {'class', 'segmentation'}, {'labeled_share', 'cam_accuracy'}),
    (
      READINGS,
      {'class', 'segmentation', 'affinity', 'energy', 'contrast'},
      {'pseudo_label_accuracy', 'bank_fill/3', 'contrasted_share'},
    ),
  ],
  ids=['cam', 'masks', 'refined', 'readings'],
)
def test_systems_are_options_of_the_method(options, terms, scalars):
  trained, batch = tiny.make_method(options, jnp.float32), tiny.draw_batch()
  if options is CAM:
    del batch['label']
  state = jax.eval_shape(
    lambda rng: trained.init(rng, inputs.spec_of(batch), None),
    jax.random.PRNGKey(0),
  )
  assert {*state.params['heads']} == {*options.heads}
  assert (state.bank is None) == (options.contrast is None)
  assert (state.teacher_params is None) == (options is not READINGS)
  after, logged = jax.eval_shape(trained.train_step, state, batch)
  assert jax.tree.structure(after) == jax.tree.structure(state)
  losses = {name for name in logged if name.startswith('loss')}
  assert losses == {'loss', *(f'loss_{term}' for term in terms)}
  assert scalars <= {*logged}
  images = jnp.zeros((2, 32, 32, 3))
  scores = jax.eval_shape(trained.predict, state, images)
  assert scores.shape == (2, *((4, 4) if options is CAM else (8, 8)), 5)


def test_a_teacher_of_keys_starts_with_the_contrast():
  """Its decay is 1 before, and 0 in the first step: a copy."""
  teacher = cam_contrast.build_key_teacher(
    tiny.make_network(READINGS), READINGS
  )
  compute = jax.vmap(
    lambda step: ema.ema_decay_at_step(
      step - teacher.warmup_steps, teacher.options, teacher.steps_per_epoch
    )
  )
  decays = jax.jit(compute)(np.array([0, 2, 3, 4, 5, 90], np.int32))
  np.testing.assert_allclose(decays, [1, 1, 0, 1 / 2, 2 / 3, 0.9], rtol=1e-6)
  assert cam_contrast.build_key_teacher(teacher.segmenter, PLUS) is None


@pytest.fixture(scope='module')
def plus():
  """Returns U2PL+ and its first state, in float32, of a batch of 8."""
  trained, batch = tiny.make_method(PLUS, jnp.float32), tiny.draw_batch(0, 8)
  return trained, tiny.init_state(trained, batch=batch)


@pytest.mark.slow
def test_pixel_losses_begin_after_their_step(plus):
  """Until then the loss is that of the classes, and the bank is empty."""
  trained, state = plus
  step = jax.jit(trained.train_step)
  for i in range(5):
    state, scalars = step(state, tiny.draw_batch(i, 8))
    begun = i > trained.options.class_steps
    assert (scalars['loss'] != scalars['loss_class']) == begun
    assert (scalars['loss_contrast'] > 0) == begun
    assert bool(state.bank.count.any()) == begun
    assert bool(state.prototypes.updates.any()) == begun
  # Norms of the encoder are frozen.
  first, last = (x.params['encoder']['stage1'] for x in (plus[1], state))
  jax.tree.map(np.testing.assert_array_equal, first['norm'], last['norm'])
  assert np.any(first['patch_embed']['kernel'] != last['patch_embed']['kernel'])


@pytest.mark.slow
def test_eight_devices_are_one_in_float64(monkeypatch):
  """Compares losses, bank and prototypes; large arrays are split."""
  with jax.enable_x64():
    trained, batch = tiny.make_method(PLUS), tiny.draw_batch(0, 8)
    state = inputs.to_float64(tiny.init_state(trained, 4, batch))
    batches = [batch, tiny.draw_batch(1, 8)]
    one, eight = meshes.one_and_eight(trained, state, batches, 4, monkeypatch)
  assert one[0].bank.count.sum() > 20
  meshes.assert_close(one, eight)


@pytest.mark.slow
def test_collectives_of_a_step(plus):
  trained, state = plus
  kinds = meshes.collectives_of_step(trained, state, tiny.draw_batch(0, 8))
  # Each image's count of each class: anchors, and rows that are enqueued.
  counts = 4 * 8 * tiny.CLASSES
  assert [c.size for c in kinds.pop('all-gather')] == [counts, counts]
  # All else is summed: gradients and batch statistics, then of the method …
  assert set(kinds) == {'all-reduce'}
  of_method = [c for c in kinds['all-reduce'] if 'Segmenter' not in c.source]
  # … rows enqueued, anchors and prototypes; then scalars and counts.
  gathered = sum(c.size for c in of_method if 'gather' in c.source)
  assert gathered == 4 * tiny.CLASSES * (20 + 6 + 1) * 8
  params = 4 * sum(x.size for x in jax.tree.leaves(state.params))
  assert sum(c.size for c in of_method) - gathered < params + 1500
