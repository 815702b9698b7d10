"""Views that are computed again, and the geometry of shapes."""

import jax
import numpy as np
import pytest

from pass_luss.dense import views
from tests.transcriptions import luss_dense as reference


def make_box(scale, row, column, flip):
  fields = np.array([scale]), np.array([row]), np.array([column])
  return views.Box(*(x.astype(np.float32) for x in fields), np.array([flip]))


BOXES = [
  (0.5, 0.0, 1.0, False),
  (0.75, 0.4, 0.3, True),
  (1.0, 0.0, 0.0, True),
  (0.63, 0.91, 0.17, False),
]


@pytest.fixture(scope='module')
def crop():
  return jax.jit(views.crop_maps, static_argnums=2)


@pytest.mark.parametrize('box', BOXES)
def test_crops_of_images_and_of_features(crop, box):
  rng = np.random.default_rng(0)
  for whole, side in ((40, 20), (10, 10)):
    map_ = rng.normal(size=(whole, whole, 2)).astype(np.float32)
    actual = crop(map_[None], make_box(*box), side)
    expected = reference.crop(map_, *box, side)
    np.testing.assert_allclose(actual[0], expected, atol=1e-5)


@pytest.mark.parametrize('flip', [False, True])
def test_the_outline_of_a_square(crop, flip):
  """Half of the side from row 20 and column 40 of 80 on, as 40 pixels."""
  image = np.zeros((80, 80, 1), np.float32)
  image[26:46, 50:66] = 1
  view = crop(image[None], make_box(0.5, 0.5, 1.0, flip), 40)[0, ..., 0]
  rows, columns = np.nonzero(view)
  assert (rows.min(), rows.max()) == (6, 25)
  expected = (40 - 26, 39 - 10) if flip else (10, 25)
  assert (columns.min(), columns.max()) == expected
  assert view.sum() == 20 * 16


def test_features_follow_the_image(crop):
  """The map of cell means of a view, and the view of the map of cell means."""
  y, x = np.mgrid[:80, :80] / 80
  disc = (np.hypot(y - 0.5, x - 0.45) < 0.2).astype(np.float32)[..., None]
  box = make_box(0.8, 0.25, 0.5, True)

  def cells(image):
    return image.reshape(20, len(image) // 20, 20, -1).mean(axis=(1, 3))

  of_image = cells(np.asarray(crop(disc[None], box, 40))[0, ..., 0])
  of_map = crop(cells(disc)[None, ..., None], box, 20)[0, ..., 0]
  assert np.abs(of_image - of_map).max() < 0.35
  inside, other = of_image > 0.5, np.asarray(of_map) > 0.5
  assert (inside & other).sum() / (inside | other).sum() > 0.9
  assert inside.sum() == pytest.approx(np.pi * 0.2**2 / 0.8**2 * 400, rel=0.1)


@pytest.mark.parametrize('box', BOXES)
def test_the_inverse_places_a_view_where_its_box_is(crop, box):
  """Values of a ramp are those of their places, but for the box's edges."""
  y, x = np.mgrid[:40, :40].astype(np.float32)
  ramp = np.stack([y, x], axis=-1)
  placed, inside = jax.jit(views.uncrop_maps, static_argnums=2)(
    crop(ramp[None], make_box(*box), 80), make_box(*box), 40
  )
  length = int(box[0] * 40)
  assert inside[0].sum() == length**2
  rows, columns = np.nonzero(inside[0])
  assert rows.min() == round((40 - length) * box[1])
  assert columns.min() == round((40 - length) * box[2])
  np.testing.assert_array_equal(np.asarray(placed[0])[~inside[0]], 0)
  error = np.abs(placed[0] - ramp)[np.asarray(inside[0])]
  assert error.max() < 0.3
  interior = np.asarray(inside[0]).copy()
  interior[[rows.min(), rows.max()]] = False
  interior[:, [columns.min(), columns.max()]] = False
  np.testing.assert_allclose(placed[0][interior], ramp[interior], atol=1e-4)


@pytest.fixture(scope='module')
def drawn():
  draw = jax.jit(
    lambda key, indices: views.sample_view_draws(views.row_keys(key, indices))
  )
  return draw, jax.device_get(draw(jax.random.PRNGKey(0), np.arange(4000)))


def test_draws_follow_from_the_index(drawn):
  draw, whole = drawn
  indices = np.arange(4000)[::-1]
  again = jax.device_get(draw(jax.random.PRNGKey(0), indices.copy()))
  jax.tree.map(
    lambda a, b: np.testing.assert_array_equal(a, b[::-1]), again, whole
  )
  other = jax.device_get(draw(jax.random.PRNGKey(1), np.arange(4000)))
  assert (other.box.scale != whole.box.scale).mean() > 0.99


def test_ranges_and_probabilities(drawn):
  _, (first, second, box) = drawn
  for values, low, high in (
    (box.scale, 0.5, 1.0),
    (box.row, 0.0, 1.0),
    (box.column, 0.0, 1.0),
    (first.sigma, 0.0, 1.8),
  ):
    assert low <= values.min() < low + 0.01
    assert high - 0.01 < values.max() <= high
    assert np.mean(values) == pytest.approx((low + high) / 2, abs=0.03)
  for colors in (first, second):
    assert colors.jitter.all() and not colors.gray.any()
    assert not colors.solarize.any()
    np.testing.assert_array_equal(
      colors.order, np.tile(np.arange(4), (4000, 1))
    )
    assert colors.blur.mean() == pytest.approx(0.5, abs=0.03)
    for i, (identity, half) in enumerate(((1, 0.3),) * 3 + ((0, 0.1),)):
      values = colors.factors[:, i]
      changed = values != identity
      assert changed.mean() == pytest.approx(0.8, abs=0.03)
      assert np.abs(values - identity).max() == pytest.approx(half, abs=0.01)
  assert (first.factors != second.factors).any(axis=1).mean() > 0.99
  assert box.flip.mean() == pytest.approx(0.5, abs=0.03)
