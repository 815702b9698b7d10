"""Compares preparing records with only decoding their files.

  python benchmarks/prepare.py [--images=2000] [--rounds=3] [--out=FILE.json]

JPEG files of 500 x 375 pixels are drawn, with palette masks like those of
Pascal VOC. Two sides alternate on as many processes or threads as there are
cores: preparing the records (list, read, decode, check, fingerprint, encode,
write), and cv2 that only decodes image and mask of the same files. Then each
part is timed on one thread.
"""

import pathlib
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence

import command_line
import cv2
import image_folders
import numpy as np
import PIL.Image
from absl import logging

from input_pipeline import datasets
from input_pipeline.builders import base
from input_pipeline.sources import (
  class_counts,
  fingerprints,
  image_files,
  masks,
  records,
)
from runtime import threads

TIMED = 100  # Number of images on which the parts are timed.


def make_folder(folder: pathlib.Path, count: int) -> None:
  """Draws images without noise, and masks of their regions."""
  image_folders.create(folder)
  rng = np.random.default_rng(0)
  palette = rng.integers(0, 256, (256, 3), np.uint8)
  for i in range(count):
    values = image_folders.draw_mask(rng)
    coarse = rng.integers(0, 128, (24, 32, 3), np.uint8)
    shade = cv2.resize(
      coarse, image_folders.SIZE[::-1], interpolation=cv2.INTER_CUBIC
    )
    image = palette[values] // 2 + shade // 2
    image_folders.write_image(folder / 'images' / f'{i:05}.jpg', image)
    mask = PIL.Image.fromarray(values)
    mask.putpalette(palette.tobytes())
    mask.save(folder / 'masks' / f'{i:05}.png')


def builder(folder: pathlib.Path) -> base.Builder:
  """Returns the builder of the folder's records."""
  options = image_folders.data_options(folder)
  return datasets.dataset_builder(options, str(folder / 'records'))


def prepare(folder: pathlib.Path) -> None:
  """Prepares all records as the command line does, without its report."""
  made = builder(folder)
  made.jobs = threads.count_usable_cpus()
  made.download_and_prepare()


def decode(folder: pathlib.Path) -> None:
  """Decodes all images and masks, in threads."""

  def both(path: pathlib.Path) -> None:
    cv2.imdecode(np.fromfile(path, np.uint8), cv2.IMREAD_COLOR_RGB)
    mask = folder / 'masks' / f'{path.stem}.png'
    cv2.imdecode(np.fromfile(mask, np.uint8), cv2.IMREAD_UNCHANGED)

  for _ in threads.map_in_threads(both, sorted((folder / 'images').iterdir())):
    pass


def rate(
  work: Callable[[pathlib.Path], None], folder: pathlib.Path, count: int
) -> float:
  """Measures images/s of a call on a folder of `count` images."""
  start = time.perf_counter()
  work(folder)
  return count / (time.perf_counter() - start)


def parts(folder: pathlib.Path) -> dict[str, float]:
  """Measures each part on one thread, in milliseconds per image."""
  made = builder(folder)
  sources = made.sources()['train'][:TIMED]
  images = [source.image.read_bytes() for source in sources]
  labels = [source.mask.read_bytes() for source in sources]
  samples = [made.read_sample(source) for source in sources]
  work: dict[str, Callable[[int], object]] = {
    'cv2 image': lambda i: records.decode_record_image(images[i]),
    'cv2 mask': lambda i: cv2.imdecode(
      np.frombuffer(labels[i], np.uint8), cv2.IMREAD_UNCHANGED
    ),
    'check the JPEG to its end': lambda i: image_files.decode_image_file(
      images[i], ('JPEG',)
    ),
    'read and check the mask': lambda i: masks.read_mask_values(
      sources[i].mask
    ),
    'all of reading': lambda i: made.read_sample(sources[i]),
    'fingerprint': lambda i: fingerprints.ImageIndex.from_sample(samples[i]),
    'encode the record': lambda i: made.encode(samples[i]),
    'count': lambda i: class_counts.CountAccumulator(image_folders.CLASSES).add(
      samples[i]
    ),
  }
  return {name: timed(part, len(sources)) for name, part in work.items()}


def timed(part: Callable[[int], object], count: int) -> float:
  """Measures milliseconds per image: the fastest of three passes."""
  best = float('inf')
  for _ in range(3):
    start = time.perf_counter()
    for i in range(count):
      part(i)
    best = min(best, time.perf_counter() - start)
  return 1000 * best / count


def main(argv: Sequence[str]) -> None:
  """Runs the comparison and prints it."""
  arguments = command_line.parse(argv, __doc__, images=2000, rounds=3)
  cv2.setNumThreads(0)
  logging.set_verbosity(logging.ERROR)  # TFDS logs each of its steps.
  rows = []
  with tempfile.TemporaryDirectory() as temporary:
    folder = pathlib.Path(temporary) / 'drawn'
    make_folder(folder, arguments.images)
    for number in range(arguments.rounds):
      row = {
        'prepare': rate(prepare, folder, arguments.images),
        'bare': rate(decode, folder, arguments.images),
      }
      shutil.rmtree(folder / 'records')
      rows.append(row)
      shown = '  '.join(f'{name} {value:.0f}' for name, value in row.items())
      print(f'round {number + 1}/{arguments.rounds}, images/s: {shown}')
    result = summary(rows)
    result['milliseconds_an_image'] = parts(folder)
  for name, value in result['milliseconds_an_image'].items():
    print(f'{name:28} {value:.2f} ms')
  print(sentence(result))
  line = command_line.Line(
    'preparing a folder of images',
    f'{result["images_a_second"]:.0f} images/s',
    'cv2 decoding alone',
    1 / result['share_of_bare_decoding'],
    command_line.inverse(result['least_and_most']),
  )
  command_line.write_results(arguments.out, result, [line])


def summary(rows: Sequence[dict[str, float]]) -> dict:
  """Computes the medians of the rounds and their range."""
  share = [row['prepare'] / row['bare'] for row in rows]
  return {
    'threads': threads.count_usable_cpus(),
    'rounds': list(rows),
    'images_a_second': statistics.median(row['prepare'] for row in rows),
    'share_of_bare_decoding': statistics.median(share),
    'least_and_most': (min(share), max(share)),
  }


def sentence(result: dict) -> str:
  """Formats a summary as a sentence."""
  return (
    f'{result["images_a_second"]:.0f} images/s on {result["threads"]} cores, '
    f'{command_line.format_decoding_share(result)}'
  )


if __name__ == '__main__':
  main(sys.argv[1:])
