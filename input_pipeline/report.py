"""One page about a data set: class frequencies, images with labels."""

import pathlib
from collections.abc import Mapping, Sequence

import matplotlib.figure
import numpy as np
from jaxtyping import UInt8

from input_pipeline.sources import class_counts, records

NUM_SAMPLES = 8
# More names than these cannot be read under their bars.
_MOST_NAMES = 60
_COLUMNS = 4


def painted(
  sample: records.Sample, palette: Sequence[tuple[int, int, int]]
) -> UInt8[np.ndarray, 'H W 3']:
  """The image with its label laid over; ignored pixels are left as they are."""
  if sample.label is None:
    return sample.pixels
  colors = np.array(palette, np.uint8)[np.maximum(sample.label, 0)]
  mixed = (0.4 * sample.pixels + 0.6 * colors).astype(np.uint8)
  return np.where(sample.label[..., None] < 0, sample.pixels, mixed)


def draw(
  path: pathlib.Path,
  title: str,
  counts: Mapping[str, class_counts.ClassCounts],
  contents: records.Contents,
  samples: Sequence[records.Sample],
) -> None:
  """Writes the page as a PNG."""
  rows = -(-len(samples) // _COLUMNS)
  figure = matplotlib.figure.Figure(
    figsize=(12, 3 + 2.6 * rows), layout='constrained'
  )
  found = [f'{split} {c.num_images:,}' for split, c in counts.items()]
  figure.suptitle(f'{title}: {", ".join(found)} images', parse_math=False)
  above, below = figure.subfigures(2, 1, height_ratios=(3, 2.6 * rows))
  if contents.classes:
    _frequencies(above.subplots(), counts, contents)
  axes = below.subplots(rows, _COLUMNS, squeeze=False).ravel()
  for axis in axes:
    axis.set_axis_off()
  for axis, sample in zip(axes, samples, strict=False):
    axis.imshow(painted(sample, contents.palette))
    names = [contents.classes[i] for i in sample.tags]
    shown = ', '.join(names[:4]) + (' …' if len(names) > 4 else '')
    axis.set_title(f'{sample.id}\n{shown}', fontsize=7, parse_math=False)
  figure.savefig(path, dpi=110, format='png')


def _frequencies(
  axis,
  counts: Mapping[str, class_counts.ClassCounts],
  contents: records.Contents,
) -> None:
  """Share of the pixels of each class, or of the images without masks."""
  labeled = {n: c for n, c in counts.items() if sum(c.pixels)}
  of = {n: c.pixels for n, c in labeled.items()} or {
    n: c.images for n, c in counts.items()
  }
  unit = 'labeled pixels' if labeled else 'images'
  first = np.array(next(iter(of.values())))
  order = np.argsort(-first, kind='stable')
  named = len(order) <= _MOST_NAMES
  at = np.arange(len(order))
  width = 0.8 / len(of)
  for i, (split, values) in enumerate(of.items()):
    share = np.array(values)[order] / max(sum(values), 1)
    axis.bar(at + i * width, share, width, label=split)
  if any(map(sum, of.values())):
    axis.set_yscale('log')
  axis.set_ylabel(f'share of {unit}')
  axis.legend(fontsize=8)
  if named:
    names = [contents.classes[i] for i in order]
    axis.set_xticks(
      at + 0.4 - width / 2, names, rotation=60, ha='right', parse_math=False
    )
    axis.tick_params(axis='x', labelsize=7)
  else:
    axis.set_xlabel(f'{len(order)} classes, from frequent to rare')
