"""Votes of the views of images: their scores, upsampled and averaged.

votes = ViewVotes(method, num_classes, protocol, multiple=16)
total = votes.add(pending, None, padded_size)
labels = votes.map_votes([], total, padded_size, argmax)
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array

from segcore.eval import protocols, view_maps
from segcore.models.layers import resize
from segcore.train import method as method_lib


@dataclasses.dataclass(frozen=True, eq=False)
class ViewVotes:
  """Computes scores of views, and the votes of all views for each pixel.

  Scores of each view are upsampled (bilinear), averaged and compared in blocks
  of rows, so that the scores of all classes at all pixels need not fit in
  memory.

  Attributes:
    method: model whose `predict` returns scores at the network's output
      resolution.
    num_classes: number of classes C of the scores.
    protocol: the evaluation protocol.
    multiple: number of pixels that divides the sides of the network's input.
  """

  method: method_lib.ScoreModel
  num_classes: int
  protocol: protocols.ProtocolOptions
  multiple: int

  @functools.cached_property
  def scores(self):
    """Returns the compiled function (state, images) -> scores [B, h, w, C]."""
    return jax.jit(
      lambda state, images: self.method.predict(state, images).astype(
        jnp.float32
      )
    )

  @functools.cached_property
  def add(self):
    """Returns the compiled function that adds votes of views to their sum."""

    def add(pending, total, padded_size):
      return self.map_votes(pending, total, padded_size, lambda votes: votes)

    return jax.jit(add, static_argnums=2)

  def map_votes(
    self, pending, total, padded_size: tuple[int, int], function
  ) -> Array:
    """Applies a function to the votes of blocks of rows, [B, n, W, C] each.

    Args:
      pending: scores and view of each view that is not in the total.
      total: sum of votes [B, H, W, C], or None.
      padded_size: (H, W).
      function: function from votes [B, n, W, C] to [B, n, W, …].
    """
    batch = (pending[0][0] if pending else total).shape[0]
    row_arrays, vote_functions = [], []
    for scores, view in pending:
      # Scores at full resolution need no upsampling matrices.
      if view is None and scores.shape[1:3] == padded_size:
        row_arrays.append(scores)
        vote_functions.append(lambda rows: rows)
      else:
        rows, columns = view_maps.score_upsampling_matrices(
          scores, view, padded_size, self.protocol.align_corners
        )
        row_arrays.append(rows)
        vote_functions.append(functools.partial(self._vote, scores, columns))

    def apply_to_block(block):
      votes, blocks = block
      for vote, rows in zip(vote_functions, blocks, strict=True):
        votes = vote(rows) if votes is None else votes + vote(rows)
      return function(votes)

    return view_maps.map_pixel_row_blocks(
      apply_to_block,
      (total, row_arrays),
      (batch, *padded_size, self.num_classes),
    )

  @property
  def averages_logits(self) -> bool:
    """Returns whether logits are averaged, and not probabilities."""
    return self.protocol.average == 'logits' or self.protocol.is_single_view

  def _vote(self, scores, columns, rows):
    """Computes the weighted logits, or probabilities, of a view.

    Args:
      scores: [B, h, w, C].
      columns: [B, W, w], weights of the scores for each column of pixels.
      rows: [B, n, h], the same for a block of rows.

    Returns:
      [B, n, W, C], times the weight of the view at each pixel.
    """
    if self.averages_logits:
      return resize.resize_by_matrices(scores, rows, columns)
    # The maps include the weight of the view at each pixel. The softmax needs
    # plain logits, so weights are divided out before and multiplied in after.
    row_weights = jnp.sum(rows, axis=2)
    column_weights = jnp.sum(columns, axis=2)
    probs = jax.nn.softmax(
      resize.resize_by_matrices(
        scores,
        view_maps.normalize_view_rows(rows, row_weights),
        view_maps.normalize_view_rows(columns, column_weights),
      )
    )
    weights = row_weights[:, :, None] * column_weights[:, None, :]
    return weights[..., None] * probs
