"""The momentum encoder: an exponential moving average (EMA) of the encoder.

An objective asks for it (`Objective.needs_momentum`); the state holds its
parameters and its batch statistics. Before each forward pass, or after each
update of the encoder,

  θ_k ← m θ_k + (1 - m) θ_q

with θ_q the encoder's parameters and those of the heads that it shares.
"""

import dataclasses
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
from jaxtyping import Array

from segcore import types


@dataclasses.dataclass(frozen=True)
class MomentumSpec:
  """The momentum encoder that an objective asks for.

  Attributes:
    decay: function from the step and the number of steps to m.
    head_modules: names of the modules of each head that the momentum encoder
      has, too.
    after_update: whether the average takes up the parameters that a step has
      just updated (BYOL), not those before the step's forward pass (MoCo).
  """

  decay: Callable[[Array, int], types.Scalar | float]
  head_modules: Mapping[str, tuple[str, ...]]
  after_update: bool = False

  def select(self, tree: types.Params) -> types.Params:
    """Selects the encoder and the shared head modules.

    Args:
      tree: parameters or batch statistics of the whole network; a module
        without any is an empty dict.
    """
    # Predictors and transforms stay out: the asymmetry between the two networks
    # keeps their outputs from collapsing.
    heads = tree.get('heads', {})
    return {
      'encoder': tree.get('encoder', {}),
      'heads': {
        name: {
          module: heads.get(name, {}).get(module, {}) for module in modules
        }
        for name, modules in self.head_modules.items()
      },
    }

  def update(
    self,
    momentum_params: types.Params,
    params: types.Params,
    step: Array,
    num_steps: int,
  ) -> types.Params:
    """Moves the momentum parameters toward those of the network.

    Args:
      momentum_params: parameters θ_k of the momentum encoder.
      params: parameters of the whole network, of which θ_q is a part.
      step: number of finished steps.
      num_steps: length of the training.
    """
    # Parameters only. Batch statistics are the momentum encoder's own: those
    # of its averaged weights differ from an average of statistics.
    decay = self.decay(step, num_steps)
    return jax.tree.map(
      lambda average, online: decay * average + (1.0 - decay) * online,
      momentum_params,
      self.select(params),
    )


def constant_decay(step: Array, num_steps: int, decay: float) -> float:
  """Returns m = `decay`, whatever the step is."""
  del step, num_steps
  return decay


def momentum_encoder_decay(
  step: Array, num_steps: int, initial: float
) -> types.Scalar:
  """Computes m = 1 - (1 - initial) (cos(π k / K) + 1) / 2.

  It rises from `initial` at step k = 0 to 1 at step K.
  """
  share = (jnp.cos(jnp.pi * step / num_steps) + 1.0) / 2.0
  return 1.0 - (1.0 - initial) * share
