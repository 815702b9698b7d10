"""What the student learns: confident pseudo-labels, in other colors."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from input_pipeline import batch as batch_lib
from segcore.distributed import sharding
from segcore.ops import color_augment
from segcore.train import update as update_lib
from tests.u2pl.semi import tiny
from u2pl import mixing, pseudo_labels
from u2pl.semi import options as options_lib

# About the median of the initial network.
LEAST = 0.24785
COLOR = color_augment.ColorOptions(
  jitter=0.8, brightness=0.5, contrast=0.5, saturation=0.5, hue=0.25, gray=0.2
)
RNG = jax.random.PRNGKey(4)


def method_of(**fields):
  consistency = options_lib.ConsistencyOptions(
    mixing=mixing.MixingOptions(group=2, probability=1.0), **fields
  )
  return tiny.make_method(
    dataclasses.replace(
      tiny.PLUS, contrast=None, consistency=consistency, warmup_epochs=0
    )
  )


@pytest.fixture(scope='module')
def step():
  """Returns a function that computes the targets of the student, and more.

  The second result is the teacher's output, the third its labels and logits of
  the weak view.
  """
  trained = method_of(confidence=LEAST, color=COLOR)

  def compute(state, batch):
    _, targets = trained.teach(state, batch, RNG)
    _, output = trained.teacher_output(state, batch, jax.random.split(RNG)[0])
    weak = batch_lib.batch_images_to_symmetric(batch['unlabeled']['image'])
    return targets, output, trained.pseudo_label(state, weak)

  return jax.jit(compute)


@pytest.fixture(scope='module')
def state():
  return tiny.init_state(method_of(), step=9)


@pytest.fixture(scope='module')
def computed(step, state):
  return jax.device_get(step(state, tiny.draw_batch()))


def test_colors_change_after_the_teacher_with_a_key_for_each_image(computed):
  targets, output, _ = computed
  keys = update_lib.row_prng_keys(jax.random.fold_in(RNG, 2), tiny.BATCH)
  expected = color_augment.augment_colors(
    jnp.asarray(output.images), keys, COLOR
  )
  np.testing.assert_allclose(targets.images, expected, atol=1e-5)
  assert np.abs(targets.images - output.images).max() > 0.1
  # The teacher's mixed images have the colors of the images themselves.
  image = tiny.draw_batch()['unlabeled']['image'] / 127.5 - 1
  partner = image.reshape(-1, 2, *image.shape[1:])[:, ::-1].reshape(image.shape)
  own, other = (
    np.abs(output.images - x).max(-1) < 1e-5 for x in (image, partner)
  )
  assert (own | other).all() and 0.3 < own.mean() < 0.7


def test_pixels_below_the_confidence_have_no_label(computed):
  targets, output, (labels, logits) = computed
  powers = np.exp(logits.astype(np.float64))
  probs = powers / powers.sum(-1, keepdims=True)
  confident = probs.max(-1) >= LEAST
  clear = np.abs(probs.max(-1) - LEAST) > 2e-6
  np.testing.assert_array_equal(labels, probs.argmax(-1))
  # A pixel of the mixed image has both of its own image, or both of the next.
  truth = tiny.draw_batch()['unlabeled']['label']
  image = tiny.draw_batch()['unlabeled']['image'] / 127.5 - 1
  own = np.abs(output.images - image).max(-1) < 1e-5

  def mixed(x):
    swapped = x.reshape(-1, 2, *x.shape[1:])[:, ::-1].reshape(x.shape)
    return np.where(own, x, swapped)

  labels, confident, truth, clear = map(
    mixed, (labels, confident, truth, clear)
  )
  np.testing.assert_array_equal(output.labels, labels)
  np.testing.assert_array_equal(
    targets.labels[clear], np.where(confident, labels, -1)[clear]
  )
  assert 0.1 < confident.mean() < 0.9
  np.testing.assert_array_equal(targets.kept, output.reliability.reliable)
  learned, scalars = targets.kept & (targets.labels >= 0), targets.scalars
  np.testing.assert_allclose(scalars['kept_share'], learned.mean(), rtol=1e-6)
  known = learned & (truth >= 0)
  np.testing.assert_allclose(
    scalars['kept_accuracy'], (labels == truth)[known].mean(), rtol=1e-6
  )


@pytest.mark.slow
def test_eight_devices_are_one(computed, step, state):
  mesh = sharding.make_mesh()
  eight, _, _ = step(
    jax.device_put(state, sharding.replicated_sharding(mesh)),
    jax.device_put(tiny.draw_batch(), sharding.batch_sharding(mesh)),
  )
  one, _, _ = computed
  assert (one.labels != eight.labels).mean() < 5e-3
  np.testing.assert_allclose(one.images, eight.images, atol=1e-4)
  np.testing.assert_allclose(
    one.scalars['kept_share'], eight.scalars['kept_share'], atol=5e-3
  )


def test_confidence_is_the_probability_of_the_label_itself():
  logits = jnp.log(jnp.array([[[[0.6, 0.4], [0.6, 0.4], [0.6, 0.4]]]]))
  labels = jnp.array([[[0, 1, -1]]])
  for least, expected in ((0.5, [1, 0, 0]), (0.3, [1, 1, 0])):
    confident = pseudo_labels.confident_pixels(logits, labels, least)
    assert confident.tolist() == [[[bool(x) for x in expected]]]
  with pytest.raises(ValueError, match=r'confidence: expected \[0, 1\), got 1'):
    options_lib.ConsistencyOptions(confidence=1.0)


def test_without_ground_truth_no_accuracy_is_logged():
  trained = method_of(confidence=LEAST)
  batch = tiny.draw_batch()
  del batch['unlabeled']['label']
  _, spec = jax.eval_shape(trained.teach, tiny.init_state(trained), batch, RNG)
  assert {*spec.scalars} == {'reliable_share', 'entropy', 'kept_share'}
