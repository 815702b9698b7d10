"""Adaptation of gradients to the norms of their layers: LARC and LARS."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from etils import epy
from jaxtyping import Array

from segcore.train import tree_paths

with epy.lazy_imports():
  import optax


def scale_by_larc(
  trust_coefficient: float, eps: float, weight_decay: Callable[[str], float]
) -> 'optax.GradientTransformation':
  """Builds LARC: gradients with norms in proportion to those of parameters.

  g becomes trust·|w|·(g + λw) / (|g| + λ|w| + ε), where λ is the weight decay.
  If w or g is zero, g is unchanged and not decayed. Source: Apex's LARC without
  clipping, after You et al. 2017 (LARS), Eq. 6.

  Args:
    trust_coefficient: ratio of the norm of an adapted gradient to that of its
      parameter.
    eps: ε.
    weight_decay: function from the path of a parameter to its λ.
  """

  def adapt(updates, params):
    if params is None:
      raise ValueError('larc needs params: call update(…, params)')

    def adapt_leaf(path, update, param):
      decay = weight_decay(path)
      param_norm, grad_norm = optax.tree.norm(param), optax.tree.norm(update)
      ratio = (
        trust_coefficient * param_norm / (grad_norm + decay * param_norm + eps)
      )
      # Decay belongs inside of the norm, so it is not a step of its own: the
      # ratio bounds the whole update by the norm of the parameter.
      adapted = ratio * (update + decay * param)
      return jnp.where((param_norm > 0) & (grad_norm > 0), adapted, update)

    return tree_paths.map_with_paths(adapt_leaf, updates, params)

  return optax.stateless(adapt)


def scale_by_lars(
  trust_coefficient: float, eps: float
) -> 'optax.GradientTransformation':
  """Builds LARS: the decayed gradient g becomes trust·|w|·g / (|g| + ε).

  If w or g is zero, g is unchanged; so it is for parameters of fewer than two
  axes. Source: You et al. 2017, with the decay inside of the norm, as in the
  releases of PixPro (Xie et al. 2021; ε = 1e-8), SimCLR and BYOL (ε = 0).

  Args:
    trust_coefficient: ratio of the norm of an adapted gradient to that of its
      parameter.
    eps: ε.
  """
  return optax.masked(
    optax.scale_by_trust_ratio(trust_coefficient=trust_coefficient, eps=eps),
    lambda params: jax.tree.map(is_matrix_like, params),
  )


def is_matrix_like(param: Array) -> bool:
  """Returns whether a parameter has two axes or more: no bias or norm scale."""
  return param.ndim > 1
