"""Whole steps of the objectives that PASS is compared with, on tiny networks.

One list: the same numbers on 1 and on 8 devices, with rings, negatives,
prototypes and the momentum encoder; what devices exchange; and a run that was
killed ends with the bits of an uninterrupted one.
"""

import dataclasses
import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pass_luss.pretrain.objectives import pcl
from segcore.cost import communication
from segcore.distributed import sharding
from segcore.train import checkpoint
from tests.pass_luss.pretrain import training
from tests.transcriptions import pass_pretraining, pass_updates

NUM_STEPS = 4
SIZE = 6  # of queries and keys


def initial_state(method, batch):
  """Returns the state before the first step, in float64, with prototypes."""
  state = jax.device_get(training.init_state(method, batch))
  if 'pcl' in (state.memory or {}):
    rng = np.random.default_rng(0)
    memory = state.memory['pcl']
    clusterings = tuple(
      pcl.Prototypes(
        pass_pretraining.normalize(rng.normal(size=each.centroids.shape)),
        rng.uniform(0.1, 0.3, len(each.densities)),
        rng.integers(0, len(each.densities), 40).astype(np.int32),
      )
      for each in memory.clusterings
    )
    memory = memory.replace(
      clusterings=clusterings, is_clustered=np.array(True)
    )
    state = state.replace(memory={'pcl': memory})
  return jax.tree.map(
    lambda x: x.astype(np.float64) if x.dtype == np.float32 else x, state
  )


class Steps:
  """The compiled step of a method on some devices.

  Attributes:
    compiled: the compiled step.
  """

  def __init__(self, method, state, batch, num_devices):
    self.mesh = sharding.make_mesh(devices=jax.devices()[:num_devices])
    self.whole = sharding.replicated_sharding(self.mesh)
    rows = sharding.batch_sharding(self.mesh)

    def shapes(tree, place):
      return jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(
          np.shape(x), np.asarray(x).dtype, sharding=place
        ),
        tree,
      )

    step = jax.jit(method.train_step, out_shardings=self.whole)
    self.compiled = step.lower(
      shapes(state, self.whole), shapes(batch, rows)
    ).compile()

  def run(self, state, batches):
    """Returns the state and the scalars after the batches."""
    put = sharding.make_batch_sharder(self.mesh)
    state, scalars = jax.device_put(state, self.whole), {}
    for batch in batches:
      state, scalars = self.compiled(state, put(batch))
    return jax.device_get((state, scalars))


# Values that devices gather in a step, at most: a batch of 8 images, embeddings
# of 6, maps of 4 cells. Negatives of AdCo are summed, not gathered.
ROWS = training.BATCH * SIZE
GATHERED = {
  'supervised': 0,
  'simclr': 4 * ROWS,  # both views, in the forward and the backward pass
  'moco': ROWS,
  'byol': 0,
  'simsiam': 0,
  'densecl': 2 * ROWS,  # keys of images and pooled keys of cells
  'pcl': 8 * ROWS,  # and the prototypes of the batch, of two clusterings
  # Keys in the loss and in the gradient of the negatives, for each query.
  'adco': 4 * ROWS,
  'adco_multi_crop': 8 * ROWS,
}
# Objective, its other fields and further views, by name.
VARIANTS = {
  **{name: (name, {}, ()) for name in training.COMPARED},
  'adco_multi_crop': ('adco', {'adco': training.MULTI_CROP}, (16, 12, 8)),
}


@pytest.mark.slow
@pytest.mark.parametrize('name', VARIANTS)
def test_devices_and_resumption(name, tmp_path):
  objective, fields, smaller = VARIANTS[name]
  with jax.enable_x64():
    method = training.make_tiny_method(objective, **fields)
    batches = [
      jax.device_get(training.make_batch(i, False, 16, smaller))
      for i in range(NUM_STEPS)
    ]
    state = initial_state(method, batches[0])
    one, eight = (Steps(method, state, batches[0], count) for count in (1, 8))
    expected = one.run(state, batches)
    jax.tree.map(
      lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-9),
      expected,
      eight.run(state, batches),
    )
    collectives = communication.list_collectives(eight.compiled)
    # Killed after step 2, the last that was saved.
    saved, _ = one.run(state, batches[:2])
    with checkpoint.Checkpoints(tmp_path) as checkpoints:
      checkpoints.save(2, jax.device_put(saved, one.whole))
      checkpoints.wait()
    shapes = jax.tree.map(
      lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=one.whole),
      saved,
    )
    with checkpoint.Checkpoints(tmp_path) as checkpoints:
      step, restored = checkpoints.restore(shapes)
    resumed = one.run(jax.device_get(restored), batches[step:])
  jax.tree.map(np.testing.assert_array_equal, resumed, expected)
  kinds = {c.kind for c in collectives}
  assert kinds <= {'all-reduce', 'all-gather', 'reduce-scatter'}
  gathered = sum(c.size for c in collectives if c.kind == 'all-gather')
  assert gathered <= 8 * GATHERED[name]
  assert int(expected[0].step) == NUM_STEPS
  assert all(math.isfinite(value) for value in expected[1].values())


def run_steps(method, count):
  """Returns the states before and after each step."""
  batches = [
    training.make_batch(i, small=False, large=16) for i in range(count)
  ]
  states = [training.init_state(method, batches[0])]
  step = jax.jit(method.train_step)
  for batch in batches:
    states.append(step(states[-1], batch)[0])
  return jax.device_get(states)


def kernel(params):
  return params['encoder']['conv']['kernel']


def test_moco_averages_before_the_step_and_writes_keys_in_turn():
  method = training.make_tiny_method('moco', jnp.float32)
  states = run_steps(method, 3)
  rings = [state.memory['moco'] for state in states]
  assert [int(ring.position) for ring in rings] == [0, 8, 0, 8]
  # The second batch leaves the first one's keys as they are.
  np.testing.assert_array_equal(rings[2].rows[:8], rings[1].rows[:8])
  np.testing.assert_array_equal(rings[1].rows[8:], rings[0].rows[8:])
  assert (rings[3].rows[:8] != rings[2].rows[:8]).any()
  for before, after in itertools.pairwise(states):
    np.testing.assert_allclose(
      kernel(after.momentum_params),
      pass_updates.ema(
        kernel(before.momentum_params), kernel(before.params), 0.9
      ),
      rtol=1e-5,
    )
  # Batch statistics of the momentum encoder are those of the second views.
  own, other = (
    stats['encoder']['bn']['mean']
    for stats in (states[1].momentum_batch_stats, states[1].batch_stats)
  )
  assert np.abs(own - other).max() > 1e-4


def test_byol_averages_after_the_step():
  states = run_steps(training.make_tiny_method('byol', jnp.float32), 2)
  for k, (before, after) in enumerate(itertools.pairwise(states)):
    np.testing.assert_allclose(
      kernel(after.momentum_params),
      pass_updates.ema(
        kernel(before.momentum_params),
        kernel(after.params),
        pass_updates.momentum(k, 20, 0.9),
      ),
      rtol=1e-5,
    )


def test_only_needed_views_are_encoded():
  views = {
    name: (method._views, method.objectives[0].views)
    for name, method in (
      (name, training.make_tiny_method(name)) for name in training.COMPARED
    )
  }
  assert {n for n, (v, _) in views.items() if v == (0,)} == {
    *('supervised', 'moco', 'densecl', 'pcl')
  }
  options = training.compared_options('moco', alignment=training.SWAV.alignment)
  method = training.make_method(options)
  assert method._views == (0, 1) and not method._encodes_by_view
  moco = next(o for o in method.objectives if o.name == 'moco')
  assert dataclasses.astuple(moco.options)[1:] == (0.2, 0.9, 16)
