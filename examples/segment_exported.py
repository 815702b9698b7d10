"""Segments images with an exported network; needs jax, numpy and Pillow.

  python segment_exported.py runs/roads/export photographs segmented

Reads `model.stablehlo` and `classes.json` from the first folder and writes, for
each image below the second, a palette PNG of class ids to the third. Files that
cannot be segmented are named and skipped. The network is compiled once for each
image size: images of equal size are fast.
"""

import argparse
import collections
import json
import os
import pathlib

import numpy as np
import PIL.Image
from jax import export

SUFFIXES = (
  *('.jpg', '.jpeg', '.png'),
  *('.tif', '.tiff', '.bmp', '.webp', '.gif'),
)
# The EXIF tag, and the operation that turns stored pixels for display.
ORIENTATION = 0x0112
TURNS = {
  2: PIL.Image.Transpose.FLIP_LEFT_RIGHT,
  3: PIL.Image.Transpose.ROTATE_180,
  4: PIL.Image.Transpose.FLIP_TOP_BOTTOM,
  5: PIL.Image.Transpose.TRANSPOSE,
  6: PIL.Image.Transpose.ROTATE_270,
  7: PIL.Image.Transpose.TRANSVERSE,
  8: PIL.Image.Transpose.ROTATE_90,
}
INVERSE = {6: 8, 8: 6}


def main() -> None:
  """Segments all images below a folder."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument(
    'model', type=pathlib.Path, help='folder of the exported network'
  )
  parser.add_argument('images', type=pathlib.Path, help='folder of images')
  parser.add_argument('out', type=pathlib.Path, help='folder of the results')
  parser.add_argument(
    '--max_megapixels', default=178, type=int, help='skip larger images'
  )
  arguments = parser.parse_args()

  content = (arguments.model / 'model.stablehlo').read_bytes()
  network = export.deserialize(bytearray(content))
  about = json.loads((arguments.model / 'classes.json').read_text())
  PIL.Image.MAX_IMAGE_PIXELS = None  # `read_image` has its own limit.
  paths, skipped = find_images(arguments.images)
  num_segmented = 0
  for path in paths:
    try:
      image, orientation = read_image(path, about, arguments.max_megapixels)
    except Exception as error:  # Pillow raises any exception for damaged files.
      skipped.append((path, error))
      continue
    labels = turned_back(segment(network, image), orientation)
    name = path.relative_to(arguments.images)
    print(name, describe(labels, about['classes']))
    target = arguments.out / name.parent / f'{path.stem}.png'
    target.parent.mkdir(parents=True, exist_ok=True)
    picture(labels, about['palette']).save(target)
    num_segmented += 1
  for path, reason in skipped:
    print(f'skipped: {path}: {reason}')
  print(f'{num_segmented} images segmented, {len(skipped)} files skipped')
  if not num_segmented:
    parser.exit(2, f'error: {arguments.images}: no image is usable\n')


def find_images(
  folder: pathlib.Path,
) -> tuple[list[pathlib.Path], list[tuple[pathlib.Path, str]]]:
  """Lists the images below a folder, and the other files with the reason."""
  stems, skipped = collections.defaultdict(list), []
  for parent, _, names in os.walk(folder):
    for path in (pathlib.Path(parent, name) for name in names):
      if path.suffix.lower() in SUFFIXES:
        stems[path.parent / path.stem].append(path)
      elif not path.name.startswith('.'):
        skipped.append((path, f'expected one of {", ".join(SUFFIXES)}'))
  images = [same[0] for same in stems.values() if len(same) == 1]
  skipped += [
    (path, 'another image has the same name but for its ending')
    for same in stems.values()
    if len(same) > 1
    for path in same
  ]
  return sorted(images), sorted(skipped)


def read_image(
  path: pathlib.Path, about: dict, max_megapixels: int
) -> tuple[np.ndarray, int]:
  """Reads an image as the images of the training were read.

  Args:
    path: path of the file.
    about: content of `classes.json`.
    max_megapixels: limit above which images are refused.

  Returns:
    RGB uint8 [H, W, 3], and the EXIF orientation by which it is turned.
  """
  with PIL.Image.open(path) as image:
    if image.width * image.height > max_megapixels * 1e6:
      raise ValueError(f'has more than {max_megapixels} megapixels')
    if image.format in ('TIFF', 'WEBP', 'GIF') and image.n_frames > 1:
      raise ValueError(f'holds {image.n_frames} pictures')
    orientation = image.getexif().get(ORIENTATION, 1)
    orientation = orientation if orientation in TURNS else 1
    kind = image.format
    image.load()  # Pillow turns a TIFF here.
    is_turned, follow = kind == 'TIFF', about.get('follow_exif', False)
    if orientation != 1 and is_turned != follow:
      back = INVERSE.get(orientation, orientation)
      image = image.transpose(TURNS[orientation if follow else back])
    pixels = to_rgb(image, path, about.get('image_depth', 16))
    return pixels, orientation if follow else 1


def to_rgb(
  image: PIL.Image.Image, path: pathlib.Path, depth: int
) -> np.ndarray:
  """Converts an image to RGB uint8 [H, W, 3]; `depth` is of 16-bit values."""
  if image.mode.startswith('I'):
    values = np.asarray(image).astype(np.int64)
    if values.max() >= 2**depth:
      raise ValueError(f'expected values of {depth} bits, got {values.max()}')
    return np.stack([(values >> (depth - 8)).astype(np.uint8)] * 3, axis=-1)
  if image.mode == 'F':
    raise ValueError('expected whole numbers, got fractions')
  if depth < 16 and is_rgb_of_16_bits(path):
    raise ValueError(
      f'Pillow reads 8 bits of RGB, not {depth} of 16: convert it to 8 bits'
    )
  return np.array(image.convert('RGB'))


def is_rgb_of_16_bits(path: pathlib.Path) -> bool:
  """Returns whether Pillow would drop the lower bits of a PNG or TIFF."""
  with PIL.Image.open(path) as image:
    if image.format == 'TIFF':
      return max(image.tag_v2.get(258, (1,))) == 16
  with path.open('rb') as file:
    return image.format == 'PNG' and file.read(25)[24] == 16


def segment(network: export.Exported, image: np.ndarray) -> np.ndarray:
  """Returns the class ids [H, W] of an image."""
  height, width = image.shape[:2]
  # The network is exported for sides of two pixels or more.
  missing = ((0, max(2 - height, 0)), (0, max(2 - width, 0)), (0, 0))
  labels = network.call(np.pad(image, missing, mode='edge')[None])
  return np.asarray(labels)[0, :height, :width]


def turned_back(labels: np.ndarray, orientation: int) -> np.ndarray:
  """Returns labels in the orientation of the file."""
  if orientation == 1:
    return labels
  back = INVERSE.get(orientation, orientation)
  return np.asarray(
    PIL.Image.fromarray(labels.astype(np.int32)).transpose(TURNS[back])
  )


def describe(labels: np.ndarray, classes: list[str]) -> str:
  """Names the most frequent classes with their shares."""
  counts = np.bincount(labels.ravel(), minlength=len(classes))
  return ', '.join(
    f'{classes[i]} {counts[i] / labels.size:.0%}'
    for i in np.argsort(-counts)[:3]
    if counts[i]
  )


def picture(labels: np.ndarray, palette: list) -> PIL.Image.Image:
  """Returns a palette image of class ids, or 16-bit gray of many classes."""
  if len(palette) > 256:  # More than a palette can hold.
    return PIL.Image.fromarray(labels.astype(np.uint16))
  image = PIL.Image.fromarray(labels.astype(np.uint8))
  image.putpalette(np.array(palette, np.uint8).tobytes())
  return image


if __name__ == '__main__':
  main()
