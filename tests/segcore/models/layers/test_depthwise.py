"""The depthwise convolution: equal to XLA's, values and gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from segcore.models.layers import depthwise

# Size, kernel, strides, padding, dilation; odd sizes, and a stride beyond the
# kernel, which skips cells.
_CASES = (
  ((9, 8), (3, 3), (1, 1), 'SAME', (1, 1)),
  ((9, 8), (5, 3), (2, 2), 'SAME', (1, 1)),
  ((11, 10), (3, 3), (2, 3), ((2, 1), (0, 3)), (2, 1)),
  ((7, 6), (1, 1), (2, 2), 'SAME', (1, 1)),
  ((11, 21), (5, 5), (1, 1), 'SAME', (2, 2)),
)


def _by_xla(x, kernel, strides, padding, dilation):
  return jax.lax.conv_general_dilated(
    x,
    kernel,
    strides,
    padding,
    rhs_dilation=dilation,
    dimension_numbers=('NHWC', 'HWIO', 'NHWC'),
    feature_group_count=x.shape[-1],
  )


@pytest.mark.parametrize(
  ('size', 'kernel', 'strides', 'padding', 'dilation'), _CASES
)
def test_values_and_gradients_equal_those_of_xla(
  size, kernel, strides, padding, dilation
):
  rng = np.random.default_rng(0)
  x = np.float32(rng.uniform(-1, 1, (2, *size, 3)))
  taps = np.float32(rng.uniform(-1, 1, (*kernel, 1, 3)))
  geometry = (strides, padding, dilation)
  shape = jax.eval_shape(lambda *v: _by_xla(*v, *geometry), x, taps).shape
  gradient = np.float32(rng.uniform(-1, 1, shape))

  @jax.jit
  def run(x, taps, gradient):
    results = []
    for convolve in (depthwise.depthwise_conv, _by_xla):
      result, backward = jax.vjp(
        lambda *v, convolve=convolve: convolve(*v, *geometry), x, taps
      )
      results.append((result, *backward(gradient)))
    return results

  actual_values, expected = jax.device_get(run(x, taps, gradient))
  for actual, wanted in zip(actual_values, expected, strict=True):
    # Relative to the largest: sums of up to 500 products of both signs.
    scale = max(1.0, np.max(np.abs(wanted)))
    np.testing.assert_allclose(actual / scale, wanted / scale, atol=1e-6)


def test_half_precision_is_summed_in_float32():
  # 1 + 8·2⁻⁸: added one by one to 1 in bfloat16, each would be rounded away.
  x = jnp.full((1, 1, 9, 1), 2.0**-8, jnp.bfloat16).at[0, 0, 0].set(1.0)
  result = depthwise.depthwise_conv(
    x, jnp.ones((1, 9, 1, 1), jnp.bfloat16), padding=((0, 0), (0, 0))
  )
  assert result.dtype == jnp.bfloat16
  assert float(result[0, 0, 0, 0]) == 1.0 + 2.0**-5


def test_other_platforms_have_the_convolution_of_xla():
  def gradients(x, kernel):
    def loss(x, kernel):
      return jnp.sum(depthwise.depthwise_conv(x, kernel) ** 2)

    return jax.grad(loss, (0, 1))(x, kernel)

  shapes = (
    jax.ShapeDtypeStruct((1, 8, 8, 4), jnp.float32),
    jax.ShapeDtypeStruct((3, 3, 1, 4), jnp.float32),
  )
  traced = jax.jit(gradients).trace(*shapes)
  counts = {
    platform: traced.lower(lowering_platforms=(platform,))
    .as_text()
    .count('stablehlo.convolution')
    for platform in ('cpu', 'tpu', 'cuda')
  }
  # Forward, with respect to the map, and to the kernel.
  assert counts == {'cpu': 0, 'tpu': 3, 'cuda': 3}


def test_wrong_arguments_are_refused():
  x = jnp.zeros((1, 4, 4, 3))
  with pytest.raises(ValueError, match='expected .k_h, k_w, 1, 3. .* got'):
    depthwise.depthwise_conv(x, jnp.zeros((3, 3, 1, 4)))
  with pytest.raises(ValueError, match='padding: expected no negative'):
    depthwise.depthwise_conv(
      x, jnp.zeros((3, 3, 1, 3)), padding=((0, -1), (0, 0))
    )
