"""Compares preparing records with only decoding their files.

  python benchmarks/prepare.py [--images=4000] [--rounds=3]
      [--processes 1 2] [--out=FILE.json]

JPEG files of 500 x 375 pixels are drawn, with palette masks like those of
Pascal VOC. Two sides alternate: preparing the records (list, read, decode,
check, fingerprint, encode, write), and cv2 that only decodes image and mask of
the same files. For each number of processes both get as many cores: preparing
has so many processes, whose start counts, and cv2 has threads. Each measurement
is a fresh process, so that nothing is known of the files. Then each part is
timed on one thread.
"""

import concurrent.futures
import multiprocessing
import os
import pathlib
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

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
from runtime import memory, threads

TIMED = 100  # Number of images on which the parts are timed.
DRAWN = 1000  # Number of different images; others are links to these.


def make_folder(folder: pathlib.Path, count: int) -> None:
  """Draws images without noise, and masks of their regions."""
  image_folders.create(folder)
  rng = np.random.default_rng(0)
  palette = rng.integers(0, 256, (256, 3), np.uint8)
  for i in range(count):
    image_path, mask_path = file_paths(folder, i)
    if i >= DRAWN:
      drawn = file_paths(folder, i % DRAWN)
      for path, link in zip(drawn, (image_path, mask_path), strict=True):
        os.link(path, link)
      continue
    values = image_folders.draw_mask(rng)
    coarse = rng.integers(0, 128, (24, 32, 3), np.uint8)
    shade = cv2.resize(
      coarse, image_folders.SIZE[::-1], interpolation=cv2.INTER_CUBIC
    )
    image = palette[values] // 2 + shade // 2
    image_folders.write_image(image_path, image)
    mask = PIL.Image.fromarray(values)
    mask.putpalette(palette.tobytes())
    mask.save(mask_path)


def file_paths(
  folder: pathlib.Path, index: int
) -> tuple[pathlib.Path, pathlib.Path]:
  """Returns the paths of an image and its mask."""
  name = f'{index:05}'
  return folder / 'images' / f'{name}.jpg', folder / 'masks' / f'{name}.png'


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


class Measurement(NamedTuple):
  """A measurement of one side.

  Attributes:
    rate: images per second.
    milliseconds: processor time of an image, of all processes.
  """

  rate: float
  milliseconds: float


def measure(
  work: Callable[[pathlib.Path], None], folder: pathlib.Path, count: int
) -> Measurement:
  """Measures a call on a folder of `count` images."""
  start, before = time.perf_counter(), sum(os.times()[:4])
  work(folder)
  seconds = time.perf_counter() - start
  return Measurement(
    count / seconds, 1000 * (sum(os.times()[:4]) - before) / count
  )


def measure_on_cores(
  work: Callable[[pathlib.Path], None],
  folder: pathlib.Path,
  count: int,
  num_cores: int,
) -> Measurement:
  """Measures a call in a fresh process on a number of cores."""
  with concurrent.futures.ProcessPoolExecutor(
    1,
    multiprocessing.get_context('spawn'),
    initializer=configure,
    initargs=(num_cores,),
  ) as pool:
    return pool.submit(measure, work, folder, count).result()


def configure(num_cores: int) -> None:
  """Configures a process as the command line does, on so many cores."""
  os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[-num_cores:])
  cv2.setNumThreads(0)
  logging.set_verbosity(logging.ERROR)  # TFDS logs each of its steps.
  memory.keep_freed_memory()


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
    'decode and check the image': lambda i: image_files.read_image_file(
      images[i]
    ),
    'read and check the mask': lambda i: masks.read_mask_values(
      sources[i].mask
    ),
    'all of reading': lambda i: made.read_sample(sources[i]),
    'encode the record': lambda i: made.encode(samples[i]),
    'count pixels and objects': lambda i: class_counts.count_sample(
      samples[i], image_folders.CLASSES
    ),
    'fingerprint': lambda i: fingerprints.ImageIndex.from_sample(samples[i]),
    'its perceptual hash': lambda i: fingerprints.perceptual_hash(
      samples[i].pixels
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
  num_cores = threads.count_usable_cpus()
  arguments = command_line.parse(
    argv, __doc__, images=4000, rounds=3, processes=sorted({1, num_cores})
  )
  processes = [n for n in arguments.processes if 1 <= n <= num_cores]
  with tempfile.TemporaryDirectory() as temporary:
    folder = pathlib.Path(temporary) / 'drawn'
    make_folder(folder, arguments.images)
    rounds = [
      measure_round(folder, arguments.images, processes)
      for _ in range(arguments.rounds)
    ]
    configure(1)
    milliseconds = parts(folder)
  for name, value in milliseconds.items():
    print(f'{name:28} {value:.2f} ms')
  result = {'images': arguments.images, 'milliseconds_an_image': milliseconds}
  lines = []
  for n in processes:
    result[f'processes: {n}'] = summary = summarize([row[n] for row in rounds])
    print(f'processes: {n}: {sentence(summary)}')
    lines.append(
      command_line.Line(
        f'preparing a folder of images, processes: {n}',
        f'{summary["images_a_second"]:.0f} images/s',
        'cv2 decoding alone',
        1 / summary['share_of_bare_decoding'],
        command_line.inverse(summary['least_and_most']),
      )
    )
  command_line.write_results(arguments.out, result, lines)


def measure_round(
  folder: pathlib.Path, count: int, processes: Sequence[int]
) -> dict[int, dict[str, Measurement]]:
  """Measures both sides for each number of processes, in turns."""
  row = {}
  for n in processes:
    row[n] = {
      'prepare': measure_on_cores(prepare, folder, count, n),
      'bare': measure_on_cores(decode, folder, count, n),
    }
    shutil.rmtree(folder / 'records')
    shown = '  '.join(f'{side} {m.rate:.0f}' for side, m in row[n].items())
    print(f'processes: {n}, images/s: {shown}', flush=True)
  return row


def summarize(rows: Sequence[dict[str, Measurement]]) -> dict:
  """Computes the medians of the rounds and their range."""
  share = [row['prepare'].rate / row['bare'].rate for row in rows]
  median = statistics.median
  return {
    'rounds': [{k: m._asdict() for k, m in row.items()} for row in rows],
    'images_a_second': median(row['prepare'].rate for row in rows),
    'share_of_bare_decoding': median(share),
    'least_and_most': (min(share), max(share)),
    'milliseconds': median(row['prepare'].milliseconds for row in rows),
    'milliseconds_of_bare': median(row['bare'].milliseconds for row in rows),
  }


def sentence(summary: dict) -> str:
  """Formats a summary as a sentence."""
  return (
    f'{summary["images_a_second"]:.0f} images/s, '
    f'{command_line.format_decoding_share(summary)}; processor time of an '
    f'image {summary["milliseconds"]:.2f} ms, bare '
    f'{summary["milliseconds_of_bare"]:.2f}'
  )


if __name__ == '__main__':
  main(sys.argv[1:])
