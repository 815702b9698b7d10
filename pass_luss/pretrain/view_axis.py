"""Views of a batch as rows of one array, and back.

Rows stay on their device: the batch axis comes first in both layouts.
"""

from jaxtyping import Array


def merge_view_axis(views: Array) -> Array:
  """Reshapes [B, V, …] to [B·V, …]."""
  return views.reshape(-1, *views.shape[2:])


def split_view_axis(rows: Array, batch_size: int) -> Array:
  """Reshapes [B·V, …] to [B, V, …]: undoes `merge_view_axis`."""
  return rows.reshape(batch_size, -1, *rows.shape[1:])
