"""Overlaps of views against slow numpy transcriptions (spec §2.6, §2.10)."""

import jax
import numpy as np
import pytest

from pass_luss.pretrain import view_geometry
from tests.pass_luss.pretrain import arrays
from tests.transcriptions import pass_pixpro, pass_pretraining

pytestmark = pytest.mark.usefixtures('float64')
overlap_grids = jax.jit(view_geometry.view_overlap_grids, static_argnums=2)
sample = jax.jit(view_geometry.sample_view_maps)


def test_overlap_grids():
  boxes, flips = arrays.random_boxes(8)
  rows, columns, overlap = map(np.asarray, overlap_grids(boxes, flips, 7))
  assert not overlap[0]
  assert overlap.sum() >= 4
  for i, (box, flip) in enumerate(zip(boxes, flips, strict=True)):
    grids = pass_pretraining.overlap_grids(
      *map(arrays.reference_box, box), *flip, 7
    )
    for view in (0, 1):
      actual = np.stack(
        np.broadcast_arrays(columns[i, view][None], rows[i, view][:, None]), -1
      )
      arrays.assert_close(actual, grids[view])


def test_sampling():
  boxes, flips = arrays.random_boxes(5, seed=1)
  features = arrays.normal(5, 6, 4, 3)
  rows, columns, _ = map(np.asarray, overlap_grids(boxes, flips, 7))
  actual = np.asarray(sample(features, rows[:, 0], columns[:, 0]))
  for i, (box, flip) in enumerate(zip(boxes, flips, strict=True)):
    grid, _ = pass_pretraining.overlap_grids(
      *map(arrays.reference_box, box), *flip, 7
    )
    arrays.assert_close(
      actual[i], pass_pretraining.grid_sample(features[i], grid)
    )
  assert not actual[0].any()


def test_points_on_the_edge_are_half_padding():
  boxes = np.array([[[3.0, 4.0, 20.0, 20.0]] * 2])
  flips = np.zeros((1, 2), bool)
  rows, columns, _ = map(np.asarray, overlap_grids(boxes, flips, 7))
  actual = np.asarray(sample(np.ones((1, 7, 7, 1)), rows[:, 0], columns[:, 0]))
  expected = np.outer([0.5, 1, 1, 1, 1, 1, 0.5], [0.5, 1, 1, 1, 1, 1, 0.5])
  arrays.assert_close(actual[0, ..., 0], expected)


def test_nearby_cells():
  boxes, flips = arrays.random_boxes(6, seed=3)
  boxes = np.rint(boxes)
  sizes = np.array([[100, 80]] * 3 + [[95, 120]] * 3)
  nearby = jax.jit(view_geometry.nearby_view_cells, static_argnums=(3, 4))
  actual = np.asarray(nearby(boxes, flips, sizes, (5, 5), 0.7))
  for i, (box, flip) in enumerate(zip(boxes, flips, strict=True)):
    first, second = map(arrays.reference_box, box)
    expected = pass_pixpro.pixpro_masks(
      first, second, *flip, 5, tuple(sizes[i]), 0.7
    )
    np.testing.assert_array_equal(actual[i], expected)
  assert 20 < actual.sum() < 300
  assert not actual[0].any()
