"""Maps and variables for tests of decoders, with torch's names and axes."""

import jax
import numpy as np
from flax import traverse_util

from segcore.models import features

_LEAVES = {
  'kernel': 'weight',
  'bias': 'bias',
  'scale': 'weight',
  'mean': 'running_mean',
  'var': 'running_var',
}


def draw_variables(module, *args, seed=0):
  """Draws variables of a module, none of them 0 or 1 as initial ones are."""
  shapes = jax.eval_shape(lambda: module.init(jax.random.key(0), *args))
  rng = np.random.default_rng(seed)

  def draw(path, leaf):
    name, shape = path[-1].key, leaf.shape
    if name == 'kernel':
      value = rng.normal(size=shape) / np.sqrt(leaf.size / shape[-1])
    elif name in ('scale', 'var'):
      value = rng.uniform(0.5, 1.5, size=shape)
    else:
      value = 0.3 * rng.normal(size=shape)
    return np.asarray(value, leaf.dtype)

  return jax.tree_util.tree_map_with_path(draw, shapes)


def to_torch_state(variables):
  """Returns the variables under the names and with the axes of torch."""
  state = {}
  for tree in variables.values():
    for path, value in traverse_util.flatten_dict(tree).items():
      name = '.'.join((*path[:-1], _LEAVES[path[-1]]))
      state[name] = (
        np.transpose(value, (3, 2, 0, 1)) if value.ndim == 4 else value
      )
  return state


def to_nchw(x):
  """Returns a map [B, h, w, D] as [B, D, h, w] in float64."""
  return np.float64(x).transpose(0, 3, 1, 2)


def draw_maps(*shapes, batch=2, seed=0):
  """Draws feature maps of (stride, height, width, channels)."""
  rng = np.random.default_rng(seed)
  return features.Features(
    tuple(
      features.FeatureMap(
        f'map{i}',
        stride,
        jax.device_put(np.float32(rng.normal(size=(batch, *shape)))),
      )
      for i, (stride, *shape) in enumerate(shapes)
    )
  )


def assert_statistics(updated, layers, atol=2e-4):
  """Asserts updated running statistics equal to those of the layers."""
  statistics = to_torch_state({'batch_stats': updated})
  assert set(statistics) == set(layers.updated)
  for name, value in statistics.items():
    np.testing.assert_allclose(
      value, layers.updated[name], atol=atol, err_msg=name
    )
