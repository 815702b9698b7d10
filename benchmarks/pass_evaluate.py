"""Compares the metric of ImageNet-S with a loop over classes; times files.

  python benchmarks/pass_evaluate.py [--images=100] [--classes=919] [--rounds=5]
      [--files=1000] [--out=FILE.json]

Label maps of 500 x 375 pixels are drawn, with few and with many predicted ids.
The plain loop computes a mask, its erosion by cv2 and counts for each id of an
image. Both sides alternate on one thread and must agree. Then a folder of PNG
files is scored as the command line does, with the memory of the process
recorded, and the Hungarian matching is timed.
"""

import math
import os
import pathlib
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence

import command_line
import cv2
import numpy as np
import psutil

from pass_luss.benchmark import evaluate, matching, metrics, png_format

SIZE = (375, 500)
FEW, MANY = 5, 50
MEGABYTE = 2**20
MEGAPIXEL = 1e6

Pair = tuple[np.ndarray, np.ndarray]


def draw(rng: np.random.Generator, regions: int, ids: np.ndarray) -> np.ndarray:
  """Draws a map of smooth regions, each of one of the ids."""
  fields = rng.random((regions, 6, 8)).astype(np.float32)
  grown = [cv2.resize(field, SIZE[::-1], interpolation=3) for field in fields]
  return rng.choice(ids, regions)[np.argmax(grown, axis=0)]


def make_pairs(count: int, num_classes: int, regions: int) -> list[Pair]:
  """Draws predictions, and labels of two classes, 'other' and ignored."""
  rng = np.random.default_rng(0)
  pairs = []
  for _ in range(count):
    classes = rng.choice(num_classes, 2) + 1
    label = draw(rng, 6, np.array([-1, 0, 0, *classes]))
    # Half of the pixels are correct.
    prediction = draw(rng, regions, np.arange(num_classes + 1))
    right = draw(rng, 4, np.array([0, 1])) > 0
    prediction = np.where(right, np.maximum(label, 0), prediction)
    pairs.append((prediction.astype(np.int32), label.astype(np.int16)))
  return pairs


def fast(pairs: Sequence[Pair], num_classes: int) -> dict[str, float]:
  """Computes all values by the metric."""
  total = metrics.ImageNetS.empty(num_classes)
  for prediction, label in pairs:
    total = total.update(prediction, label, 'image')
  return {n: v for n, v in total.compute().items() if not np.ndim(v)}


def plain(pairs: Sequence[Pair], num_classes: int) -> dict[str, float]:
  """Computes all values by loops over the ids of each image."""
  side = num_classes + 1
  counts = {
    (kind, size): np.zeros((3, side), np.int64)
    for kind in ('miou', 'boundary_miou')
    for size in ('', *metrics.SIZES)
  }
  occurs = {size: np.zeros(side, bool) for size in metrics.SIZES}
  right, f_beta = 0, 0.0

  def add(kind: str, size: str, p: np.ndarray, t: np.ndarray) -> None:
    count = counts[kind, size]
    count[0] += np.bincount(t[(t == p) & (t >= 0)], minlength=side)
    count[1] += np.bincount(p[p >= 0], minlength=side)
    count[2] += np.bincount(t[t >= 0], minlength=side)

  for prediction, label in pairs:
    valid = label >= 0
    edges = plain_boundaries(prediction)[valid], plain_boundaries(label)[valid]
    p, t = prediction[valid], label[valid]
    add('miou', '', p, t)
    add('boundary_miou', '', *edges)
    areas = np.bincount(p, minlength=side)
    best = 1 + int(areas[1:].argmax())
    right += bool(areas[best] and (t == best).any())
    both = np.count_nonzero((p > 0) & (t > 0))
    if both:
      precision = both / np.count_nonzero(p)
      recall = both / np.count_nonzero(t)
      f_beta += 1.3 * precision * recall / (0.3 * precision + recall)
    members: dict[str, list[int]] = {size: [] for size in metrics.SIZES}
    for c in np.unique(t[t > 0]):
      share = math.ceil(100 * np.count_nonzero(t == c) / t.size)
      sizes = dict(zip((5, 25, 50, 100), metrics.SIZES, strict=True))
      members[sizes[min(most for most in sizes if share <= most)]].append(c)
    for size, classes in members.items():
      if classes:
        kept = np.isin(t, [0, *classes])
        add('miou', size, p[kept], t[kept])
        add('boundary_miou', size, *(edge[kept] for edge in edges))
        occurs[size] |= np.bincount(t[kept], minlength=side) > 0
  iou = {}
  for key, (both, predicted, labeled) in counts.items():
    iou[key] = both / (predicted + labeled - both + 1e-10)
  return {
    'miou': iou['miou', ''].mean(),
    'miou_without_other': iou['miou', ''][1:].mean(),
    'boundary_miou': iou['boundary_miou', ''].mean(),
    'image_accuracy': right / len(pairs),
    'f_beta': f_beta / len(pairs),
    **{
      f'{kind}_{size}': (
        iou[kind, size][present].mean() if present.any() else float('nan')
      )
      for size, present in occurs.items()
      for kind in ('miou', 'boundary_miou')
    },
  }


def plain_boundaries(ids: np.ndarray) -> np.ndarray:
  """Returns ids on boundaries and -1 inside, with an erosion for each id."""
  times = max(1, round(0.03 * math.hypot(*ids.shape)))
  boundaries = np.full(ids.shape, -1, np.int64)
  for c in np.unique(ids):
    mask = (ids == c).astype(np.uint8)
    padded = cv2.copyMakeBorder(mask, 1, 1, 1, 1, cv2.BORDER_CONSTANT, value=0)
    eroded = cv2.erode(padded, np.ones((3, 3), np.uint8), iterations=times)
    boundaries[(mask > 0) & (eroded[1:-1, 1:-1] == 0)] = c
  return boundaries


def seconds(function: Callable[[], object]) -> float:
  """Measures the seconds of one call."""
  start = time.perf_counter()
  function()
  return time.perf_counter() - start


def compare(pairs: Sequence[Pair], num_classes: int, rounds: int) -> dict:
  """Measures megapixels/s of both sides in turns."""
  ours, theirs = fast(pairs, num_classes), plain(pairs, num_classes)
  for name, value in theirs.items():
    np.testing.assert_allclose(ours[name], value, rtol=1e-9, err_msg=name)
  megapixels = len(pairs) * math.prod(SIZE) / MEGAPIXEL
  rows = []
  for _ in range(rounds):
    row = {'plain': seconds(lambda: plain(pairs, num_classes))}
    row['ours'] = seconds(lambda: fast(pairs, num_classes))
    rows.append({name: megapixels / value for name, value in row.items()})
  ratios = [row['ours'] / row['plain'] for row in rows]
  return {
    'ids_a_prediction': statistics.mean(len(np.unique(p)) for p, _ in pairs),
    'rounds': rows,
    'megapixels_a_second': statistics.median(row['ours'] for row in rows),
    'of_plain': statistics.median(row['plain'] for row in rows),
    'times_faster': statistics.median(ratios),
    'least_and_most': (min(ratios), max(ratios)),
  }


def score_files(pairs: Sequence[Pair], num_classes: int, count: int) -> dict:
  """Scores a folder of PNG files in threads; records memory 10 times."""
  process = psutil.Process()
  with tempfile.TemporaryDirectory() as temporary:
    folder = pathlib.Path(temporary)
    for i in range(count):
      prediction, label = pairs[i % len(pairs)]
      png_format.write_imagenet_s_png(
        folder / 'gt' / 'n0' / f'{i:06}.png', label
      )
      png_format.write_imagenet_s_png(
        folder / 'pred' / 'n0' / f'{i:06}.png', prediction
      )
    folders = evaluate.FolderPair.from_folders(
      folder / 'gt', folder / 'pred', num_classes, num_classes
    )
    memory = []
    total = metrics.ImageNetS.empty(num_classes)
    start = time.perf_counter()
    counted = folders.map(
      lambda p, t, name: metrics.count_imagenet_s_image(
        p, t, name, num_classes
      ),
      'scoring',
    )
    for i, one in enumerate(counted):
      total = total.merge(one)
      if i % max(1, count // 10) == 0:
        memory.append(process.memory_info().rss / MEGABYTE)
    took = time.perf_counter() - start
  return {
    'files': count,
    'megapixels_a_second': count * math.prod(SIZE) / MEGAPIXEL / took,
    'memory_in_mebibytes': memory,
  }


def match(num_classes: int) -> float:
  """Measures the Hungarian method on counts like those of val."""
  rng = np.random.default_rng(0)
  counts = rng.poisson(0.1, (num_classes, num_classes))
  shuffled = rng.permutation(num_classes)
  counts[np.arange(num_classes), shuffled] += rng.poisson(2, num_classes)
  cooccurrence = matching.Cooccurrence(counts.astype(np.int64))
  return min(seconds(cooccurrence.match) for _ in range(3))


def sentence(name: str, result: dict) -> str:
  """Formats a comparison as a sentence."""
  return (
    f'{name} ({result["ids_a_prediction"]:.0f} ids a prediction): '
    f'{result["megapixels_a_second"]:.1f} megapixels/s, plain loop '
    f'{result["of_plain"]:.1f}: {result["times_faster"]:.1f} times faster '
    f'({command_line.format_range(result, ".1f")})'
  )


def main(argv: Sequence[str]) -> None:
  """Runs the comparison and prints it."""
  arguments = command_line.parse(
    argv, __doc__, images=100, classes=919, rounds=5, files=1000
  )
  cv2.setNumThreads(0)
  result: dict[str, dict | float] = {}
  for name, regions in (('few', FEW), ('many', MANY)):
    pairs = make_pairs(arguments.images, arguments.classes, regions)
    result[name] = compare(pairs, arguments.classes, arguments.rounds)
    print(sentence(name, result[name]), flush=True)
  result['files'] = score_files(pairs, arguments.classes, arguments.files)
  memory = result['files']['memory_in_mebibytes']
  print(
    f'{arguments.files:,} pairs of files on {os.cpu_count()} cores: '
    f'{result["files"]["megapixels_a_second"]:.1f} megapixels/s; memory '
    f'{min(memory[1:]):.0f} to {max(memory[1:]):.0f} MiB'
  )
  result['seconds_of_matching'] = match(arguments.classes)
  print(
    f'Hungarian matching of {arguments.classes} classes: '
    f'{1000 * result["seconds_of_matching"]:.0f} ms'
  )
  lines = [
    command_line.Line(
      f"ImageNet-S's metrics, {name} ids a prediction",
      f'{result[name]["megapixels_a_second"]:.0f} megapixels/s',
      'numpy, id by id',
      1 / result[name]['times_faster'],
      command_line.inverse(result[name]['least_and_most']),
    )
    for name in ('few', 'many')
  ]
  command_line.write_results(arguments.out, result, lines)


if __name__ == '__main__':
  main(sys.argv[1:])
