"""Evaluation protocols: flip averaging, multiple scales, windows, halves.

  protocol = ProtocolOptions(flip=True, scales=(0.75, 1.0, 1.25)).build(16)
  views = protocol((375, 500))       # six views of an image of this size

A protocol maps the size of an image to views (see `protocol_views`).
"""

import dataclasses
import math
from typing import Literal

import numpy as np

from input_pipeline import resampling
from segcore.eval import protocol_views
from segcore.ops import dense_crf


@dataclasses.dataclass(frozen=True)
class ProtocolOptions:
  """The evaluation protocol of a benchmark.

  Attributes:
    tiling: parts of an image that the network is applied to: 'whole', 'halves'
      (left and right), 'sliding_window'.
    window: height and width of windows, in pixels.
    stride: distance of windows, (down, right), in pixels.
    padding_mode: padding of an image that is smaller than the window:
      'reflection' at the bottom and right, or 'mean', the mean color on all
      sides.
    short_side: length to which the shorter side of every image is resized
      first, antialiased, in pixels; 0 keeps the size of the image.
    fit_sides: long and short side in pixels that every image is resized to fit
      first, keeping its aspect ratio, without antialiasing (spec U2PL for
      domain adaptation §2.7); (0, 0) keeps the size of the image. Scores are
      enlarged to that size, then to the image's.
    long_side: length to which the longer side of every image is resized first,
      without antialiasing, in pixels; the other side is rounded down. 0 keeps
      the size of the image. Scores are enlarged as with `fit_sides`.
    side_multiple: number of pixels to whose nearest multiples both sides of
      every image are resized first, without antialiasing, as UniMatch V2 does
      for patches of 14 pixels; with `align_corners` by corners, there and back.
      0 keeps the size of the image. Scores are enlarged as with `fit_sides`.
    scales: factors by which the image is resized; their scores are averaged.
    flip: whether to average with the horizontally flipped image.
    scale_merge: 'mean' of the scales at the size of the image; or 'max', the
      maximum of their logits at the cells of the first scale, as in AFA. Scaled
      sides are then rounded down.
    average: quantity averaged over views before the argmax: 'logits', or
      'probs' (softmax of each view at the size of the image).
    antialias: whether to blur images before shrinking them.
    align_corners: whether a network's scores are enlarged to the size of its
      input with corners on corners; else with half-pixel centers.
    size_multiple: images that are not resized before all else are padded to
      multiples of this, and one program is compiled for each padded size and
      size of input; 0: the network's stride. A single view of the whole image
      applies the network to the padded image, padded by reflection.
    crf: whether a dense conditional random field refines the probabilities, by
      the package pydensecrf2 (see docs/evaluation.md).
    crf_options: kernels and iterations of it.
  """

  tiling: Literal['whole', 'halves', 'sliding_window'] = 'whole'
  window: tuple[int, int] = (0, 0)
  stride: tuple[int, int] = (0, 0)
  padding_mode: Literal['reflection', 'mean'] = 'reflection'
  short_side: int = 0
  fit_sides: tuple[int, int] = (0, 0)
  scales: tuple[float, ...] = (1.0,)
  flip: bool = False
  average: Literal['logits', 'probs'] = 'logits'
  antialias: bool = False
  align_corners: bool = False
  size_multiple: int = 0
  long_side: int = 0
  side_multiple: int = 0
  scale_merge: Literal['mean', 'max'] = 'mean'
  crf: bool = False
  crf_options: dense_crf.CrfOptions = dense_crf.CrfOptions()

  def __post_init__(self):
    if (self.tiling == 'sliding_window') != any((*self.window, *self.stride)):
      raise ValueError(
        "window, stride: expected both with tiling='sliding_window', and none "
        f'otherwise, got window={self.window}, stride={self.stride} with '
        f'tiling={self.tiling!r}'
      )
    if self.padding_mode == 'mean' and self.tiling != 'sliding_window':
      raise ValueError(
        "padding_mode='mean': expected tiling='sliding_window', got "
        f'{self.tiling!r}'
      )
    for name in (
      *('short_side', 'long_side', 'side_multiple', 'size_multiple'),
    ):
      if getattr(self, name) < 0:
        raise ValueError(f'{name}: expected >= 0, got {getattr(self, name)}')
    resampling.check_fit_sides(self.fit_sides)
    resizing = {
      name: getattr(self, name)
      for name in ('short_side', 'long_side', 'fit_sides', 'side_multiple')
      if np.any(getattr(self, name))
    }
    if len(resizing) > 1:
      given = ' and '.join(
        f'{name}={value}' for name, value in resizing.items()
      )
      raise ValueError(f'{given} contradict each other: set one of them')
    if self.scale_merge == 'max' and (
      self.tiling != 'whole' or self.average != 'logits'
    ):
      raise ValueError(
        "scale_merge='max': expected tiling='whole' and average='logits', got "
        f'{self.tiling!r} and {self.average!r}'
      )
    self.build(1)

  def single_view(self) -> 'ProtocolOptions':
    """Returns the protocol of one view, for evaluations during training.

    Of several scales the one nearest to 1 is kept. Windows are kept with
    padding_mode='mean', since the network was trained on such padding.
    """
    nearest = min(self.scales, key=lambda scale: abs(math.log(scale)))
    single = dataclasses.replace(
      self,
      scales=(nearest,),
      flip=False,
      average='logits',
      scale_merge='mean',
      crf=False,
    )
    if self.padding_mode == 'mean':
      return single
    return dataclasses.replace(
      single, tiling='whole', window=(0, 0), stride=(0, 0)
    )

  @property
  def is_single_view(self) -> bool:
    """Returns whether there is one view: the whole image at its own scale."""
    return self.is_whole_image and not self.resizes_images

  @property
  def resizes_images(self) -> bool:
    """Returns whether images are resized before all else."""
    lengths = self.short_side, self.long_side, self.side_multiple
    return any((*lengths, *self.fit_sides))

  @property
  def resizes_by_corners(self) -> bool:
    """Returns whether images are resized first with corners on corners."""
    return bool(self.side_multiple) and self.align_corners

  @property
  def is_whole_image(self) -> bool:
    """Returns whether there is one view: the whole image, resized or not."""
    return self.tiling == 'whole' and self.scales == (1.0,) and not self.flip

  def resized_size(self, size: protocol_views.Size) -> protocol_views.Size:
    """Returns height and width of an image after it is resized first."""
    if any(self.fit_sides):
      return resampling.size_within_sides(size, self.fit_sides)
    if multiple := self.side_multiple:
      height, width = (round_to_multiple(n, multiple) for n in size)
      return height, width
    side, reference = self.short_side or self.long_side, min(size)
    if self.long_side:
      reference = max(size)
    if not side:
      return size
    height, width = (max(n * side // reference, 1) for n in size)
    return height, width

  @property
  def max_taps(self) -> tuple[int, int]:
    """Returns the most nonzeros in a row of the read and of the write maps.

    An upper bound for images of every size, so that packed maps of images of
    different sizes have one shape.
    """
    # Scores that are resized twice have up to two times two neighbors.
    written = 2 if self.resizes_images else 1
    if self.scales == (1.0,) and self.scale_merge == 'mean':
      return 1, written
    antialiased = math.ceil(2 / min(*self.scales, 1.0)) + 2
    return (antialiased if self.antialias else 2), 2 * written

  def build(self, multiple: int) -> protocol_views.Protocol:
    """Builds the protocol of a network with inputs of a given size multiple.

    If images are resized before all else, its views are those of the resized
    image.
    """
    if self.scale_merge == 'max':
      return protocol_views.unpadded_scale_views(
        self.scales, multiple, self.flip, self.antialias
      )
    protocol = protocol_views.whole_image_views(multiple)
    if self.tiling == 'sliding_window':
      protocol = protocol_views.sliding_window_views(
        protocol, self.window, self.stride, self.padding_mode == 'mean'
      )
    elif self.tiling == 'halves':
      protocol = protocol_views.half_image_views(protocol)
    if self.scales != (1.0,):
      protocol = protocol_views.multi_scale_views(
        protocol, self.scales, self.antialias
      )
    return (
      protocol_views.flip_averaged_views(protocol) if self.flip else protocol
    )

  def describe(self) -> str:
    """Describes the protocol in words, for `results.json`.

    >>> ProtocolOptions(flip=True, average='probs').describe()
    'whole image, single scale, flip; averaged probs'
    """
    parts = [self._describe_tiling()]
    if self.short_side:
      parts.append(f'short side {self.short_side}')
    if any(self.fit_sides):
      long, short = self.fit_sides
      parts.append(f'resized to fit {long}x{short}')
    if self.long_side:
      parts.append(f'long side {self.long_side}')
    if self.side_multiple:
      parts.append(f'sides resized to multiples of {self.side_multiple}')
    parts.append(
      'single scale'
      if self.scales == (1.0,)
      else 'scales ' + ', '.join(map(str, self.scales))
    )
    if self.antialias and min(self.scales) < 1:
      parts.append('antialiased')
    if self.flip:
      parts.append('flip')
    if self.is_single_view and self.size_multiple:
      parts.append(f'padded to multiples of {self.size_multiple}')
    if self.align_corners:
      parts.append('aligned corners')
    averaged = (
      self.flip or self.scales != (1.0,) or self.tiling == 'sliding_window'
    )
    text = ', '.join(parts) + (f'; averaged {self.average}' if averaged else '')
    if self.scale_merge == 'max' and self.scales != (1.0,):
      text += ', maximum of scales'
    return f'{text}; dense CRF' if self.crf else text

  def _describe_tiling(self) -> str:
    if self.tiling != 'sliding_window':
      return {'whole': 'whole image', 'halves': 'left and right half'}[
        self.tiling
      ]
    window, stride = (f'{a}x{b}' for a, b in (self.window, self.stride))
    text = f'sliding window {window}, stride {stride}'
    if self.padding_mode == 'mean':
      text += ' (smaller images padded with the mean color)'
    return text


def round_to_multiple(side: int, multiple: int) -> int:
  """Returns the multiple nearest to a side, halves up; one at least.

  >>> round_to_multiple(500, 14), round_to_multiple(333, 14)
  (504, 336)
  """
  return max((2 * side + multiple) // (2 * multiple), 1) * multiple
