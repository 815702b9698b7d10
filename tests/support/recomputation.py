"""Checks that recomputing activations in the backward pass changes nothing."""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np


def assert_remat_keeps_results(
  build_loss: Callable[[bool], Callable[[Any], tuple]], params: Any
) -> None:
  """Asserts the same loss, outputs and gradients with and without remat.

  Args:
    build_loss: from whether activations are recomputed to the function from
      parameters to a loss and further outputs.
    params: parameters for the loss.
  """

  def run(remat):
    function = jax.value_and_grad(build_loss(remat), has_aux=True)
    traced = jax.jit(function).trace(params)
    compiled = traced.lower().compile()
    return 'remat' in str(traced.jaxpr), compiled(params)

  (plain_has_remat, plain), (has_remat, remat) = run(False), run(True)
  assert (plain_has_remat, has_remat) == (False, True)
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5),
    plain,
    remat,
  )
