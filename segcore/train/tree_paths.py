"""Trees of parameters with the paths of their leaves, 'encoder/conv/kernel'."""

from collections.abc import Callable, Iterator
from typing import Any

import jax


def map_with_paths(function: Callable, tree: Any, *rest: Any) -> Any:
  """Maps a function of (path, *leaves) over trees; paths joined by '/'."""
  return jax.tree_util.tree_map_with_path(
    lambda path, *leaves: function(join_path(path), *leaves), tree, *rest
  )


def list_paths(tree: Any) -> Iterator[str]:
  """Yields the path of each leaf, in the order of the leaves."""
  for path, _ in jax.tree_util.tree_leaves_with_path(tree):
    yield join_path(path)


def join_path(path: tuple) -> str:
  """Joins the keys of a path by '/'."""
  return jax.tree_util.keystr(path, simple=True, separator='/')
