"""Compares the input pipeline with bare decoding and with torch's DataLoader.

  python benchmarks/input.py [--threads=2] [--rounds=5] [--out=FILE.json]

Images of 500 x 375 pixels with masks are prepared like a user's folder. For the
transforms of each method, these sides alternate on the same number of threads:
cv2 that decodes the same bytes from memory, the loader of training (read,
decode, transform, batch) and, where they are installed, torch's DataLoader of
as many processes, with data sets that do the same work by cv2 and by
torchvision (see `input_alternatives`). CPU time, of this process and its
workers, is measured beside the rate, as it depends less on what else the
machine does. Then each part is timed on one thread, and memory is recorded over
5,000 batches. `--only=PART` selects methods by a part of their names.
"""

import concurrent.futures
import importlib.util
import os
import pathlib
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import command_line
import cv2
import image_folders
import input_alternatives
import numpy as np
import PIL.Image
import psutil

from input_pipeline import datasets, loader, transforms, views
from runtime import console

CROP = (321, 321)
NUM_IMAGES = 400
BATCH_SIZE = 16

# Views of ImageNet-S50, 2 x 224 + 6 x 96, and of the larger sets, 2 x 224.
PASS = {
  'pass s50, as Pillow': (
    views.ViewGroup('large', 2, (224, 224), area=(0.14, 1.0), antialias=True),
    views.ViewGroup('small', 6, (96, 96), area=(0.05, 0.14), antialias=True),
  ),
  'pass s300, as Pillow': (
    views.ViewGroup('large', 2, (224, 224), area=(0.08, 1.0), antialias=True),
  ),
}


class Speed(NamedTuple):
  """Speed of one side.

  Attributes:
    rate: images per second.
    cpu: milliseconds of CPU time an image.
  """

  rate: float
  cpu: float


def make_folder(folder: pathlib.Path) -> None:
  """Writes images with masks: photographs of CamVid, or else drawn ones."""
  image_folders.create(folder)
  photographs = sorted(
    pathlib.Path(os.environ.get('SEG_DATA_DIR', '')).glob(
      'camvid/train/images/*.jpg'
    )
  )
  rng = np.random.default_rng(0)
  for i in range(NUM_IMAGES):
    if photographs:
      image = cv2.imread(str(photographs[i % len(photographs)]))
    else:
      coarse = rng.integers(0, 256, (47, 63, 3), np.uint8)
      image = cv2.resize(
        coarse, image_folders.SIZE[::-1], interpolation=cv2.INTER_CUBIC
      )
      image = cv2.add(image, rng.integers(0, 12, image.shape, np.uint8))
    image = cv2.resize(
      image, image_folders.SIZE[::-1], interpolation=cv2.INTER_AREA
    )
    mask = image_folders.draw_mask(rng)
    image_folders.write_image(folder / 'images' / f'{i:03}.jpg', image)
    PIL.Image.fromarray(mask).save(folder / 'masks' / f'{i:03}.png')


def open_split(folder: pathlib.Path) -> datasets.Split:
  """Prepares the folder and opens its records, as training does."""
  options = image_folders.data_options(folder)
  return datasets.open_dataset_split(options, 'train', str(folder / 'records'))


def training_transforms() -> dict[str, tuple[transforms.Transform, ...]]:
  """Returns the transforms of a training example of each method."""
  decode = transforms.Decode(image_folders.CLASSES)
  flip = transforms.RandomFlip()
  return {
    'plain crop': (decode, transforms.RandomCrop(CROP), flip),
    'ddep': (decode, transforms.InceptionCrop((512, 512)), flip),
    'u2pl': (
      decode,
      flip,
      transforms.RandomCrop(
        (513, 513), scales=(0.5, 2.0), balanced=True, centered=True
      ),
    ),
    **{
      name: (
        transforms.Decode(image_folders.CLASSES, keep=()),
        views.MultiCrop(groups),
      )
      for name, groups in PASS.items()
    },
  }


def alternatives(records: Sequence, name: str) -> dict[str, Sequence]:
  """Returns the data sets of torch that do the work of a method, by library."""
  augment = {
    'plain crop': input_alternatives.crop_with_cv2(CROP),
    'ddep': input_alternatives.crop_with_cv2((512, 512), area=(0.3, 1.0)),
    'u2pl': input_alternatives.crop_with_cv2((513, 513), scales=(0.5, 2.0)),
    **{n: input_alternatives.views_with_cv2(g) for n, g in PASS.items()},
  }[name]
  if name in PASS:  # Their masks are not read.
    records = [{'image': record['image']} for record in records]
  sides = {'cv2': input_alternatives.Cv2Examples(records, augment)}
  if importlib.util.find_spec('torchvision'):
    chosen = input_alternatives.torchvision_transforms(PASS)[name]
    sides['torchvision'] = input_alternatives.TorchvisionExamples(
      records, *chosen
    )
  return sides


def batches_of(
  split: datasets.Split, transform: transforms.Transform, threads: int
) -> Iterator:
  """Starts the loader of training; yields batches without end."""
  stream = loader.Stream(split.records, transform)
  reading = loader.ReadOptions(threads=threads, buffered=4 * threads, workers=0)
  made = loader.Loader({'': stream}, BATCH_SIZE, 0, reading)
  return made.start(0)


def loader_speed(
  split: datasets.Split,
  transform: transforms.Transform,
  threads: int,
  seconds: float,
) -> Speed:
  """Measures how fast the loader of training yields examples, once it is warm.

  Args:
    split: images to read.
    transform: transform of the training.
    threads: number of threads.
    seconds: duration of the measurement.
  """
  with batches_of(split, transform, threads) as batches:
    for _ in range(15):  # Until memory is allocated, which is kept.
      next(batches)
    return measure(lambda: len(next(batches)['mask']), seconds)


def bare_speed(
  records: Sequence, names: Sequence[str], threads: int, seconds: float
) -> Speed:
  """Measures cv2 that decodes bytes in memory.

  Args:
    records: encoded images and masks.
    names: the fields to decode.
    threads: number of threads.
    seconds: duration of the measurement.
  """
  flags = {'image': cv2.IMREAD_COLOR_RGB, 'label': cv2.IMREAD_UNCHANGED}

  def decode(record) -> int:
    for name in names:
      cv2.imdecode(np.frombuffer(record[name], np.uint8), flags[name])
    return 1

  with concurrent.futures.ThreadPoolExecutor(threads) as pool:
    return measure(lambda: sum(pool.map(decode, records)), seconds)


def torch_speed(examples: Sequence, threads: int, seconds: float) -> Speed:
  """Measures torch's DataLoader with as many processes."""
  from torch.utils import data

  loading = data.DataLoader(
    examples,
    BATCH_SIZE,
    shuffle=True,
    num_workers=threads,
    drop_last=True,
    persistent_workers=True,
  )

  def epoch() -> int:
    return BATCH_SIZE * sum(1 for _ in loading)

  epoch()
  return measure(epoch, seconds)


def measure(work: Callable[[], int], seconds: float) -> Speed:
  """Measures the speed of a function.

  Args:
    work: function that is called repeatedly, and returns a number of images.
    seconds: duration of the measurement.
  """
  start, cpu, count = time.perf_counter(), cpu_seconds(), 0
  while time.perf_counter() - start < seconds:
    count += work()
  elapsed, cpu = time.perf_counter() - start, cpu_seconds() - cpu
  return Speed(count / elapsed, 1000 * cpu / count)


def cpu_seconds() -> float:
  """Returns the CPU time of this process and of its workers."""
  process = psutil.Process()
  times = [each.cpu_times() for each in (process, *process.children())]
  return sum(each.user + each.system for each in times)


def parts(split: datasets.Split) -> dict[str, float]:
  """Measures each part on one thread, in milliseconds per image."""
  rng = np.random.default_rng(0)
  records = [split.records[i] for i in range(100)]
  milliseconds = {
    'read record': timed(lambda: [split.records[i] for i in range(100)]),
    'cv2 image': timed(
      lambda: [
        cv2.imdecode(np.frombuffer(r['image'], np.uint8), cv2.IMREAD_COLOR_RGB)
        for r in records
      ]
    ),
    'cv2 mask': timed(
      lambda: [
        cv2.imdecode(np.frombuffer(r['label'], np.uint8), cv2.IMREAD_UNCHANGED)
        for r in records
      ]
    ),
  }
  for name, (decode, *rest) in training_transforms().items():
    examples = [decode(record, rng) for record in records]
    for transform in rest:
      label = f'{name}: {type(transform).__name__}'
      # Default arguments bind the values of this iteration.
      milliseconds[label] = timed(
        lambda transform=transform, examples=examples: [
          transform(example, rng) for example in examples
        ]
      )
      examples = [transform(example, rng) for example in examples]
    milliseconds[f'{name}: batch'] = timed(
      lambda examples=examples: [
        loader.stack_examples(examples[i : i + BATCH_SIZE])
        for i in range(0, len(examples), BATCH_SIZE)
      ]
    )
  return milliseconds


def timed(work: Callable[[], object], count: int = 100) -> float:
  """Measures milliseconds per image: the fastest of three calls."""
  best = float('inf')
  for _ in range(3):
    start = time.perf_counter()
    work()
    best = min(best, time.perf_counter() - start)
  return 1000 * best / count


def memory(
  split: datasets.Split, threads: int, count: int
) -> list[tuple[int, float]]:
  """Records the resident memory, in MiB, ten times along `count` batches."""
  process, sizes = psutil.Process(), []
  progress = console.ProgressLine('memory', 0, count, BATCH_SIZE)
  transform = transforms.Compose(training_transforms()['plain crop'])
  with batches_of(split, transform, threads) as batches:
    for i in range(1, count + 1):
      next(batches)
      if i % max(count // 10, 1) == 0:
        sizes.append((i, process.memory_info().rss / 2**20))
        progress.report(i, {'megabytes': sizes[-1][1]})
  return sizes


def main(argv: Sequence[str]) -> None:
  """Runs the comparison and prints it."""
  arguments = command_line.parse(
    argv, __doc__, threads=2, rounds=5, seconds=4.0, batches=5000, only=''
  )
  cv2.setNumThreads(0)
  with tempfile.TemporaryDirectory() as temporary:
    folder = pathlib.Path(temporary) / 'photographs'
    make_folder(folder)
    split = open_split(folder)
    records = [split.records[i] for i in range(len(split))]
    result: dict = {'threads': arguments.threads, 'methods': {}}
    chain = {
      name: transforms.Compose(steps)
      for name, steps in training_transforms().items()
      if arguments.only in name
    }
    given = (arguments.threads, arguments.seconds)
    for name, transform in chain.items():
      read = ('image',) if name in PASS else ('image', 'label')
      rows = []
      for number in range(arguments.rounds):
        row = {
          'bare': bare_speed(records, read, *given),
          'loader': loader_speed(split, transform, *given),
        }
        if importlib.util.find_spec('torch'):
          for library, examples in alternatives(records, name).items():
            row[library] = torch_speed(examples, *given)
        rows.append(row)
        shown = '  '.join(
          f'{side} {speed.rate:.0f}, {speed.cpu:.2f}'
          for side, speed in row.items()
        )
        print(
          f'{name}: round {number + 1}/{arguments.rounds}, images/s and ms of '
          f'CPU time an image: {shown}'
        )
      result['methods'][name] = summary(rows)
    result['milliseconds_an_image'] = parts(split)
    for name, value in result['milliseconds_an_image'].items():
      print(f'{name:28} {value:.2f} ms')
    result['megabytes'] = memory(split, arguments.threads, arguments.batches)
  for name, method in result['methods'].items():
    print(f'{name}: {sentence(method)}')
  lines = [
    command_line.Line(
      f'input, {name}',
      f'{method["images_a_second"]:.0f} images/s',
      *(
        ('torch DataLoader', 1 / method['ratio_to_torchvision'])
        if 'ratio_to_torchvision' in method
        else ('cv2 decoding alone', 1 / method['share_of_bare_decoding'])
      ),
    )
    for name, method in result['methods'].items()
  ]
  command_line.write_results(arguments.out, result, lines)


def summary(rows: Sequence[dict[str, Speed]]) -> dict:
  """Computes the medians of the rounds and their range."""
  share = [row['loader'].rate / row['bare'].rate for row in rows]
  result = {
    'rounds': [
      {side: speed._asdict() for side, speed in row.items()} for row in rows
    ],
    'images_a_second': statistics.median(row['loader'].rate for row in rows),
    'share_of_bare_decoding': statistics.median(share),
    'least_and_most': (min(share), max(share)),
    # Of CPU time: above 1 where the loader needs less of it.
    'cpu_ratios': {
      side: cpu_ratios(rows, side) for side in rows[0] if side != 'loader'
    },
  }
  for name in ('cv2', 'torchvision'):
    if name in rows[0]:
      ratios = [row['loader'].rate / row[name].rate for row in rows]
      result[f'ratio_to_{name}'] = statistics.median(ratios)
  return result


def cpu_ratios(rows: Sequence[dict[str, Speed]], side: str) -> list[float]:
  """Computes least, median and largest ratio of a side's CPU time."""
  ratios = sorted(row[side].cpu / row['loader'].cpu for row in rows)
  return [ratios[0], statistics.median(ratios), ratios[-1]]


def sentence(result: dict) -> str:
  """Formats a summary as a sentence."""
  ratios = [
    f'{result[f"ratio_to_{name}"]:.2f} times a DataLoader with {name}'
    for name in ('cv2', 'torchvision')
    if f'ratio_to_{name}' in result
  ]
  cpu = [
    f'{low:.2f} to {high:.2f} of {side}'
    for side, (low, _, high) in result['cpu_ratios'].items()
  ]
  return (
    f'{result["images_a_second"]:.0f} images/s, '
    f'{", ".join([command_line.format_decoding_share(result), *ratios])}; '
    f'by CPU time {", ".join(cpu)}'
  )


if __name__ == '__main__':
  main(sys.argv[1:])
