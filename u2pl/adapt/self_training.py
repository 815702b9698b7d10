"""Weights of the pixels in the loss of mixed source and target images.

  share = confident_share(scores, options.threshold)
  rows = trusted_rows(height, options.ignored_top, options.ignored_bottom)
  weights = mixed_pixel_weights(kept, rows, share)

Source: Hoyer et al. 2022 (DAFormer), Eqs. 3-5, after DACS.
"""

import dataclasses
from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from runtime.option_ranges import CheckedOptions, NonNegative, UnitInterval
from segcore.ops import kornia_color, losses
from segcore.types import PixelMask, Scalar
from u2pl import pseudo_labels


@dataclasses.dataclass(frozen=True)
class SelfTrainingOptions(CheckedOptions):
  """Options of the training on mixed images with pseudo-labels.

  Attributes:
    mixing: 'dacs', in which target images get the pixels of half of the classes
      of source images; or 'none', target images alone.
    threshold: τ, probability from which on the teacher is confident of a pixel.
    ignored_top: first rows of target images without weight, in pixels: there
      pseudo-labels suffer from the edge of the rectified image.
    ignored_bottom: last rows without weight: the hood of the car.
    colors: color jitter and blur of the mixed images.
    ema_decay: largest decay α of the EMA teacher.
    weighting: weight of target pixels: the 'share' q of confident pixels
      (DAFormer), the inverse of the share of reliable ones ('reliable', λ_u of
      U2PL's Eq. 14), or the product of 'both'.
    filtered: whether target pixels with an unreliable pseudo-label have no
      weight (U2PL's Eq. 12).
    forward: ξ₁ of U2PL+'s Eq. 16, weight of the cross entropy.
    reverse: ξ₂, weight of the reverse cross entropy; DAFormer has 0.
    denoise: prototypical denoising of the pseudo-labels (Eqs. 19-20): 'off', or
      with distances of 'raw' or of L2-normalized ('l2') representations.
  """

  mixing: Literal['dacs', 'none'] = 'dacs'
  threshold: UnitInterval = 0.968
  ignored_top: NonNegative[int] = 15
  ignored_bottom: NonNegative[int] = 120
  colors: kornia_color.KorniaOptions = kornia_color.KorniaOptions()
  ema_decay: float = 0.999
  weighting: Literal['share', 'reliable', 'both'] = 'share'
  filtered: bool = False
  forward: NonNegative[float] = 1.0
  reverse: NonNegative[float] = 0.0
  denoise: Literal['off', 'raw', 'l2'] = 'off'

  def __post_init__(self):
    super().__post_init__()
    if not 0 <= self.ema_decay < 1:
      raise ValueError(
        f'ema_decay: expected 0 <= decay < 1, got {self.ema_decay}'
      )
    if self.weighting != 'share' and not self.filtered:
      raise ValueError(
        f'weighting={self.weighting!r}: expected filtered=True, since it '
        'weights reliable pixels, got False'
      )


def confident_share(
  scores: Float[Array, 'B H W C'], threshold: float
) -> Scalar:
  """Computes q, the share of pixels whose class is probable enough (Eq. 4).

  It is one number for the batch: all pixels count, of whatever row.

  Args:
    scores: logits of the teacher.
    threshold: least probability of the most probable class.
  """
  probs = jnp.max(jax.nn.softmax(losses.at_least_float32(scores)), axis=-1)
  confident = jnp.sum(probs >= threshold, dtype=jnp.int32)
  return confident.astype(probs.dtype) / probs.size


def trusted_rows(
  height: int, ignored_top: int, ignored_bottom: int
) -> Bool[Array, 'H 1']:
  """Computes which rows of target images have weight."""
  rows = jnp.arange(height)[:, None]
  return (rows >= ignored_top) & (rows < height - ignored_bottom)


def mixed_pixel_weights(
  kept: PixelMask, trusted: Bool[Array, '#B H #W'], weight: Scalar
) -> Float[Array, 'B H W']:
  """Computes the weight of each pixel of mixed images.

  Args:
    kept: pixels of the source image, whose weight is 1.
    trusted: target pixels with weight.
    weight: weight of these.
  """
  return jnp.where(kept, 1.0, jnp.where(trusted, weight, 0.0))


def weights_by_reliability(
  kept: PixelMask,
  trusted: PixelMask,
  reliable: PixelMask,
  share: Scalar,
  options: SelfTrainingOptions,
) -> Float[Array, 'B H W']:
  """Computes the weight of each pixel of mixed images in U2PL+.

  Args:
    kept: pixels of the source image.
    trusted: target pixels in rows that have weight.
    reliable: those of them whose pseudo-label is reliable.
    share: share q of confident pixels.
    options: whether unreliable pixels have weight, and which one the others.
  """
  counted = reliable if options.filtered else trusted
  inverse_share = pseudo_labels.reliable_pixel_weight(counted, jnp.sum(trusted))
  weights = {
    'share': share,
    'reliable': inverse_share,
    'both': share * inverse_share,
  }
  return mixed_pixel_weights(kept, counted, weights[options.weighting])
