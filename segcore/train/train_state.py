"""The state of a training, which a method may extend."""

from typing import Any

import flax.struct
import jax
import numpy as np
from jax.sharding import Mesh

from segcore import types
from segcore.distributed import sharding


@flax.struct.dataclass
class TrainState:
  """All that training changes; a method extends it by subclassing.

  A state is also a tree of shapes or of shardings, so its fields are of any
  type.

  Attributes:
    step: int32 [], number of finished steps.
    params: parameters by part: encoder, decoder, heads.
    batch_stats: running statistics of normalization; may be empty.
    opt_state: the optimizer's slots, for trained parameters only.
    rng: uint32 [2], base key; a step uses `fold_in(rng, step)` and never
      changes it.
  """

  step: Any
  params: Any
  batch_stats: Any
  opt_state: Any
  rng: Any


def variables(state: TrainState) -> dict[str, types.Params]:
  """What `Segmenter.apply` takes."""
  return {'params': state.params, 'batch_stats': state.batch_stats}


def inference_state(found: types.Params, mesh: Mesh) -> TrainState:
  """A state that only predicts, on every device of the mesh.

  Args:
    found: 'params' and 'batch_stats', as `pretrained.read` returns them.
    mesh: the devices.
  """
  state = TrainState(
    step=np.zeros((), np.int32),
    params=found['params'],
    batch_stats=found.get('batch_stats', {}),
    opt_state=(),
    rng=np.zeros(2, np.uint32),
  )
  return jax.device_put(state, sharding.replicated(mesh))
