"""What all drawn data sets sample alike: seeds, and places of objects."""

from collections.abc import Callable, Iterable
from typing import TypeVar

import numpy as np
from jaxtyping import Bool

# Positions tried for an object before it is omitted.
MAX_TRIES = 20

T = TypeVar('T')


def seed_scene(
  config: str, split: str, index: int
) -> tuple[str, np.random.Generator]:
  """Returns the name of an image, and the random generator that it seeds.

  Args:
    config: name of the variant of the data set.
    split: name of the split.
    index: index of the image in the split.
  """
  name = f'{config}/{split}/{index:05}'
  return name, np.random.default_rng(list(name.encode()))


def place_visible_objects(
  samplers: Iterable[Callable[[], T]],
  draw_mask: Callable[[T], Bool[np.ndarray, 'H W']],
  visibility: Callable[[T, Bool[np.ndarray, 'H W']], float],
  min_visible: float,
) -> tuple[T, ...]:
  """Samples objects, from back to front, such that each remains visible.

  An object for which there is no room is omitted.

  Args:
    samplers: functions that sample an object at a place of its own; the next
      one is asked for once the one before has its place.
    draw_mask: function that returns the pixels of an object.
    visibility: function that computes the visible part of an object from the
      mask of its pixels that no other object covers.
    min_visible: least visible part of each object.
  """
  objects: list[T] = []
  visible: list[np.ndarray] = []
  for sample in samplers:
    for _ in range(MAX_TRIES):
      item = sample()
      mask = draw_mask(item)
      tried = [*objects, item]
      remaining = [*(other & ~mask for other in visible), mask]
      if min(map(visibility, tried, remaining)) >= min_visible:
        objects, visible = tried, remaining
        break
  return tuple(objects)
