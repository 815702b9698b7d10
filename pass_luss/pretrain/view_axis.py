"""Views of a batch as rows of one array, and back.

Rows stay on their device: the batch axis comes first in both layouts.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array


def merge_view_axis(views: Array) -> Array:
  """Reshapes [B, V, …] to [B·V, …]."""
  return views.reshape(-1, *views.shape[2:])


def split_view_axis(rows: Array, batch_size: int) -> Array:
  """Reshapes [B·V, …] to [B, V, …]: undoes `merge_view_axis`."""
  return rows.reshape(batch_size, -1, *rows.shape[1:])


def apply_to_all_views(function: Callable[[Array], Any], views: Array) -> Any:
  """Applies a function to the rows of all views at once.

  Args:
    function: function from rows [N, …] to a tree of arrays [N, …]; its batch
      statistics are those of all views together.
    views: array [B, V, …].

  Returns:
    The tree, of arrays [B·V, …].
  """
  return function(merge_view_axis(views))


def apply_to_each_view(function: Callable[[Array], Any], views: Array) -> Any:
  """Applies a function to one view after the other.

  Arguments and result are as in `apply_to_all_views`, but the function's batch
  statistics are of one view, and running ones are updated by each.
  """
  outputs = [function(views[:, i]) for i in range(views.shape[1])]
  return jax.tree.map(
    lambda *each: merge_view_axis(jnp.stack(each, axis=1)), *outputs
  )
