"""Boxes of CPS and UniMatch, and pasted partners, against the transcription."""

import jax
import numpy as np
import pytest

from segcore.models import features as features_lib
from tests.transcriptions import semi as reference
from u2pl import box_masks, mixing
from u2pl.semi import perturbations


def draw(*shape, seed=0):
  return np.random.default_rng(seed).random(shape)


@pytest.mark.parametrize('size', [(33, 33), (20, 31)])
def test_boxes_are_combined_by_exclusive_or(size):
  uniforms = draw(40, 3, 4)
  with jax.enable_x64():
    compute = jax.jit(box_masks.xor_box_masks, static_argnums=(1, 2))
    masks = np.asarray(compute(uniforms, *size))
  for actual, each in zip(masks, uniforms, strict=True):
    np.testing.assert_array_equal(actual, reference.xor_mask(each, *size))
  assert 0.1 < np.mean(masks) < 0.6


@pytest.mark.parametrize('size', [(32, 32), (20, 31)])
def test_the_first_box_inside_of_the_image_is_taken(size):
  share, attempts = draw(200), draw(200, 6, 3, seed=1)
  options = box_masks.BoxOptions()
  with jax.enable_x64():
    compute = jax.jit(box_masks.first_fitting_boxes, static_argnums=(2, 3, 4))
    boxes = np.asarray(compute(share, attempts, *size, options))
  fitting = 0
  for box, *draws in zip(boxes, share, attempts, strict=True):
    expected = reference.first_fitting_box(*draws, *size)
    fitting += expected is not None
    assert tuple(box) == (expected or (0, 0, 0, 0))
  assert 100 < fitting < 200


def test_a_share_of_the_images_has_a_box():
  keys = jax.random.split(jax.random.PRNGKey(0), 400)
  sample = jax.jit(box_masks.sample_box_masks, static_argnums=(1, 2, 3))
  masks = np.asarray(sample(keys, 16, 16, box_masks.BoxOptions()))
  assert 0.42 < masks.any((1, 2)).mean() < 0.58
  # Of uniform areas of 2 to 40 %, large boxes fit more rarely but are redrawn.
  shares = masks.mean((1, 2))[masks.any((1, 2))]
  assert 0.15 < shares.mean() < 0.25 and shares.max() < 0.41
  every = box_masks.BoxOptions(probability=1.0)
  assert np.asarray(sample(keys, 16, 16, every)).any((1, 2)).mean() > 0.99


@pytest.mark.parametrize('group', [1, 2, 4])
def test_partners_are_mirrored_in_their_group(group):
  own, others = draw(4, 5, 6, 3), draw(4, 5, 6, 3, seed=1)
  masks = draw(4, 5, 6, seed=2) < 0.5
  np.testing.assert_array_equal(
    jax.jit(mixing.paste_partners, static_argnums=3)(own, others, masks, group),
    reference.pasted(
      own.astype(np.float32), others.astype(np.float32), masks, group
    ),
  )


@pytest.mark.parametrize(
  ('fields', 'message'),
  [
    ({'areas': (0.4, 0.2)}, 'areas: expected 0 < low <= high <= 1'),
    ({'aspects': (0.0, 1.0)}, 'aspects: expected 0 < low <= high'),
    ({'probability': 2.0}, 'probability: expected 0 to 1, got 2'),
    ({'attempts': 0}, 'attempts: expected 1 or more, got 0'),
  ],
)
def test_boxes_that_cannot_be_are_refused(fields, message):
  with pytest.raises(ValueError, match=message):
    box_masks.BoxOptions(**fields)


def maps(count):
  return features_lib.Features(
    tuple(
      features_lib.FeatureMap(name, 4, draw(count, 2, 3, width, seed=width) + 1)
      for name, width in (('a', 8), ('b', 8), ('c', 16))
    )
  )


def test_each_map_of_a_copy_drops_channels_of_its_own():
  features = maps(4)
  changed = jax.jit(perturbations.with_dropped_channels, static_argnums=2)(
    features, jax.random.PRNGKey(0), 0.5
  )
  dropped = []
  for before, after in zip(features.maps, changed.maps, strict=True):
    x = np.asarray(after.array)
    np.testing.assert_allclose(x[::2], before.array, rtol=1e-6)
    ratio = x[1::2] / before.array
    # Whole channels are 0 or twice as large.
    assert (np.ptp(ratio, axis=(1, 2)) < 1e-6).all()
    assert set(np.round(np.unique(ratio), 5)) == {0.0, 2.0}
    dropped.append(ratio[:, 0, 0] < 1)
  assert (dropped[0] != dropped[1]).any()
  assert (dropped[0][0] != dropped[0][1]).any()


def test_two_views_have_complementary_channels():
  kept, whole = draw(6, 10) < 0.5, np.arange(6) < 3
  factors = jax.jit(perturbations.complementary_factors)(kept, whole)
  np.testing.assert_array_equal(factors, reference.complementary(kept, whole))
  features = maps(8)
  drop = jax.jit(perturbations.drop_complementary_channels, static_argnums=2)
  changed = drop(features, jax.random.PRNGKey(0), 2)
  factors = [
    np.asarray(after.array / before.array)[:, 0, 0]
    for before, after in zip(features.maps, changed.maps, strict=True)
  ]
  # Maps of one width, as those of a plain ViT, drop the same channels.
  np.testing.assert_allclose(factors[0], factors[1], rtol=1e-5)
  for each in factors:
    np.testing.assert_allclose(each[::2] + each[1::2], 2.0, rtol=1e-5)
    assert (np.abs(each[::2] - 1) < 1e-5).all(axis=1).sum() == 2
