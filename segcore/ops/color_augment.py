"""Random color augmentation on the device, with a key for each example.

  keys = update.row_prng_keys(rng, len(images))
  options = ColorOptions(jitter=0.8, gray=0.2, blur=0.5)
  images = augment_colors(images, keys, options)

`sample_color_draws` draws the random values of an example, and
`apply_color_draws` computes its image from them. The key of an example is
derived from its index in the global batch, so that any number of devices
computes the same images.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Annotated, Literal, NamedTuple

import jax
import jax.numpy as jnp
from etils import epy
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from runtime.option_ranges import (
  CheckedOptions,
  NonNegative,
  Range,
  UnitInterval,
)
from segcore.types import ExampleKeys, Images, Scalar

with epy.lazy_imports():
  import dm_pix

# Indices of the operations in `ColorDraws.factors`.
BRIGHTNESS, CONTRAST, SATURATION, HUE = range(4)

Image = Float[Array, 'H W 3']

# A Gaussian is truncated at this many standard deviations.
_TRUNCATION = 4.0


@dataclasses.dataclass(frozen=True)
class ColorOptions(CheckedOptions):
  """Probabilities and strengths of color augmentation.

  Ranges are defined as in torchvision's ColorJitter and in SimCLR.

  Attributes:
    jitter: probability of changing brightness, contrast, saturation and hue.
    brightness: strength b; the factor of brightness is uniform in
      [max(0, 1 - b), 1 + b].
    contrast: strength of the factor of contrast, relative to the image's mean
      gray value.
    saturation: strength of the factor of saturation, relative to each pixel's
      gray value.
    hue: largest shift of the hue, as a part of the color circle; at most 0.5.
    gray: probability of converting to gray.
    blur: probability of a Gaussian blur.
    sigma: range of the standard deviation of the blur, in pixels.
    solarize: probability of inverting values above the threshold.
    threshold: threshold of solarization, in [0, 1].
  """

  jitter: UnitInterval = 0.0
  brightness: NonNegative[float] = 0.0
  contrast: NonNegative[float] = 0.0
  saturation: NonNegative[float] = 0.0
  hue: Annotated[float, Range(0, 0.5)] = 0.0
  gray: UnitInterval = 0.0
  blur: UnitInterval = 0.0
  sigma: tuple[float, float] = (0.1, 2.0)
  solarize: UnitInterval = 0.0
  threshold: UnitInterval = 0.5

  def __post_init__(self):
    super().__post_init__()
    if not 0 < self.sigma[0] <= self.sigma[1]:
      raise ValueError(f'sigma: expected 0 < low <= high, got {self.sigma}')

  @property
  def changes_images(self) -> bool:
    """Returns whether any operation has a probability above 0."""
    return any((self.jitter, self.gray, self.blur, self.solarize))


class ColorDraws(NamedTuple):
  """The random values of one example.

  Attributes:
    jitter: whether color is jittered.
    order: order of the changes of brightness (0), contrast (1), saturation (2)
      and hue (3).
    factors: factors of brightness, contrast and saturation, then the shift of
      the hue.
    gray: whether the image is converted to gray.
    blur: whether the image is blurred.
    sigma: standard deviation of the blur, in pixels.
    solarize: whether the image is solarized.
  """

  jitter: Bool[Array, '']
  order: Int[Array, '4']
  factors: Float[Array, '4']
  gray: Bool[Array, '']
  blur: Bool[Array, '']
  sigma: Scalar
  solarize: Bool[Array, '']


class Rules(NamedTuple):
  """The operations that differ between libraries; torchvision's by default.

  Attributes:
    change: function of (image, kind, factor) that changes brightness, contrast
      or saturation; None for `blend_color`.
    blur: function of (image, sigma, largest sigma); None for `gaussian_blur`.
  """

  change: Callable[..., Image] | None = None
  blur: Callable[..., Image] | None = None


TORCHVISION = Rules()


def sample_color_draws(rng: PRNGKeyArray, options: ColorOptions) -> ColorDraws:
  """Draws the random values of one example.

  Args:
    rng: key of the example.
    options: probabilities and ranges.
  """
  keys = jax.random.split(rng, 7)
  strength = jnp.array(
    [options.brightness, options.contrast, options.saturation, options.hue]
  )
  identity = jnp.array([1.0, 1.0, 1.0, 0.0])
  low = jnp.maximum(identity - strength, jnp.array([0.0, 0.0, 0.0, -0.5]))
  # A key for each kind of draw: none depends on whether others are used.
  uniforms = jax.random.uniform(keys[0], (4,))
  return ColorDraws(
    jitter=jax.random.bernoulli(keys[1], options.jitter),
    order=jax.random.permutation(keys[2], 4),
    factors=low + uniforms * (identity + strength - low),
    gray=jax.random.bernoulli(keys[3], options.gray),
    blur=jax.random.bernoulli(keys[4], options.blur),
    sigma=jax.random.uniform(
      keys[5], minval=options.sigma[0], maxval=options.sigma[1]
    ),
    solarize=jax.random.bernoulli(keys[6], options.solarize),
  )


def sample_batch_color_draws(
  keys: ExampleKeys, options: ColorOptions
) -> ColorDraws:
  """Draws the random values of each image of a batch, by its own key."""
  return jax.vmap(lambda key: sample_color_draws(key, options))(keys)


def apply_color_draws(
  image: Image,
  draws: ColorDraws,
  options: ColorOptions,
  valid: Bool[Array, 'H W'] | None = None,
  rules: Rules = TORCHVISION,
) -> Image:
  """Jitters, grays, blurs and solarizes an image in [-1, 1], in this order.

  An operation whose probability is 0 is not part of the program.

  Args:
    image: image in [-1, 1].
    draws: random values of the image.
    options: options with which they were drawn.
    valid: pixels of the image without its padding, of which the mean gray value
      for the contrast is; None for all. Only torchvision's rules read it.
    rules: operations of another library.
  """
  change = rules.change or functools.partial(blend_color, valid=valid)
  blur = rules.blur or gaussian_blur
  x = 0.5 * (image + 1.0)  # In [0, 1], where the operations are defined.
  if options.jitter:
    x = jnp.where(draws.jitter, jitter_color(x, draws, change), x)
  if options.gray:
    x = jnp.where(draws.gray, _to_gray(x), x)
  if options.blur:
    x = jnp.where(draws.blur, blur(x, draws.sigma, options.sigma[1]), x)
  if options.solarize:
    x = jnp.where(draws.solarize, dm_pix.solarize(x, options.threshold), x)
  return 2.0 * x - 1.0


def augment_colors(
  images: Images,
  keys: ExampleKeys,
  options: ColorOptions,
  valid: Bool[Array, 'B H W'] | None = None,
  rules: Rules = TORCHVISION,
) -> Images:
  """Augments each image of a batch in [-1, 1], with its own key.

  Args:
    images: images in [-1, 1].
    keys: key of each image.
    options: probabilities and ranges.
    valid: pixels that are no padding; None for all. Only torchvision's rules
      read it.
    rules: operations of another library.
  """

  def augment_one(image, key, valid):
    draws = sample_color_draws(key, options)
    return apply_color_draws(image, draws, options, valid, rules)

  return jax.vmap(augment_one)(images, keys, valid)


def blend_color(
  image: Image,
  kind: Int[Array, ''],
  factor: Scalar,
  valid: Bool[Array, 'H W'] | None = None,
) -> Image:
  """Changes brightness, contrast or saturation as torchvision does.

  Args:
    image: image in [0, 1].
    kind: `BRIGHTNESS`, `CONTRAST` or `SATURATION`.
    factor: weight of the image; what it is blended with has the rest.
    valid: pixels that are no padding; None for all.
  """
  return _blend(image, _blend_partner(image, kind, valid), factor)


def jitter_color(
  image: Image, draws: ColorDraws, change: Callable[..., Image] = blend_color
) -> Image:
  """Changes brightness, contrast, saturation and hue of an image in [0, 1].

  Each image of a batch has its own order of the four operations, so the program
  computes every operation at every place where it may stand, and selects. The
  hue costs far more than the others: it is computed once, and the three others
  before it and again after it.

  Args:
    image: image in [0, 1].
    draws: random values of the image, of which order and factors are used.
    change: function of (image, kind, factor) that changes brightness, contrast
      or saturation.
  """
  hue_place = jnp.argmax(draws.order == HUE)
  # The three other operations in their order; the sort must be stable.
  others = draws.order[jnp.argsort(draws.order == HUE, stable=True)][:3]

  def blend(image: Image, i: int, active: Bool[Array, '']) -> Image:
    kind = others[i]
    changed = change(image, kind, draws.factors[kind])
    # Without the barrier, XLA recomputes the whole chain of operations before
    # this one wherever one of its pixels is read.
    return jax.lax.optimization_barrier(jnp.where(active, changed, image))

  for i in range(3):
    image = blend(image, i, i < hue_place)
  image = jax.lax.optimization_barrier(_shift_hue(image, draws.factors[HUE]))
  for i in range(3):
    image = blend(image, i, i >= hue_place)
  return image


def gaussian_blur(image: Image, sigma: Scalar, max_sigma: float) -> Image:
  """Blurs an image, with its edge pixels repeated outside of it.

  Two matrix products, one an axis: a depthwise convolution has fewer operations
  but is slower, both on a TPU's matrix unit and on a CPU.

  Args:
    image: image with values of any range.
    sigma: standard deviation in pixels.
    max_sigma: the largest value of sigma, which sets the size of the kernel.
  """
  radius = int(_TRUNCATION * max_sigma + 0.5)
  offsets = jnp.arange(-radius, radius + 1)
  weights = jnp.exp(-0.5 * jnp.square(offsets / sigma))
  # The kernel's size is static; sigma, which is data, cuts it off.
  inside = jnp.abs(offsets) <= _TRUNCATION * sigma + 0.5
  weights = jnp.where(inside, weights, 0.0)
  rows, columns = (
    blur_matrix(weights, side, 'edge') for side in image.shape[:2]
  )
  return blur_axes(image, rows, columns)


def blur_axes(
  image: Image, rows: Float[Array, 'H H'], columns: Float[Array, 'W W']
) -> Image:
  """Blurs rows and columns by the matrices of `blur_matrix`."""
  return jnp.einsum('ij,jkc,lk->ilc', rows, image, columns)


def blur_matrix(
  weights: Float[Array, 'taps'],
  side: int,
  border: Literal['edge', 'reflect', 'zero'],
) -> Float[Array, 'side side']:
  """Returns the weight of each pixel (column) in each blurred pixel (row).

  Args:
    weights: weights of the kernel, an odd number; they are normalized here.
    side: number of pixels of the axis, above half of the taps for 'reflect'.
    border: what the kernel reads outside of the image: the edge pixel repeated,
      the image reflected at it, without repeating it, or zeros.
  """
  radius = len(weights) // 2
  offsets = jnp.arange(-radius, radius + 1)
  weights /= jnp.sum(weights)
  rows = jnp.arange(side)[:, None]
  columns = rows + offsets
  weights = weights[None]
  if border == 'zero':
    weights = jnp.where((columns >= 0) & (columns < side), weights, 0.0)
  if border in ('edge', 'zero'):
    columns = jnp.clip(columns, 0, side - 1)
  else:
    columns = side - 1 - jnp.abs(side - 1 - jnp.abs(columns))
  # Weights that read one pixel add up.
  matrix = jnp.zeros((side, side), weights.dtype)
  return matrix.at[rows, columns].add(weights)


def _to_gray(image: Image) -> Image:
  """Computes gray values by ITU-R 601, in all three channels."""
  return dm_pix.rgb_to_grayscale(image, keep_dims=True)


def _blend(image: Image, other: Image, factor: Scalar) -> Image:
  return jnp.clip(factor * image + (1.0 - factor) * other, 0.0, 1.0)


def _blend_partner(
  image: Image, kind: Int[Array, ''], valid: Bool[Array, 'H W'] | None
) -> Image:
  """Returns what an operation blends with: black, mean gray or gray."""
  gray = _to_gray(image)
  where = None if valid is None else valid[..., None]
  mean = jnp.where(kind == CONTRAST, jnp.mean(gray, where=where), 0.0)
  return jnp.where(kind == SATURATION, gray, mean)


def _shift_hue(image: Image, shift: Scalar) -> Image:
  """Shifts the hue of an image in [0, 1] by a part of the color circle."""
  red, green, blue = jnp.moveaxis(image, -1, 0)
  value = jnp.max(image, axis=-1)
  chroma = value - jnp.min(image, axis=-1)
  divisor = jnp.where(chroma > 0, chroma, 1.0)
  # The channels are compared with each other. Compared with their maximum, as
  # in `dm_pix.rgb_to_hsv`, none may equal it: where XLA computes a channel
  # twice, roundings differ, and the hue would be that of another color.
  hue = jnp.where(
    red >= jnp.maximum(green, blue),
    (green - blue) / divisor,
    jnp.where(
      green >= blue,
      (blue - red) / divisor + 2.0,
      (red - green) / divisor + 4.0,
    ),
  )
  saturation = chroma / jnp.where(value > 0, value, 1.0)
  # The hue is taken modulo 1 on the way back.
  hsv = jnp.stack([hue / 6.0 + shift, saturation, value], axis=-1)
  return jnp.clip(dm_pix.hsv_to_rgb(hsv), 0.0, 1.0)
