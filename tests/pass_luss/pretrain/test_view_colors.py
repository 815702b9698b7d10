"""Color augmentation of views."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from input_pipeline import batch as batch_lib
from pass_luss.pretrain import view_colors
from segcore.ops import color_augment

GRAY = color_augment.ColorOptions(gray=0.5)


def random_batch(rows=6):
  rng = np.random.default_rng(0)
  return {
    f'views_{group}': rng.integers(0, 256, (8, count, 4, 4, 3), np.uint8)[:rows]
    for group, count in (('large', 2), ('small', 3))
  }


def augment(batch, large=(GRAY, GRAY)):
  colors = view_colors.ViewColors(large=large, small=GRAY)
  augment_colors = jax.jit(view_colors.augment_view_colors, static_argnums=2)
  return augment_colors(batch, jax.random.PRNGKey(0), colors)


def gray_views(views):
  """Returns which views are gray, [B, V]."""
  return np.all(np.ptp(views, axis=-1) < 1e-4, axis=(2, 3))


def test_an_image_s_colors_do_not_depend_on_the_rest_of_the_batch():
  whole, part = augment(random_batch(6)), augment(random_batch(4))
  for group in ('large', 'small'):
    np.testing.assert_array_equal(whole[group][:4], part[group])


def test_each_view_has_draws_of_its_own():
  views = augment(random_batch(8))
  assert set(views) == {'large', 'small'}
  drawn = np.concatenate([gray_views(v) for v in views.values()], axis=1)
  assert 0 < drawn.sum() < drawn.size
  assert len({tuple(column) for column in drawn.T}) == 5


def test_views_of_other_sizes_have_the_draws_of_as_many_small_ones():
  batch = random_batch()
  small = batch.pop('views_small')
  for i in range(3):
    batch[f'views_smaller{i + 1}'] = small[:, i : i + 1]
  together = augment(random_batch())['small']
  apart = augment(batch)
  assert [*apart] == ['large', 'smaller1', 'smaller2', 'smaller3']
  for i in range(3):
    np.testing.assert_allclose(
      apart[f'smaller{i + 1}'][:, 0], together[:, i], atol=1e-6
    )


def test_views_with_equal_options_equal_those_augmented_one_by_one():
  """The threshold is not used, so both blocks augment alike."""
  batch = random_batch()
  other = color_augment.ColorOptions(gray=0.5, threshold=0.6)
  together, apart = augment(batch), augment(batch, (GRAY, other))
  np.testing.assert_allclose(
    together['large'][:, 0], apart['large'][:, 0], atol=1e-6
  )
  np.testing.assert_array_equal(
    gray_views(together['large']), gray_views(apart['large'])
  )


def test_without_augmentation_views_are_only_scaled():
  plain = color_augment.ColorOptions()
  batch = {'views_large': random_batch()['views_large']}
  views = augment(batch, (plain, plain))
  assert set(views) == {'large'}
  np.testing.assert_allclose(
    views['large'],
    jax.jit(batch_lib.batch_images_to_symmetric)(batch['views_large']),
    atol=1e-6,
  )


def test_red_is_divided_by_the_deviation_of_swav():
  """(x - 0.485) / 0.228, though the encoder divides by 0.229."""
  image = jnp.full((1, 1, 1, 3), 0.3)
  scaled = view_colors.rescale_red_of_views(image, 0.228)
  value = 0.5 * (0.3 + 1)
  np.testing.assert_allclose(
    (0.5 * (scaled[..., 0] + 1) - 0.485) / 0.229,
    (value - 0.485) / 0.228,
    rtol=1e-5,
  )
  np.testing.assert_array_equal(scaled[..., 1:], image[..., 1:])


@pytest.mark.parametrize(
  ('fields', 'message'),
  [
    ({'large': ()}, 'large: expected 2 blocks.*got 0'),
    (
      {'large': (GRAY, GRAY), 'red_deviation': 0.0},
      'red_deviation: expected more than 0, got 0.0',
    ),
  ],
)
def test_refusals(fields, message):
  with pytest.raises(ValueError, match=message):
    view_colors.ViewColors(**fields)
