"""Overlays keep the photograph and outline the regions."""

import numpy as np

from input_pipeline import overlays
from input_pipeline.sources import palettes

PALETTE = ((0, 0, 0), (250, 0, 0))


def test_regions_are_outlined_inside():
  label = np.zeros((30, 30), int)
  label[10:20, 10:20] = 1
  label[25:] = -1
  picture = np.full((30, 30, 3), 90, np.uint8)
  drawn = overlays.draw_outlines(picture, label, PALETTE)
  is_red = (drawn == PALETTE[1]).all(axis=-1)
  # The border of the square, one pixel wide.
  assert is_red.sum() == 36
  assert is_red[10, 10:20].all() and not is_red[11, 11]
  assert (drawn[9, 9:21] == PALETTE[0]).all()
  # Ignored pixels stay; their neighbors are a border.
  assert (drawn[25:] == 90).all()
  assert (drawn[24] == PALETTE[0]).all()


def test_the_photograph_stays_visible():
  rng = np.random.default_rng(0)
  image = rng.integers(0, 256, (40, 40, 3), np.uint8)
  label = np.zeros((40, 40), int)
  drawn = overlays.draw_outlined_overlay(image, label, ((0, 200, 0),))
  correlation = np.corrcoef(drawn[..., 0].ravel(), image[..., 0].ravel())
  assert correlation[0, 1] > 0.99


def test_colors_of_classes_differ():
  names = ['background', *(f'class {i}' for i in range(1, 30))]
  colors = palettes.class_palette(names)
  assert colors[0] == (0, 0, 0)
  lab = palettes._to_lab(np.array(colors, np.uint8))
  distances = np.linalg.norm(lab[:, None] - lab, axis=-1)
  assert distances[np.triu_indices(30, 1)].min() > 25
  # Of many classes all have a color.
  many = palettes.class_palette([str(i) for i in range(300)])
  assert len(many) == 300
