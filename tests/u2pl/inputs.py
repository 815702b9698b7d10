"""Random inputs, states, an optimizer; comparisons with the transcription."""

import jax
import jax.numpy as jnp
import numpy as np

from segcore.train import optimizers
from tests.transcriptions import u2pl as reference
from u2pl import contrast

CLASSES = 6
FEW_PAIRS = {'num_anchors': 6, 'num_negatives': 4}
# Few anchors and negatives, and a small bank.
CONTRAST = contrast.ContrastOptions(
  **FEW_PAIRS,
  low_rank=2,
  high_rank=5,
  anchor_threshold=0.1,
  capacity=40,
  first_capacity=60,
  max_push=16,
)


def draw(*shape, seed=0, scale=2.0):
  return np.random.default_rng(seed).normal(scale=scale, size=shape)


def draw_labels(*shape, seed=1, classes=CLASSES):
  """Draws labels of which some are ignored."""
  return np.random.default_rng(seed).integers(-1, classes, shape)


def draw_shaded_images(rng, coarse, num_shades, size):
  """Draws images of a color for each label, with noise.

  Args:
    rng: numpy generator.
    coarse: labels [B, n, n], which are enlarged.
    num_shades: number of colors.
    size: side of the images.

  Returns:
    Images, and their labels.
  """
  factor = -(-size // coarse.shape[1])
  label = coarse.repeat(factor, 1).repeat(factor, 2)[:, :size, :size]
  shades = rng.integers(40, 200, (num_shades, 3))[label]
  return shades + rng.integers(-30, 30, shades.shape), label


def spec_of(batch):
  return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), batch)


def init_state(trained, batch, step=0):
  init = jax.jit(lambda rng: trained.init(rng, spec_of(batch), None))
  state = init(jax.random.PRNGKey(0))
  return state.replace(step=jnp.int32(step))


def to_float64(tree):
  return jax.tree.map(
    lambda x: x.astype(np.float64) if x.dtype == np.float32 else x,
    jax.device_get(tree),
  )


def make_adamw(schedule, warmup_steps, groups):
  """Builds AdamW with a linear decay, as MiTs are trained with."""
  return optimizers.OptimizerOptions(
    learning_rate=1e-3,
    schedule=schedule,
    poly_power=1.0,
    warmup_steps=warmup_steps,
    warmup_start=1e-6,
    weight_decay=0.01,
    groups=groups,
  )


def assert_close(actual, expected, rtol=1e-6):
  np.testing.assert_allclose(
    np.asarray(actual), expected, rtol=rtol, atol=1e-12
  )


def assert_gradient(loss, reference_loss, x, rtol=1e-5):
  """Compares automatic differentiation with central differences."""
  actual = jax.jit(jax.grad(loss))(x)
  expected = reference.numeric_gradient(reference_loss, x)
  np.testing.assert_allclose(actual, expected, rtol=rtol, atol=1e-8)
