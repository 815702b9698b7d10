"""Saliency maps of images: by contrast of regions, or read from files.

  saliency = region_contrast(image)
  paths = find_maps(folder, ids)
  saliency = read_map(paths[0], (375, 500))

Region contrast (RC) is made by hand: nothing in it was learned. Source: Cheng
et al., Global Contrast based Salient Region Detection, CVPR 2011 and TPAMI
2015, without the latter's smoothing by colors and zeros at the border. What
the papers leave open is as in the authors' program: regions are found in Lab,
with its threshold and smoothing.
"""

import dataclasses
import pathlib
from collections.abc import Sequence

import cv2
import numpy as np
import skimage.color
import skimage.segmentation
from jaxtyping import Float, Float32, Float64, Int, UInt8
from scipy.spatial import distance

from input_pipeline.sources import archives, image_files
from runtime import errors

LEVELS = 12  # Of a channel, when colors are counted.
COVERED = 95  # Percent of the pixels whose colors are kept.
SPREAD = 0.4  # σ_s² of the paper; of an image of sides 1.
CENTER = 9.0  # Of the prior exp(-CENTER d²).

# Of the segmentation: k in units of Lab, σ in pixels. The authors' regions have
# at least 200 pixels, in images of about 400x300: as a fraction, maps are alike
# at any size of an image, and it has no more regions than that.
_THRESHOLD = 50.0
_BLUR = 0.5
_MAX_REGIONS = 600

# What differs by less, relative to the largest, is the same but for rounding.
_FLAT = 1e-6

_BITS_AT = 24  # Of a channel, in a PNG's header.
_NAMED = 3  # Of the missing files.


@dataclasses.dataclass(frozen=True)
class Regions:
  """The R regions of an image; an image has sides 1, whatever its shape.

  Attributes:
    histograms: frequencies of the K colors, [R, K]; a row sums to 1.
    centroids: mean x and y, [R, 2].
    sizes: pixels, [R].
    center_distances: mean distance of the pixels to the center, [R].
  """

  histograms: Float64[np.ndarray, 'R K']
  centroids: Float64[np.ndarray, 'R 2']
  sizes: Int[np.ndarray, ' R']
  center_distances: Float64[np.ndarray, ' R']


def region_contrast(
  image: UInt8[np.ndarray, 'H W 3'],
) -> Float32[np.ndarray, 'H W']:
  """RC saliency of an RGB image, from 0 to 1; all 0 if nothing stands out."""
  regions = segment_regions(image)
  palette, colors = quantize_colors(image)
  found = region_statistics(regions, colors, len(palette))
  saliency = region_saliency(
    found.histograms,
    distance.cdist(palette, palette),
    found.centroids,
    found.sizes,
    found.center_distances,
  )
  return min_max_normalize(saliency)[regions]


def segment_regions(
  image: UInt8[np.ndarray, 'H W 3'],
) -> Int[np.ndarray, 'H W']:
  """Regions 0…R-1 of an RGB image, by its graph of neighboring pixels.

  Source: Felzenszwalb and Huttenlocher, Efficient Graph-Based Image
  Segmentation, IJCV 2004; k is 50 in Lab.
  """
  height, width = image.shape[:2]
  return skimage.segmentation.felzenszwalb(
    rgb_to_lab(image.astype(np.float32)).astype(np.float64),
    scale=255 * _THRESHOLD,  # It is divided by 255.
    sigma=_BLUR,
    min_size=max(1, round(height * width / _MAX_REGIONS)),
  )


def quantize_colors(
  image: UInt8[np.ndarray, 'H W 3'],
) -> tuple[Float32[np.ndarray, 'K 3'], Int[np.ndarray, 'H W']]:
  """The colors that matter, and the one of each pixel.

  Of 12 levels in each channel of RGB, the most frequent colors are kept, just
  enough to cover 95 % of the pixels; the others' pixels get the nearest one.
  A color is the mean of its own pixels.

  Returns:
    Kept colors in Lab [K, 3], the most frequent first, and 0…K-1 [H, W].
  """
  levels = image.astype(np.int64) * LEVELS // 256
  bins = levels @ (LEVELS**2, LEVELS, 1)
  counts = np.bincount(bins.ravel())
  present = np.argsort(-counts, kind='stable')[: np.count_nonzero(counts)]
  covered = 100 * np.cumsum(counts[present]) >= COVERED * bins.size
  kept = 1 + np.argmax(covered)

  sums = [
    np.bincount(bins.ravel(), image[..., channel].ravel())
    for channel in range(3)
  ]
  means = np.stack(sums, axis=-1)[present] / counts[present, None]
  palette = rgb_to_lab(means[None].astype(np.float32))[0]
  nearest = np.arange(len(present))
  others = distance.cdist(palette[kept:], palette[:kept])
  nearest[kept:] = others.argmin(axis=1)
  table = np.zeros(len(counts), np.int64)
  table[present] = nearest
  return palette[:kept], table[bins]


def rgb_to_lab(
  image: Float32[np.ndarray, 'H W 3'],
) -> Float32[np.ndarray, 'H W 3']:
  """CIE L*a*b* (D65) of sRGB from 0 to 255; L is from 0 to 100."""
  return skimage.color.rgb2lab(image / np.float32(255))


def region_statistics(
  regions: Int[np.ndarray, 'H W'],
  colors: Int[np.ndarray, 'H W'],
  num_colors: int,
) -> Regions:
  """What the contrast of regions is worked out from.

  Args:
    regions: of each pixel, 0…R-1, none of them empty.
    colors: of each pixel, 0…num_colors-1.
    num_colors: K.
  """
  height, width = regions.shape
  flat = regions.ravel()
  sizes = np.bincount(flat)
  pairs = np.bincount(
    flat * num_colors + colors.ravel(), minlength=len(sizes) * num_colors
  )
  y, x = np.meshgrid(
    (np.arange(height) + 0.5) / height,
    (np.arange(width) + 0.5) / width,
    indexing='ij',
  )

  def mean(values: Float64[np.ndarray, 'H W']) -> Float64[np.ndarray, ' R']:
    return np.bincount(flat, values.ravel()) / sizes

  return Regions(
    histograms=pairs.reshape(-1, num_colors) / sizes[:, None],
    centroids=np.stack([mean(x), mean(y)], axis=-1),
    sizes=sizes,
    center_distances=mean(np.hypot(x - 0.5, y - 0.5)),
  )


def region_saliency(
  histograms: Float[np.ndarray, 'R K'],
  color_distances: Float[np.ndarray, 'K K'],
  centroids: Float[np.ndarray, 'R 2'],
  sizes: Int[np.ndarray, ' R'],
  center_distances: Float[np.ndarray, ' R'],
) -> Float64[np.ndarray, ' R']:
  """How much each region stands out against all others; 0 if it is alone.

  S(r_k) = w_s(r_k) Σ_{i≠k} exp(-D_s(r_k, r_i) / σ_s²) w(r_i) D_r(r_k, r_i),
  D_r(r_1, r_2) = Σ_ij f(c_1i) f(c_2j) D(c_1i, c_2j), w_s = exp(-9 d_k²).
  Source: Cheng et al., TPAMI 2015, the section on region contrast. D_s is the
  distance of centroids, as written there; the authors' program squares it.

  Args:
    histograms: frequencies f of colors in each region.
    color_distances: D, of each pair of colors.
    centroids: in an image of sides 1.
    sizes: w, pixels.
    center_distances: d, mean distance to the center of an image of sides 1.
  """
  contrasts = histograms @ color_distances @ histograms.T
  apart = distance.cdist(centroids, centroids)
  weights = np.exp(-apart / SPREAD) * sizes
  np.fill_diagonal(weights, 0.0)
  prior = np.exp(-CENTER * np.square(center_distances))
  return prior * np.sum(weights * contrasts, axis=1)


def min_max_normalize(
  values: Float[np.ndarray, ' R'],
) -> Float32[np.ndarray, ' R']:
  """Non-negative values, moved and scaled to 0…1; all 0 if they are equal.

  >>> min_max_normalize(np.array([2.0, 6.0, 3.0])).tolist()
  [0.0, 1.0, 0.25]
  """
  low, high = values.min(), values.max()
  if high - low <= _FLAT * high:
    return np.zeros(values.shape, np.float32)
  return ((values - low) / (high - low)).astype(np.float32)


def find_maps(
  folder: pathlib.Path, ids: Sequence[str]
) -> Sequence[pathlib.Path]:
  """The file of each image's map: its id and '.png', in the folder.

  Args:
    folder: of maps.
    ids: of images; as 'WNID/NAME' if the maps are in folders of classes.

  Raises:
    UserError: there is no such folder, it cannot be read, or maps are missing.
  """
  if not folder.is_dir():
    found = 'is a file' if folder.exists() else 'there is no such folder'
    raise errors.UserError(
      errors.one_line(
        f'{folder}: {found}, expected the saliency map of each image as ID.png '
        'in it'
      )
    )
  paths = [folder / f'{image}.png' for image in ids]
  # A folder is asked once: ImageNet has more than a million images.
  present = {parent: _names(parent) for parent in {p.parent for p in paths}}
  missing = [
    path.relative_to(folder).as_posix()
    for path in paths
    if path.name not in present[path.parent]
  ]
  if missing:
    named = ', '.join(missing[:_NAMED])
    more = ', …' if len(missing) > _NAMED else ''
    raise errors.UserError(
      errors.one_line(
        f'{folder}: {len(missing):,} of {len(paths):,} saliency maps are '
        f'missing ({named}{more}): expected one for each image, make them or '
        'name the folder they are in'
      )
    )
  return paths


def read_map(
  file: archives.File, size: tuple[int, int]
) -> Float32[np.ndarray, 'H W']:
  """A supplied map, 0 to 1, resized to its image (bilinear) if it is scaled.

  Args:
    file: a PNG of at most 8 bits, gray, or RGB whose channels are equal; white
      is 1. A path, or a member of an archive.
    size: height and width of its image, in pixels.

  Raises:
    BadFile: it cannot be read, is damaged, has other pixels or proportions, or
      is a mask of the values 0 and 1 of 255, nearly black.
  """
  try:
    pixels = _gray(file.read_bytes())
    if not _is_scaled(pixels.shape, size):
      raise errors.UserError(
        f'is {pixels.shape[1]}x{pixels.shape[0]} pixels, its image '
        f'{size[1]}x{size[0]}: expected the same proportions; make it from the '
        'whole image'
      )
  except errors.UserError as error:
    raise errors.BadFile(file, str(error)) from error
  except OSError as error:
    reason = (
      f'cannot be read: {error.strerror or error}; expected a saliency map, '
      'make it or mend the file'
    )
    raise errors.BadFile(file, reason) from error
  saliency = pixels.astype(np.float32) / np.float32(255)
  if saliency.shape != size:
    saliency = cv2.resize(saliency, size[::-1], interpolation=cv2.INTER_LINEAR)
  return saliency


def _gray(data: bytes) -> UInt8[np.ndarray, 'H W']:
  """The pixels of a map; errors are without the file's name."""
  image = image_files.decode(data, ('PNG',))
  bits = data[_BITS_AT]
  if image.mode not in ('1', 'L', 'RGB') or bits > 8:
    raise errors.UserError(
      f'has pixels of PIL mode {image.mode!r} and {bits} bits: expected a '
      'saliency map in gray of 8 bits'
    )
  pixels = np.asarray(image.convert('L') if image.mode == '1' else image)
  if pixels.ndim == 3:
    if (pixels != pixels[..., :1]).any():
      raise errors.UserError(
        'has colors: expected a saliency map in gray of 8 bits, from black '
        '(0) to white (255)'
      )
    pixels = pixels[..., 0]
  if pixels.max() == 1:
    raise errors.UserError(
      'its largest value is 1: expected 0 to 255; multiply a mask of 0 and 1 '
      'by 255'
    )
  return pixels


def _is_scaled(found: tuple[int, int], size: tuple[int, int]) -> bool:
  """Whether one factor leads from a size to the other but for rounding."""
  (low, high) = (
    [(side + change) / whole for side, whole in zip(found, size, strict=True)]
    for change in (-1, 1)
  )
  return max(low) < min(high) or found == size


def _names(folder: pathlib.Path) -> frozenset[str]:
  """Of what is in the folder; none if it is not there."""
  try:
    return frozenset(path.name for path in folder.iterdir())
  except (FileNotFoundError, NotADirectoryError):
    return frozenset()
  except OSError as error:
    raise errors.BadFile(folder, f'cannot be read: {error.strerror}') from error
