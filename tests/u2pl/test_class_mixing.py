"""Boxes of components, and which images show a class, against numpy."""

import jax
import numpy as np

from tests.transcriptions import ael as reference
from u2pl import class_mixing

S, C = 33, 5


@jax.jit
def compute_mixing(of_class, box_uniforms, labels, shown, index):
  masks, exist = class_mixing.class_box_masks(of_class, box_uniforms, 0.01)
  present = class_mixing.predicted_classes(labels, C, 0.1)
  return masks, exist, class_mixing.update_shown_classes(shown, index, present)


def draw_masks():
  """Draws masks: spirals, specks, large components, none, and all."""
  rng = np.random.default_rng(1)
  masks = rng.random((8, S, S)) < np.linspace(0.2, 0.65, 8)[:, None, None]
  # A spiral of one pixel's width, the longest path of its kind.
  masks[0] = False
  y, x, dy, dx = 16, 16, 0, 1
  for length in range(2, 30, 2):
    for _ in range(2):
      for _ in range(length):
        if 0 <= y < S and 0 <= x < S:
          masks[0, y, x] = True
        y, x = y + dy, x + dx
      dy, dx = dx, -dy
  masks[1] = False
  masks[1, 2:6, 3:9] = masks[1, 20:33, 30:33] = masks[1, 32, 0] = True
  masks[1, 6, 9] = True  # Joined at a corner.
  masks[2], masks[3] = False, True
  return masks


def test_boxes_and_shown_classes_equal_the_reference():
  masks = draw_masks()
  rng = np.random.default_rng(2)
  labels = rng.integers(-1, C, (8, 4, 4)).repeat(8, 1).repeat(8, 2)
  shown = rng.random((C, 9)) < 0.5
  index = np.array([4, 1, 7, 1, 0, 8, 3, 1])
  kinds = set()
  for draw in range(3):
    uniforms = rng.random((8, 4)).astype(np.float32)
    actual, exist, after = jax.device_get(
      compute_mixing(masks, uniforms, labels, shown, index)
    )
    for i, mask in enumerate(masks):
      box, of_component = reference.class_box(mask, uniforms[i], 0.01)
      expected = reference.with_box(
        np.zeros((S, S), bool), np.ones((S, S), bool), box
      )
      np.testing.assert_array_equal(actual[i], expected, f'{draw}, {i}')
      assert exist[i] == of_component
      kinds.add((i, box if of_component else None))
    np.testing.assert_array_equal(
      after, reference.shown_after(shown, index, labels, 0.1)
    )
  # One component, either of two, and a random box.
  assert len({box for i, box in kinds if i == 0}) == 1
  assert {box for i, box in kinds if i == 1} <= {(2, 3, 5, 7), (20, 30, 13, 3)}
  assert (2, None) in kinds
