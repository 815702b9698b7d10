"""The prototypes among the parameters: the K cluster centers of SwAV.

They are the parameter `heads/clusters/prototypes`, [D, K].
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from pass_luss.pretrain import embedding_ops
from segcore import types


def select_prototype_parameters(params: types.Params) -> Float[Array, 'D K']:
  """Returns the prototypes among all parameters."""
  return params['heads']['clusters']['prototypes']


def l2_normalize_prototypes(params: types.Params) -> types.Params:
  """L2-normalizes the prototypes among all parameters (spec §2.5)."""
  return _replace(
    lambda prototypes: embedding_ops.l2_normalize_embeddings(
      prototypes, axis=0
    ),
    params,
  )


def freeze_prototypes(frozen: Bool[Array, ''], new: Any, old: Any) -> Any:
  """Returns the new state, with the old prototypes while they are frozen.

  A gradient of 0 would not freeze them: weight decay would still move them and
  enter the momentum. So their optimizer state is taken from the old state, too.

  Args:
    frozen: whether prototypes and their optimizer state are taken from `old`.
    new: the state after an update.
    old: the state before that update.
  """

  def choose(path: tuple, after: Array, before: Array) -> Array:
    if 'prototypes' not in jax.tree_util.keystr(path):
      return after
    return jnp.where(frozen, before, after)

  return new.replace(
    **{
      name: jax.tree_util.tree_map_with_path(
        choose, getattr(new, name), getattr(old, name)
      )
      for name in ('params', 'opt_state')
    }
  )


def _replace(
  function: Callable[[Array], Array], params: types.Params
) -> types.Params:
  """Applies a function to the prototypes among all parameters."""
  clusters = params['heads']['clusters']
  changed = {**clusters, 'prototypes': function(clusters['prototypes'])}
  return {**params, 'heads': {**params['heads'], 'clusters': changed}}


def prototype_usage(targets: Float[Array, 'N K']) -> types.Scalar:
  """Computes how evenly prototypes are used: 1 all equally, 0 only one.

  That is the entropy of the mean target, divided by its maximum log K.
  """
  share = jnp.mean(targets, axis=0)
  share = share / jnp.maximum(jnp.sum(share), 1e-12)
  entropy = -jnp.sum(jax.scipy.special.xlogy(share, share))
  return entropy / jnp.log(targets.shape[1])
