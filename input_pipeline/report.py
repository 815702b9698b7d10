"""A picture about a data set: class frequencies, and images with labels."""

import pathlib
from collections.abc import Mapping, Sequence

import numpy as np
from etils import epy
from jaxtyping import UInt8

from input_pipeline import overlays
from input_pipeline.sources import class_counts, records

with epy.lazy_imports():
  import matplotlib.figure

NUM_SAMPLES = 8
# The names of more classes than these are not legible under their bars.
_MAX_NAMES = 60
_COLUMNS = 4


def overlay_label_colors(
  sample: records.Sample, palette: Sequence[tuple[int, int, int]]
) -> UInt8[np.ndarray, 'H W 3']:
  """Overlays an image with the colors of its class ids, except where ignored.

  Args:
    sample: image with a label; without a label its pixels are returned.
    palette: RGB color of each class id, 0 to 255.
  """
  if sample.label is None:
    return sample.pixels
  return overlays.draw_outlined_overlay(sample.pixels, sample.label, palette)


def draw_dataset_report(
  path: pathlib.Path,
  title: str,
  counts: Mapping[str, class_counts.ClassCounts],
  schema: records.Schema,
  samples: Sequence[records.Sample],
) -> None:
  """Draws the class frequencies and some samples as a PNG file.

  Args:
    path: path of the PNG file.
    title: name of the data set.
    counts: numbers of images and labeled pixels of each split, by its name.
    schema: names and colors of the classes.
    samples: images to show.
  """
  rows = -(-len(samples) // _COLUMNS)
  figure = matplotlib.figure.Figure(
    figsize=(12, 3 + 2.6 * rows), layout='constrained'
  )
  sizes = [f'{split} {c.num_images:,}' for split, c in counts.items()]
  figure.suptitle(f'{title}: {", ".join(sizes)} images', parse_math=False)
  above, below = figure.subfigures(2, 1, height_ratios=(3, 2.6 * rows))
  if schema.classes:
    _draw_frequencies(above.subplots(), counts, schema)
  axes = below.subplots(rows, _COLUMNS, squeeze=False).ravel()
  for axis in axes:
    axis.set_axis_off()
  for axis, sample in zip(axes, samples, strict=False):
    axis.imshow(overlay_label_colors(sample, schema.palette))
    names = [schema.classes[i] for i in sample.tags]
    shown = ', '.join(names[:4]) + (' …' if len(names) > 4 else '')
    axis.set_title(f'{sample.id}\n{shown}', fontsize=7, parse_math=False)
  figure.savefig(path, dpi=110, format='png')


def _draw_frequencies(
  axis,
  counts: Mapping[str, class_counts.ClassCounts],
  schema: records.Schema,
) -> None:
  """Draws the share of each class in pixels or, without masks, in images."""
  labeled = {n: c for n, c in counts.items() if sum(c.pixels)}
  frequencies = {n: c.pixels for n, c in labeled.items()} or {
    n: c.images for n, c in counts.items()
  }
  unit = 'labeled pixels' if labeled else 'images'
  first = np.array(next(iter(frequencies.values())))
  order = np.argsort(-first, kind='stable')
  named = len(order) <= _MAX_NAMES
  positions = np.arange(len(order))
  width = 0.8 / len(frequencies)
  for i, (split, values) in enumerate(frequencies.items()):
    share = np.array(values)[order] / max(sum(values), 1)
    axis.bar(positions + i * width, share, width, label=split)
  if any(map(sum, frequencies.values())):
    axis.set_yscale('log')
  axis.set_ylabel(f'share of {unit}')
  axis.legend(fontsize=8)
  if named:
    names = [schema.classes[i] for i in order]
    axis.set_xticks(
      positions + 0.4 - width / 2,
      names,
      rotation=60,
      ha='right',
      parse_math=False,
    )
    axis.tick_params(axis='x', labelsize=7, pad=9)
    # The colors of the classes in the pictures below.
    axis.scatter(
      positions + 0.4 - width / 2,
      [-0.04] * len(order),
      marker='s',
      c=np.array([schema.palette[i] for i in order]) / 255,
      edgecolors='gray',
      transform=axis.get_xaxis_transform(),
      clip_on=False,
    )
  else:
    axis.set_xlabel(f'{len(order)} classes, from frequent to rare')
