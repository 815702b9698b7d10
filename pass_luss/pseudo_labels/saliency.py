"""Saliency maps of images: computed by region contrast, or read from files.

  saliency = region_contrast(image)
  paths = find_saliency_maps(folder, ids)
  saliency = read_saliency_map(paths[0], (375, 500))

Region contrast (RC) is a hand-crafted method without training. Source: Cheng et
al., Global Contrast based Salient Region Detection, CVPR 2011 and TPAMI 2015,
without the latter's color space smoothing and border regions. What the papers
leave open follows the authors' program: images are segmented in Lab, with its
threshold and Gaussian blur.
"""

import dataclasses
import pathlib
from collections.abc import Sequence

import cv2
import numpy as np
import skimage.color
import skimage.segmentation
from etils import epy
from jaxtyping import Float, Float32, Float64, Int, UInt8

from input_pipeline.sources import archives, image_files
from runtime import errors

with epy.lazy_imports():
  from scipy.spatial import distance

# Quantization levels per color channel.
COLOR_LEVELS = 12
# Percentage of pixels that the kept colors must cover.
COLOR_COVERAGE = 95
# σ_s² of the paper: spatial distances are in units of the image's sides.
SPATIAL_VARIANCE = 0.4
# Factor of the center prior exp(-9 d²).
CENTER_PRIOR = 9.0

# Of the segmentation: scale k in units of Lab, and σ of the blur in pixels.
_SEGMENT_SCALE = 50.0
_BLUR_SIGMA = 0.5
# The authors require 200 pixels per region, in images of about 400x300. As a
# fraction of the image this bounds the number of regions at any resolution.
_MAX_REGIONS = 600

# Relative difference below which saliency values are equal up to rounding.
_RELATIVE_TOLERANCE = 1e-6

# Offset of the byte of a PNG's header that gives the bits per channel.
_BIT_DEPTH_OFFSET = 24
_MAX_NAMED = 3  # Missing files that an error names.


@dataclasses.dataclass(frozen=True)
class Regions:
  """Statistics of the R regions of an image, whose sides have length 1.

  Attributes:
    histograms: frequencies of the K colors, [R, K]; rows sum to 1.
    centroids: mean x and y, [R, 2].
    sizes: number of pixels, [R].
    center_distances: mean distance of the pixels to the image center, [R].
  """

  histograms: Float64[np.ndarray, 'R K']
  centroids: Float64[np.ndarray, 'R 2']
  sizes: Int[np.ndarray, ' R']
  center_distances: Float64[np.ndarray, ' R']


def region_contrast(
  image: UInt8[np.ndarray, 'H W 3'],
) -> Float32[np.ndarray, 'H W']:
  """Computes the RC saliency of an RGB image, in [0, 1]; 0 without contrast."""
  regions = segment_saliency_regions(image)
  palette, colors = quantize_saliency_colors(image)
  statistics = saliency_region_statistics(regions, colors, len(palette))
  saliency = region_saliency(
    statistics.histograms,
    distance.cdist(palette, palette),
    statistics.centroids,
    statistics.sizes,
    statistics.center_distances,
  )
  return min_max_normalize_saliency(saliency)[regions]


def segment_saliency_regions(
  image: UInt8[np.ndarray, 'H W 3'],
) -> Int[np.ndarray, 'H W']:
  """Segments an RGB image into regions 0…R-1 by the graph of its pixels.

  Source: Felzenszwalb and Huttenlocher, Efficient Graph-Based Image
  Segmentation, IJCV 2004; k is 50 in Lab.
  """
  height, width = image.shape[:2]
  return skimage.segmentation.felzenszwalb(
    rgb_to_lab(image.astype(np.float32)).astype(np.float64),
    scale=255 * _SEGMENT_SCALE,  # skimage divides it by 255.
    sigma=_BLUR_SIGMA,
    min_size=max(1, round(height * width / _MAX_REGIONS)),
  )


def quantize_saliency_colors(
  image: UInt8[np.ndarray, 'H W 3'],
) -> tuple[Float32[np.ndarray, 'K 3'], Int[np.ndarray, 'H W']]:
  """Quantizes an image to its most frequent colors.

  Of 12 levels in each channel of RGB, the fewest colors are kept that cover
  95 % of the pixels; other pixels get the nearest kept color. A color is the
  mean of its pixels before these are added.

  Returns:
    Kept colors in Lab [K, 3], the most frequent first, and the color 0…K-1 of
    each pixel [H, W].
  """
  levels = image.astype(np.int64) * COLOR_LEVELS // 256
  bins = levels @ (COLOR_LEVELS**2, COLOR_LEVELS, 1)
  counts = np.bincount(bins.ravel())
  present = np.argsort(-counts, kind='stable')[: np.count_nonzero(counts)]
  covered = 100 * np.cumsum(counts[present]) >= COLOR_COVERAGE * bins.size
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
  """Converts sRGB in [0, 255] to CIE L*a*b* (D65), with L in [0, 100]."""
  return skimage.color.rgb2lab(image / np.float32(255))


def saliency_region_statistics(
  regions: Int[np.ndarray, 'H W'],
  colors: Int[np.ndarray, 'H W'],
  num_colors: int,
) -> Regions:
  """Computes the statistics of regions that their saliency depends on.

  Args:
    regions: region 0…R-1 of each pixel; none is empty.
    colors: color 0…num_colors-1 of each pixel.
    num_colors: number K of colors.
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
  """Computes the saliency of regions, their contrast to all others.

  S(r_k) = w_s(r_k) Σ_{i≠k} exp(-D_s(r_k, r_i) / σ_s²) w(r_i) D_r(r_k, r_i),
  D_r(r_1, r_2) = Σ_ij f(c_1i) f(c_2j) D(c_1i, c_2j), w_s = exp(-9 d_k²).
  Source: Cheng et al., TPAMI 2015, section on region contrast. D_s is the
  distance of centroids, as written there; the authors' program squares it. A
  single region has saliency 0.

  Args:
    histograms: frequencies f of colors in each region.
    color_distances: distance D of each pair of colors in Lab.
    centroids: x and y of each region, in units of the image's sides.
    sizes: number w of pixels of each region.
    center_distances: mean distance d of each region to the center, in units of
      the image's sides.
  """
  contrasts = histograms @ color_distances @ histograms.T
  spatial = distance.cdist(centroids, centroids)
  weights = np.exp(-spatial / SPATIAL_VARIANCE) * sizes
  np.fill_diagonal(weights, 0.0)
  prior = np.exp(-CENTER_PRIOR * np.square(center_distances))
  return prior * np.sum(weights * contrasts, axis=1)


def min_max_normalize_saliency(
  values: Float[np.ndarray, ' R'],
) -> Float32[np.ndarray, ' R']:
  """Rescales non-negative values to [0, 1]; returns 0 if all are equal.

  >>> min_max_normalize_saliency(np.array([2.0, 6.0, 3.0])).tolist()
  [0.0, 1.0, 0.25]
  """
  low, high = values.min(), values.max()
  if high - low <= _RELATIVE_TOLERANCE * high:
    return np.zeros(values.shape, np.float32)
  return ((values - low) / (high - low)).astype(np.float32)


def find_saliency_maps(
  folder: pathlib.Path, ids: Sequence[str]
) -> Sequence[pathlib.Path]:
  """Returns the path of the saliency map of each image, FOLDER/ID.png.

  Args:
    folder: folder of the saliency maps.
    ids: ids of the images; 'WNID/NAME' if the maps are in folders of classes.

  Raises:
    UserError: the folder is missing or cannot be read, or maps are missing.
  """
  if not folder.is_dir():
    problem = 'a file' if folder.exists() else 'no such folder'
    raise errors.UserError(
      errors.format_on_one_line(
        f'{folder}: expected a folder with the saliency map of each image as '
        f'ID.png, got {problem}'
      )
    )
  paths = [folder / f'{image}.png' for image in ids]
  # Folders are listed, as ImageNet has too many images to query each file.
  present = {parent: _names(parent) for parent in {p.parent for p in paths}}
  missing = [
    path.relative_to(folder).as_posix()
    for path in paths
    if path.name not in present[path.parent]
  ]
  if missing:
    named = ', '.join(missing[:_MAX_NAMED])
    more = ', …' if len(missing) > _MAX_NAMED else ''
    raise errors.UserError(
      errors.format_on_one_line(
        f'{folder}: expected {len(paths):,} saliency maps, got '
        f'{len(paths) - len(missing):,} ({named}{more} missing): add one for '
        'each image, or choose the folder that has them'
      )
    )
  return paths


def read_saliency_map(
  file: archives.File, size: tuple[int, int]
) -> Float32[np.ndarray, 'H W']:
  """Reads a saliency map in [0, 1], resized bilinearly to its image.

  Args:
    file: a PNG of at most 8 bits, gray, or RGB whose channels are equal; white
      is 1. A path, or a member of an archive.
    size: height and width of its image, in pixels.

  Raises:
    BadFile: the file cannot be read, is damaged, has other pixels or another
      aspect ratio, or its values are 0 and 1 instead of 0 to 255.
  """
  try:
    pixels = _gray(file.read_bytes())
    if not _is_scaled(pixels.shape, size):
      raise errors.UserError(
        f'expected the aspect ratio of its image, {size[1]}x{size[0]}, got '
        f'{pixels.shape[1]}x{pixels.shape[0]}: compute it on the whole image'
      )
  except errors.UserError as error:
    raise errors.BadFile(file, str(error)) from error
  except OSError as error:
    reason = (
      f'expected a saliency map, got: {error.strerror or error}: restore the '
      'file or check its permissions'
    )
    raise errors.BadFile(file, reason) from error
  saliency = pixels.astype(np.float32) / np.float32(255)
  if saliency.shape != size:
    saliency = cv2.resize(saliency, size[::-1], interpolation=cv2.INTER_LINEAR)
  return saliency


def _gray(data: bytes) -> UInt8[np.ndarray, 'H W']:
  """Decodes the pixels of a map; errors lack the file's name."""
  image = image_files.decode_image_file(data, ('PNG',))
  bits = data[_BIT_DEPTH_OFFSET]
  if image.mode not in ('1', 'L', 'RGB') or bits > 8:
    raise errors.UserError(
      f'expected 8-bit gray, got PIL mode {image.mode!r} with {bits} bits'
    )
  pixels = np.asarray(image.convert('L') if image.mode == '1' else image)
  if pixels.ndim == 3:
    if (pixels != pixels[..., :1]).any():
      raise errors.UserError(
        'expected gray from black (0) to white (255), got colors'
      )
    pixels = pixels[..., 0]
  if pixels.max() == 1:
    raise errors.UserError(
      'expected values 0 to 255, got at most 1: multiply a mask of 0 and 1 by '
      '255'
    )
  return pixels


def _is_scaled(map_size: tuple[int, int], size: tuple[int, int]) -> bool:
  """Returns whether a map has the aspect ratio of its image up to rounding."""
  # A side of the map may be off by less than a pixel: there must be a factor
  # that both sides allow.
  low, high = (
    [
      (side + change) / whole
      for side, whole in zip(map_size, size, strict=True)
    ]
    for change in (-1, 1)
  )
  return max(low) < min(high) or map_size == size


def _names(folder: pathlib.Path) -> frozenset[str]:
  """Returns the names of a folder's entries; none if it does not exist."""
  try:
    return frozenset(path.name for path in folder.iterdir())
  except (FileNotFoundError, NotADirectoryError):
    return frozenset()
  except OSError as error:
    raise errors.BadFile(folder, f'cannot be read: {error.strerror}') from error
