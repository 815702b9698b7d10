"""Whole steps of UniMatch and UniMatch V2 against the transcription."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from segcore.ops import color_augment
from segcore.train import update as update_lib
from tests.transcriptions import semi as reference
from tests.transcriptions import u2pl as u2pl_reference
from tests.u2pl.semi import tiny
from u2pl import box_masks, ema_options
from u2pl.semi import (
  perturbations,
  strong_views,
  two_network_options,
  unimatch_options,
)

# About the median of the initial network.
LEAST = 0.245
# Without jitter, which takes long to compile and is tested on its own.
VIEWS = unimatch_options.ViewOptions(
  color_augment.ColorOptions(gray=0.5),
  box_masks.BoxOptions(probability=0.9),
  group=2,
)


def padded_batch():
  """Returns a batch of which some unlabeled pixels are ignored padding."""
  batch = tiny.draw_batch()
  valid = np.ones((tiny.BATCH, tiny.SIZE, tiny.SIZE), bool)
  valid[::2, :9] = False
  batch['unlabeled']['valid'] = valid
  return batch


@jax.jit
def draw_views(weak, rng):
  """Draws colors and masks by the same keys as the method."""
  views = []
  for key in jax.random.split(rng):
    color_rng, box_rng = jax.random.split(key)
    keys = update_lib.row_prng_keys(color_rng, tiny.BATCH)
    colored = color_augment.augment_colors(weak, keys, VIEWS.color)
    uniforms = box_masks.sample_box_uniforms(
      update_lib.row_prng_keys(box_rng, tiny.BATCH),
      (2 + 3 * VIEWS.boxes.attempts,),
    )
    views.append((colored, uniforms))
  return views


def numpy_views(weak, rng):
  """Returns the images of both views, and the masks of partners' pixels."""
  views = []
  for colored, uniforms in jax.device_get(draw_views(weak, rng)):
    masks = np.zeros((tiny.BATCH, tiny.SIZE, tiny.SIZE), bool)
    for mask, (chance, share, *rest) in zip(masks, uniforms, strict=True):
      if chance < 0.9:
        top, left, height, width = reference.first_fitting_box(
          share, np.reshape(rest, (-1, 3)), tiny.SIZE, tiny.SIZE
        )
        mask[top : top + height, left : left + width] = True
    views.append((reference.pasted(colored, colored, masks, 2), masks))
  assert np.abs(views[0][0] - views[1][0]).max() > 0.1
  return views


def labels_of(logits, valid):
  """Returns labels, confident pixels and known pixels."""
  probs = u2pl_reference.softmax(logits)
  return probs.argmax(-1), probs.max(-1) >= LEAST, valid


def view_losses(views, logits, own, partners):
  results = []
  for (_, masks), each in zip(views, logits, strict=True):
    labels, kept, known = (
      reference.pasted(x, y, masks, 2)
      for x, y in zip(own, partners, strict=True)
    )
    results.append(reference.masked_loss(each, labels, kept, known))
  return results


def predict(trained, variables, images):
  logits = jax.jit(
    lambda v, x: trained.segmenter.apply(v, x, heads=('logits',))['logits']
  )(variables, images)
  return u2pl_reference.bilinear(
    np.asarray(logits, np.float64), (tiny.SIZE, tiny.SIZE)
  )


def keys_and_images(state, batch):
  """Returns the keys of a step, and its images in [-1, 1]."""
  keys = jax.random.split(jax.random.fold_in(state.rng, state.step), 4)
  return keys, tiny.symmetric_images(batch)


def check(scalars, expected):
  for name, value in expected.items():
    np.testing.assert_allclose(scalars[name], value, rtol=2e-3, err_msg=name)


def test_a_whole_step_of_unimatch_equals_the_reference():
  trained = tiny.make_method(
    unimatch_options.UniMatchOptions(confidence=LEAST, views=VIEWS)
  )
  state, batch = tiny.draw_state(trained, step=3), padded_batch()
  # Only the scalars: the gradient is not compiled.
  scalars = jax.jit(lambda *x: trained.train_step(*x)[1])(state, batch)
  keys, (labeled, weak) = keys_and_images(state, batch)
  view_rng, drop_rng, weak_rng, strong_rng = keys
  valid = batch['unlabeled']['valid']
  variables = {'params': state.params, 'batch_stats': state.batch_stats}
  partners = labels_of(predict(trained, variables, weak), valid)
  views = numpy_views(weak, view_rng)
  # Rows: labeled and weak image by turns; each as it is, then with dropped
  # channels.
  joined = np.stack([labeled, weak], 1).reshape(-1, *weak.shape[1:])
  logits, stats = tiny.forward(
    *(trained, state.params, state.batch_stats, joined, weak_rng),
    lambda maps: perturbations.with_dropped_channels(maps, drop_rng, 0.5),
  )
  plain, dropped = logits[::2], logits[1::2]
  own = labels_of(plain[1::2], valid)
  both = np.stack([views[0][0], views[1][0]], 1).reshape(joined.shape)
  strong, _ = tiny.forward(trained, state.params, stats, both, strong_rng)
  supervised = u2pl_reference.cross_entropy(
    plain[::2], batch['labeled']['label'].astype(int)
  )
  strong = view_losses(views, (strong[::2], strong[1::2]), own, partners)
  feature = reference.masked_loss(dropped[1::2], *own)
  check(
    scalars,
    {
      'loss_supervised': supervised,
      'loss_strong': 0.25 * sum(strong),
      'loss_feature': 0.5 * feature,
      'loss': reference.unimatch_loss(supervised, strong, feature),
    },
  )
  kept = own[1] & valid
  assert 0.1 < kept.mean() < 0.9
  np.testing.assert_allclose(
    scalars['kept_share'], kept.sum() / valid.sum(), rtol=1e-3
  )
  truth = batch['unlabeled']['label']
  known = kept & (truth >= 0)
  np.testing.assert_allclose(
    scalars['kept_accuracy'], (own[0] == truth)[known].mean(), rtol=2e-3
  )


@pytest.mark.slow
def test_a_whole_step_of_unimatch_v2_equals_the_reference():
  trained = tiny.make_method(
    unimatch_options.UniMatchV2Options(confidence=LEAST, views=VIEWS)
  )
  state, batch = tiny.init_state(trained, step=3), padded_batch()
  # Another teacher than the student.
  other = tiny.init_state(trained, seed=1)
  state = state.replace(
    teacher_params=other.params, teacher_batch_stats=other.batch_stats
  )
  after, scalars = jax.jit(trained.train_step)(state, batch)
  keys, (labeled, weak) = keys_and_images(state, batch)
  view_rng, drop_rng, labeled_rng, strong_rng = keys
  valid = batch['unlabeled']['valid']
  variables = {'params': other.params, 'batch_stats': other.batch_stats}
  own = labels_of(predict(trained, variables, weak), valid)
  views = numpy_views(weak, view_rng)
  plain, stats = tiny.forward(
    trained, state.params, state.batch_stats, labeled, labeled_rng
  )
  both = np.stack([views[0][0], views[1][0]], 1).reshape(-1, *weak.shape[1:])
  strong, stats = tiny.forward(
    *(trained, state.params, stats, both, strong_rng),
    lambda maps: perturbations.drop_complementary_channels(
      maps, drop_rng, tiny.BATCH // 2
    ),
  )
  supervised = u2pl_reference.cross_entropy(
    plain, batch['labeled']['label'].astype(int)
  )
  strong = view_losses(views, (strong[::2], strong[1::2]), own, own)
  check(
    scalars,
    {
      'loss_supervised': supervised,
      'loss_strong': sum(strong) / 2,
      'loss': reference.unimatch_v2_loss(supervised, strong),
    },
  )
  assert tiny.difference(after.batch_stats, stats) < 1e-5
  # The teacher follows in parameters and buffers.
  decay = reference.ema_decay(3)
  for name in ('params', 'batch_stats'):
    expected = jax.tree.map(
      lambda t, s: decay * np.asarray(t) + (1 - decay) * np.asarray(s),
      getattr(other, name),
      getattr(after, name),
    )
    moved = getattr(after, f'teacher_{name}')
    assert tiny.difference(moved, expected) < 1e-5
  assert (
    tiny.difference(trained.reported(after)['params'], after.teacher_params)
    == 0
  )


@pytest.mark.parametrize(
  ('make', 'message'),
  [
    (
      lambda: unimatch_options.UniMatchOptions(confidence=1.0),
      r'expected \[0, 1\)',
    ),
    (
      lambda: unimatch_options.UniMatchOptions(weight=0.0),
      'weight: expected more',
    ),
    (
      lambda: unimatch_options.ViewOptions(group=0),
      'group: expected 1 or more',
    ),
    (
      lambda: unimatch_options.UniMatchV2Options(
        teacher=ema_options.EmaOptions(statistics='own')
      ),
      "teacher.statistics: expected 'ema' or 'copy'",
    ),
  ],
)
def test_options_that_do_not_fit_are_refused(make, message):
  with pytest.raises(ValueError, match=message):
    make()


def test_a_threshold_of_0_keeps_all_pixels():
  batch = tiny.draw_batch()
  logits = jnp.zeros((tiny.BATCH, 9, 9, tiny.CLASSES))
  labels = strong_views.confident_labels(logits, batch, 0.0)
  assert labels.confident.all() and labels.known.all()
  np.testing.assert_allclose(labels.loss(logits), np.log(5), rtol=1e-6)


@pytest.mark.parametrize(
  ('options', 'field'),
  [
    (unimatch_options.UniMatchOptions(), 'views.group'),
    (unimatch_options.UniMatchV2Options(), 'views.group'),
    (two_network_options.CpsOptions(cutmix=True), 'group'),
  ],
)
def test_a_batch_of_no_whole_groups_is_refused_by_the_field(options, field):
  with pytest.raises(ValueError, match=rf'^{field}: .* batch of 3, got 2$'):
    options.check_batch_size(3)
  options.check_batch_size(4)
