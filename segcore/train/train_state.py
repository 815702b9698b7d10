"""The training state, which methods extend."""

from typing import Any, ClassVar

import flax.struct
import jax
import numpy as np
from jax.sharding import Mesh

from segcore import types
from segcore.distributed import sharding


@flax.struct.dataclass
class TrainState:
  """Everything that training changes; a method extends it by subclassing.

  Trees of shapes and of shardings have the same class, so fields are untyped.

  Attributes:
    step: int32 [], number of finished steps.
    params: parameters by part: encoder, decoder, heads.
    batch_stats: running statistics of batch normalization; may be empty.
    opt_state: state of the optimizer, for trained parameters only.
    rng: uint32 [2], base PRNG key; a step uses `fold_in(rng, step)` and never
      changes it.
    replicated_fields: names of the fields that every device has whole, however
      large they are, as hosts read them.
  """

  replicated_fields: ClassVar[frozenset[str]] = frozenset()

  step: Any
  params: Any
  batch_stats: Any
  opt_state: Any
  rng: Any


# The state after a step, and scalars to log.
StepResult = tuple[TrainState, types.Metrics]


def train_state_variables(state: TrainState) -> dict[str, types.Params]:
  """Returns parameters and batch statistics as `Segmenter.apply` takes them."""
  return {'params': state.params, 'batch_stats': state.batch_stats}


def init_compiler_options() -> dict[str, int] | None:
  """Returns the options with which a program that runs once is compiled."""
  # On a CPU, optimizing a program that runs once takes four times as long as
  # compiling and running it plainly: 22 s against 6 s for a small network.
  if jax.default_backend() == 'cpu':
    return {'xla_backend_optimization_level': 0}
  return None


def inference_train_state(variables: types.Params, mesh: Mesh) -> TrainState:
  """Builds a state for inference, replicated on the devices of a mesh.

  Args:
    variables: 'params', and 'batch_stats' if there are any, as read from a
      checkpoint.
    mesh: the devices.
  """
  state = TrainState(
    step=np.zeros((), np.int32),
    params=variables['params'],
    batch_stats=variables.get('batch_stats', {}),
    opt_state=(),
    rng=np.zeros(2, np.uint32),
  )
  return jax.device_put(state, sharding.replicated_sharding(mesh))
