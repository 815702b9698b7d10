"""Evaluation of a split: every image exactly once, on any number of hosts.

  evaluator = Evaluator(Predictions(split, predict, …), metric, 'label')
  values = evaluator(state)              # {'miou': 0.61, …, 'iou': array}

Images are padded at the bottom and at the right, by reflection, to a multiple
of the network's stride. Images of equal padded size share batches and a
compiled program; what was padded is cut off before anything is counted.
"""

import collections
import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import cv2
import grain
import jax
import numpy as np
from jax.sharding import Mesh

from input_pipeline import datasets, transforms
from input_pipeline import loader as loader_lib
from segcore import inference, journal, sharding
from segcore import method as method_lib
from segcore import metrics as metrics_lib


class PlannedBatch(NamedTuple):
  """One batch of an evaluation.

  Attributes:
    canvas: (height, width) to which its images are padded.
    indices: records of the split; -1 where a row only fills the batch.
  """

  canvas: tuple[int, int]
  indices: tuple[int, ...]


def plan(
  sizes: Sequence[tuple[int, int]], batch_size: int, multiple: int
) -> list[PlannedBatch]:
  """Groups images by padded size into full batches.

  Args:
    sizes: (height, width) of each image.
    batch_size: rows of a batch.
    multiple: what the padded height and width are multiples of.
  """
  groups = collections.defaultdict(list)
  for index, size in enumerate(sizes):
    groups[tuple(-(-n // multiple) * multiple for n in size)].append(index)
  batches = []
  for canvas, indices in sorted(groups.items()):
    filled = [*indices, *[-1] * (-len(indices) % batch_size)]
    batches += [
      PlannedBatch(canvas, tuple(filled[i : i + batch_size]))
      for i in range(0, len(filled), batch_size)
    ]
  return batches


def pad(image: np.ndarray, canvas: tuple[int, int]) -> np.ndarray:
  """Pads at the bottom and right by reflection to `canvas`."""
  bottom, right = (n - m for n, m in zip(canvas, image.shape[:2], strict=True))
  if not bottom and not right:
    return image
  return cv2.copyMakeBorder(image, 0, bottom, 0, right, cv2.BORDER_REFLECT)


@dataclasses.dataclass(frozen=True, eq=False)
class Predictions:
  """What a predictor finds in each image of a split, each image once.

  Attributes:
    split: the images.
    predict: pure; gets jitted.
    batch_size: global number of rows.
    multiple: padded heights and widths are multiples of it.
    mesh: the devices.
    keep: kinds of label that the examples have: 'label', 'tags'.
    reading: threads.
    show: whether to print progress lines.
  """

  split: datasets.Split
  predict: inference.Predictor
  batch_size: int
  multiple: int
  mesh: Mesh
  keep: tuple[str, ...] = ()
  reading: loader_lib.Reading = loader_lib.Reading()
  show: bool = False

  def __post_init__(self):
    sharding.check_batch(self.batch_size, self.mesh, 'batch_size of evaluation')

  def __call__(
    self, state: method_lib.TrainState
  ) -> Iterator[tuple[np.ndarray, transforms.Example]]:
    """Pairs of prediction and example, for the images of this host.

    All hosts must go through to the end. The order is that of the plan. Maps
    over the padded image are cut to the image.
    """
    put = sharding.put_batch(self.mesh)
    progress = journal.Progress(
      f'evaluating {self.split.name}', 0, len(self._plan), self.batch_size
    )
    iterator = self.reading.iterate(self._batches)
    try:
      for done, batch in enumerate(iterator, start=1):
        found = sharding.local_rows(self._jitted(state, put(batch['image'])))
        canvas = batch['image'].shape[1:3]
        for prediction, example in zip(found, batch['examples'], strict=True):
          if example is None:
            continue
          if prediction.shape[:2] == canvas:
            height, width = example['size']
            prediction = prediction[:height, :width]
          yield prediction, example
        if self.show and (done == len(self._plan) or done % 20 == 0):
          progress.line(done, {})
    finally:
      iterator.close()

  @functools.cached_property
  def _jitted(self) -> Callable:
    rows = sharding.batch_sharding(self.mesh)
    return jax.jit(self.predict, out_shardings=rows)

  @functools.cached_property
  def _plan(self) -> list[PlannedBatch]:
    return plan(self.split.sizes(), self.batch_size, self.multiple)

  @functools.cached_property
  def _batches(self) -> grain.MapDataset:
    part = loader_lib.Part()
    rows = part.rows(self.batch_size)
    mine = slice(part.index * rows, (part.index + 1) * rows)
    decode = transforms.Decode(len(self.split.classes), self.keep)
    records = self.split.records

    def load(planned: PlannedBatch) -> dict[str, Any]:
      examples = [
        decode(records[i]) if i >= 0 else None for i in planned.indices[mine]
      ]
      images = [
        np.zeros((*planned.canvas, 3), np.uint8)
        if example is None
        else pad(example['image'], planned.canvas)
        for example in examples
      ]
      return {'image': np.stack(images), 'examples': examples}

    return grain.MapDataset.source(self._plan).map(load)


@dataclasses.dataclass(frozen=True, eq=False)
class Evaluator:
  """Counts how well predictions agree with labels.

  Attributes:
    predictions: of all images of a split; they keep the target.
    metric: empty; updated with (prediction, target, id) of each image.
    target: key of what the metric compares with: 'label' or 'tags'.
  """

  predictions: Predictions
  metric: metrics_lib.Metric
  target: str

  def __call__(self, state: method_lib.TrainState) -> metrics_lib.Values:
    """Evaluates the state; the same values on every host."""
    metric = self.metric
    for prediction, example in self.predictions(state):
      metric = metric.update(prediction, example[self.target], example['id'])
    return metrics_lib.merge_across_hosts(metric).compute()


def together(
  evaluators: Mapping[str, Evaluator],
) -> Callable[[method_lib.TrainState], dict[str, float]]:
  """One function for several splits: the state to '<split>/<metric>'."""

  def evaluate(state: method_lib.TrainState) -> dict[str, float]:
    return {
      f'{split}/{name}': value
      for split, evaluator in evaluators.items()
      for name, value in scalars(evaluator(state)).items()
    }

  return evaluate


def to_json(
  values: metrics_lib.Values, split: datasets.Split
) -> dict[str, Any]:
  """Values of a split as `results.json` holds them; NaN becomes null."""

  def number(value: float) -> float | None:
    return None if np.isnan(value) else float(value)

  scalars = {n: number(v) for n, v in values.items() if not np.ndim(v)}
  arrays = {n: v for n, v in values.items() if np.ndim(v)}
  return {
    'split': split.name,
    'num_images': len(split),
    'metrics': scalars,
    'per_class': {
      name: dict(zip(split.classes, map(number, value), strict=True))
      for name, value in arrays.items()
    },
  }


def scalars(values: metrics_lib.Values) -> dict[str, float]:
  """The values that are numbers."""
  return {n: float(v) for n, v in values.items() if not np.ndim(v)}
