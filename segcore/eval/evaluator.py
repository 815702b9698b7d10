"""Evaluation of a split: every image exactly once, on any number of hosts.

  predictions = Predictions(split, predictor, …)
  evaluator = Evaluator(predictions, (ConfusionMatrix.empty(9),), 'label')
  values = evaluator(state).values       # {'miou': 0.61, …, 'iou': array}

Images of one group (see `inference.Group`) share batches and compiled programs.
What is outside of an image on its canvas is cut off before anything is counted.
"""

import collections
import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import grain
import jax
import numpy as np
from jax.sharding import Mesh

from input_pipeline import datasets, splits, transforms
from input_pipeline import loader as loader_lib
from runtime import console, errors, progress
from segcore.distributed import sharding
from segcore.eval import inference, panels
from segcore.eval import metrics as metrics_lib
from segcore.train import tensorboard, train_state


class PlannedBatch(NamedTuple):
  """One batch of an evaluation.

  Attributes:
    group: of its images.
    indices: records of the split; -1 where a row only fills the batch.
  """

  group: inference.Group
  indices: tuple[int, ...]


def plan_batches(
  sizes: Sequence[tuple[int, int]],
  batch_size: int,
  group: Callable[[tuple[int, int]], inference.Group],
) -> list[PlannedBatch]:
  """Divides images by group into full batches.

  Args:
    sizes: (height, width) of each image.
    batch_size: rows of a batch.
    group: of a size.
  """
  of_size = {size: group(size) for size in set(sizes)}
  groups = collections.defaultdict(list)
  for index, size in enumerate(sizes):
    groups[of_size[size]].append(index)
  batches = []
  for found, indices in sorted(groups.items()):
    filled = [*indices, *[-1] * (-len(indices) % batch_size)]
    batches += [
      PlannedBatch(found, tuple(filled[i : i + batch_size]))
      for i in range(0, len(filled), batch_size)
    ]
  return batches


@functools.lru_cache(maxsize=8)
def _placed(rows: jax.sharding.NamedSharding) -> Callable:
  """Moves rows to where they belong; one program for all evaluations."""
  return jax.jit(lambda found: found, out_shardings=rows)


@dataclasses.dataclass(frozen=True, eq=False)
class Predictions:
  """What a predictor finds in each image of a split, each image once.

  Attributes:
    split: the images.
    predictor: how the network is applied.
    batch_size: global number of rows.
    mesh: the devices.
    keep: kinds of label that the examples have: 'label', 'tags'.
    reading: its threads; no worker processes are used.
    log_progress: whether to print progress lines.
    padding: what each image and its label are put into before; the frame counts
      like the image then.
  """

  split: datasets.Split
  predictor: inference.Predictor
  batch_size: int
  mesh: Mesh
  keep: tuple[str, ...] = ()
  reading: loader_lib.ReadOptions = loader_lib.ReadOptions()
  log_progress: bool = False
  padding: transforms.CenterCrop | None = None

  def __post_init__(self):
    sharding.check_batch_size(
      self.batch_size, self.mesh, 'batch_size of evaluation'
    )

  def __call__(
    self, state: train_state.TrainState
  ) -> Iterator[tuple[np.ndarray, transforms.Example]]:
    """Pairs of prediction and example, for the images of this host.

    All hosts must go through to the end. The order is that of the plan. Maps
    over the canvas are cut to the image.
    """
    put = sharding.make_put_batch(self.mesh)
    shown = console.ProgressLine(
      f'evaluating {self.split.name}', 0, len(self._plan), self.batch_size
    )
    # In threads: what a predictor holds does not travel to other processes.
    reading = dataclasses.replace(self.reading, workers=0)
    iterator = reading.iterate(self._batches)
    try:
      for done, batch in enumerate(iterator, start=1):
        progress.record_activity(f'batch {done} of {self.split.name}')
        found = self.predictor(state, put(batch['inputs']))
        rows = sharding.local_rows(self._by_rows(found))
        canvas = batch['group'].padded_size
        for prediction, example in zip(rows, batch['examples'], strict=True):
          if example is None:
            continue
          if prediction.shape[:2] == canvas:
            height, width = example['size']
            prediction = prediction[:height, :width]
          yield prediction, example
        if self.log_progress and (done == len(self._plan) or done % 20 == 0):
          shown.report(done, {})
    finally:
      iterator.close()

  def local_count(self) -> int:
    """Number of images that this host predicts."""
    return sum(
      i >= 0 for planned in self._plan for i in planned.indices[self._mine]
    )

  @property
  def _by_rows(self) -> Callable:
    return _placed(sharding.batch_sharding(self.mesh))

  @functools.cached_property
  def _plan(self) -> list[PlannedBatch]:
    sizes = self.split.sizes()
    if self.padding:
      height, width = self.padding.size
      larger = next((s for s in sizes if s[0] > height or s[1] > width), None)
      if larger is not None:
        raise errors.UserError(
          f'{self.split.name}: found an image of {larger[0]} x {larger[1]}, '
          f'expected at most the frame of {height} x {width}'
        )
      sizes = [self.padding.size] * len(sizes)
    return plan_batches(sizes, self.batch_size, self.predictor.group)

  @functools.cached_property
  def _mine(self) -> slice:
    part = loader_lib.ProcessShard()
    rows = part.rows(self.batch_size)
    return slice(part.index * rows, (part.index + 1) * rows)

  @functools.cached_property
  def _batches(self) -> grain.MapDataset:
    decode = transforms.Decode(len(self.split.classes), self.keep)
    records = self.split.records

    def read(index: int) -> transforms.Example:
      example = decode(records[index])
      if self.padding is None:
        return example
      size = np.asarray(self.padding.size, np.int32)
      return {**self.padding(example), 'size': size}

    def load(planned: PlannedBatch) -> dict[str, Any]:
      examples = [
        read(i) if i >= 0 else None for i in planned.indices[self._mine]
      ]
      images = [example and example['image'] for example in examples]
      return {
        'inputs': self.predictor.prepare(images, planned.group),
        'group': planned.group,
        'examples': examples,
      }

    return grain.MapDataset.source(self._plan).map(load)


@dataclasses.dataclass(frozen=True, eq=False)
class Evaluator:
  """Counts how well predictions agree with labels.

  Attributes:
    predictions: of all images of a split; they keep the target.
    metrics: empty; each is updated with (prediction, target, id) of each image.
    target: key of what the metrics compare with: 'label' or 'tags'.
    num_pictures: images of which a panel is drawn, where predictions are maps.
  """

  predictions: Predictions
  metrics: tuple[metrics_lib.Metric, ...]
  target: str
  num_pictures: int = 0

  def __call__(self, state: train_state.TrainState) -> 'Evaluation':
    """Evaluates the state; the same values on every host.

    The panel shows images of this host.

    Raises:
      ValueError: two metrics give a value of the same name.
    """
    counted = list(self.metrics)
    drawn = []
    chosen = splits.evenly_spaced(
      self.predictions.local_count(), self.num_pictures
    )
    for i, (prediction, example) in enumerate(self.predictions(state)):
      for k, metric in enumerate(counted):
        target = example[self.target]
        counted[k] = metric.update(prediction, target, example['id'])
      if i in chosen:
        drawn.append(
          panels.Example(example['image'], example['label'], prediction)
        )
    values: dict[str, float | np.ndarray] = {}
    for metric in counted:
      for name, value in (
        metrics_lib.merge_across_hosts(metric).compute().items()
      ):
        if name in values:
          raise ValueError(f'two metrics give a value named {name!r}')
        values[name] = value
    split = self.predictions.split
    panel = None
    if drawn:
      panel = panels.draw_panels(drawn, split.classes, split.palette)
    return Evaluation(values, panel)


class Evaluation(NamedTuple):
  """What an evaluation found.

  Attributes:
    values: of all metrics, by name.
    panel: input, label, prediction and error of some images, or None.
  """

  values: metrics_lib.Values
  panel: np.ndarray | None


def combine_summaries(
  *looks: Callable[[train_state.TrainState], tensorboard.Summaries],
) -> Callable[[train_state.TrainState], tensorboard.Summaries]:
  """One function for several, whose tags differ."""

  def look(state: train_state.TrainState) -> tensorboard.Summaries:
    found = [each(state) for each in looks]
    return tensorboard.Summaries(
      {tag: value for each in found for tag, value in each.scalars.items()},
      {tag: image for each in found for tag, image in each.images.items()},
    )

  return look


def combine_evaluators(
  evaluators: Mapping[str, Evaluator],
) -> Callable[[train_state.TrainState], tensorboard.Summaries]:
  """One function for several splits: scalars named '<split>/<metric>'."""

  def evaluate(state: train_state.TrainState) -> tensorboard.Summaries:
    found = {split: each(state) for split, each in evaluators.items()}
    return tensorboard.Summaries(
      {
        f'{split}/{name}': value
        for split, evaluated in found.items()
        for name, value in scalars(evaluated.values).items()
      },
      {
        f'{split}/panels': evaluated.panel
        for split, evaluated in found.items()
        if evaluated.panel is not None
      },
    )

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
