"""Evaluation of a split: every image exactly once, on any number of hosts.

  predictions = Predictions(split, predictor, …)
  evaluator = Evaluator(predictions, (ConfusionMatrix.empty(9),), 'label')
  values = evaluator(state).values       # {'miou': 0.61, …, 'iou': array}

Images of one group (see `inference.Group`) share batches and compiled programs.
Padding is cropped from a prediction before anything is counted.
"""

import collections
import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from etils import epy
from jax.sharding import Mesh

from input_pipeline import datasets, splits, transforms
from input_pipeline import loader as loader_lib
from runtime import console, errors, progress
from segcore.distributed import sharding
from segcore.eval import class_report, confusion_picture, inference, panels
from segcore.eval import metrics as metrics_lib
from segcore.train import tensorboard, train_state

with epy.lazy_imports():
  import grain


# Predictions of a batch up to this size wait on the devices while the next
# batch is computed; larger ones, probabilities of many classes, would fill the
# memory.
_MAX_WAITING_BYTES = 2**26


class PlannedBatch(NamedTuple):
  """One batch of an evaluation.

  Attributes:
    group: group of its images.
    indices: records of the split, one a row; -1 for an empty row.
  """

  group: inference.Group
  indices: tuple[int, ...]


def plan_evaluation_batches(
  sizes: Sequence[tuple[int, int]],
  batch_size: int,
  group: Callable[[tuple[int, int]], inference.Group],
  row_multiple: int = 1,
) -> list[PlannedBatch]:
  """Divides images by group into batches; empty rows complete the last ones.

  Args:
    sizes: (height, width) of each image.
    batch_size: most rows of a batch; all batches of one input have as many, so
      that they share a program.
    group: function from the size of an image to its group.
    row_multiple: number that divides the rows of a batch, of the devices.
  """
  group_by_size = {size: group(size) for size in set(sizes)}
  indices_by_group = collections.defaultdict(list)
  for index, size in enumerate(sizes):
    indices_by_group[group_by_size[size]].append(index)
  counts_by_input = collections.defaultdict(list)
  for image_group, indices in indices_by_group.items():
    counts_by_input[image_group.input_sizes].append(len(indices))
  batches = []
  for image_group, indices in sorted(indices_by_group.items()):
    rows = _choose_batch_rows(
      counts_by_input[image_group.input_sizes], batch_size, row_multiple
    )
    padded = [*indices, *[-1] * (-len(indices) % rows)]
    batches += [
      PlannedBatch(image_group, tuple(padded[i : i + rows]))
      for i in range(0, len(padded), rows)
    ]
  return batches


def _choose_batch_rows(
  counts: Sequence[int], batch_size: int, multiple: int
) -> int:
  """Returns the rows of all batches of one input: the batch size, or less.

  Folders of images of many sizes have few of each group, and empty rows take as
  long as others. A batch is charged a quarter of the largest one for being a
  batch, since accelerators need large ones.

  Args:
    counts: numbers of images of the groups of this input, which share a program
      of the network.
    batch_size: most rows of a batch.
    multiple: number that divides the rows.
  """
  choices, rows = [batch_size], batch_size
  while rows % 2 == 0 and rows // 2 % multiple == 0:
    rows //= 2
    choices.append(rows)

  def cost(rows: int) -> float:
    num_batches = sum(-(-count // rows) for count in counts)
    return num_batches * (rows + batch_size / 4)

  # The first, and so the largest, of equal ones.
  return min(choices, key=cost)


class Augmentation(NamedTuple):
  """Random geometry of the images of an evaluation, the same at every run.

  Attributes:
    transform: random crop with a `size`, as those of `transforms.CROPS`.
    seed: seeds; that of an image is followed by its index in the split.
  """

  transform: Any
  seed: tuple[int, ...]

  def apply(self, example: transforms.Example, index: int) -> Any:
    """Returns the crop of the image of this index in the split."""
    return self.transform(example, np.random.default_rng((*self.seed, index)))


@functools.lru_cache(maxsize=8)
def _make_resharding(rows: jax.sharding.NamedSharding) -> Callable:
  """Builds a function that shards arrays by rows.

  Cached, so that all evaluations share its compiled programs.
  """
  return jax.jit(lambda array: array, out_shardings=rows)


@dataclasses.dataclass(frozen=True, eq=False)
class Predictions:
  """Predictions for all images of a split, each image exactly once.

  Attributes:
    split: the images.
    predictor: predictor that applies the network.
    batch_size: most rows of a global batch.
    mesh: the devices.
    keep: kinds of labels to read with the images: 'label', 'tags'.
    reading: number of threads; worker processes are not used.
    log_progress: whether to print progress lines.
    padding: crop that pads each image and its label before prediction; the
      padding is evaluated like the image.
    augmentation: random crop of each image and its label before prediction; the
      crop is evaluated like an image.
  """

  split: datasets.Split
  predictor: inference.Predictor
  batch_size: int
  mesh: Mesh
  keep: tuple[str, ...] = ()
  reading: loader_lib.ReadOptions = loader_lib.ReadOptions()
  log_progress: bool = False
  padding: transforms.CenterCrop | None = None
  augmentation: Augmentation | None = None

  def __post_init__(self):
    sharding.check_batch_divides_devices(
      self.batch_size, self.mesh, 'batch_size of evaluation'
    )

  def __call__(
    self, state: train_state.TrainState
  ) -> Iterator[tuple[np.ndarray, transforms.Example]]:
    """Yields (prediction, example) for the images of this host.

    All hosts must iterate to the end, since each batch runs on all devices.
    Label maps are cropped to the image. The order of images is that of
    `plan_evaluation_batches`.
    """
    put = sharding.make_batch_sharder(self.mesh)
    progress_line = console.ProgressLine(
      f'evaluating {self.split.name}', 0, len(self._plan), self.batch_size
    )
    # In threads: predictors hold compiled programs, which cannot be pickled.
    reading = dataclasses.replace(self.reading, workers=0)
    iterator = reading.iterate(self._batches)
    try:
      waiting = None
      for done, batch in enumerate(iterator, start=1):
        progress.record_activity(f'batch {done} of {self.split.name}')
        outputs = self._shard_rows(self.predictor(state, put(batch['inputs'])))
        # The devices compute this batch while the host uses the one before.
        if waiting:
          yield from self._rows(*waiting)
          waiting = None
        if outputs.nbytes <= _MAX_WAITING_BYTES:
          waiting = batch, outputs
        else:
          yield from self._rows(batch, outputs)
        if self.log_progress and (done == len(self._plan) or done % 20 == 0):
          progress_line.report(done, {})
      if waiting:
        yield from self._rows(*waiting)
    finally:
      iterator.close()

  def _rows(
    self, batch: Mapping[str, Any], outputs: jax.Array
  ) -> Iterator[tuple[np.ndarray, transforms.Example]]:
    """Yields (prediction, example) of a batch, without padding."""
    rows = sharding.rows_of_this_host(outputs)
    padded_size = batch['group'].padded_size
    for prediction, example in zip(rows, batch['examples'], strict=True):
      if example is None:
        continue
      if prediction.shape[:2] == padded_size:
        height, width = example['size']
        prediction = prediction[:height, :width]
      if isinstance(self.predictor, inference.LabelMaps):
        prediction = self.predictor.conclude(prediction, example['image'])
      yield prediction, example

  def local_count(self) -> int:
    """Returns the number of images that this host predicts."""
    return sum(
      i >= 0 for planned in self._plan for i in self._local_indices(planned)
    )

  def _shard_rows(self, outputs: jax.Array) -> jax.Array:
    rows = sharding.batch_sharding(self.mesh)
    if outputs.sharding.is_equivalent_to(rows, outputs.ndim):
      return outputs
    return _make_resharding(rows)(outputs)

  @functools.cached_property
  def _plan(self) -> list[PlannedBatch]:
    sizes = self.split.sizes()
    if self.padding:
      height, width = self.padding.size
      larger = next((s for s in sizes if s[0] > height or s[1] > width), None)
      if larger is not None:
        raise errors.UserError(
          f'{self.split.name}: expected images of at most {height} x {width} '
          f'pixels, which they are padded to, got one of {larger[0]} x '
          f'{larger[1]}'
        )
      sizes = [self.padding.size] * len(sizes)
    if self.augmentation:
      sizes = [self.augmentation.transform.size] * len(sizes)
    return plan_evaluation_batches(
      sizes, self.batch_size, self.predictor.group, self.mesh.size
    )

  def _local_indices(self, planned: PlannedBatch) -> tuple[int, ...]:
    """Returns the records of a global batch that this host loads."""
    shard = loader_lib.ProcessShard()
    rows = shard.rows(len(planned.indices))
    return planned.indices[shard.index * rows : (shard.index + 1) * rows]

  @functools.cached_property
  def _batches(self) -> 'grain.MapDataset':
    decode = transforms.Decode(len(self.split.classes), self.keep)
    records = self.split.records

    def read(index: int) -> transforms.Example:
      example = decode(records[index])
      if self.augmentation is not None:
        example = self.augmentation.apply(example, index)
      if self.padding is not None:
        example = self.padding(example)
      size = np.asarray(example['image'].shape[:2], np.int32)
      return {**example, 'size': size}

    def load(planned: PlannedBatch) -> dict[str, Any]:
      examples = [
        read(i) if i >= 0 else None for i in self._local_indices(planned)
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
  """Computes metrics of the predictions for a split.

  Attributes:
    predictions: predictions for all images of the split, with the targets.
    metrics: empty metrics; each is updated with (prediction, target, id) of
      every image.
    target: key of the ground truth in an example: 'label' or 'tags'.
    num_pictures: number of images drawn in a panel; 0 unless predictions are
      label maps.
    class_subsets: ids of the classes of further means of IoU, by the name of
      the value; of label maps only.
  """

  predictions: Predictions
  metrics: tuple[metrics_lib.Metric, ...]
  target: str
  num_pictures: int = 0
  class_subsets: Mapping[str, tuple[int, ...]] = dataclasses.field(
    default_factory=dict
  )

  def __call__(self, state: train_state.TrainState) -> 'Evaluation':
    """Predicts all images by a state, and computes the metrics.

    The values are the same on every host; the panel shows images of this host.

    Raises:
      ValueError: two metrics compute a value of the same name.
    """
    updated = list(self.metrics)
    panel_examples = []
    panel_indices = splits.evenly_spaced_image_indices(
      self.predictions.local_count(), self.num_pictures
    )
    for i, (prediction, example) in enumerate(self.predictions(state)):
      for k, metric in enumerate(updated):
        target = example[self.target]
        updated[k] = metric.update(prediction, target, example['id'])
      if i in panel_indices:
        panel_examples.append(
          panels.Example(example['image'], example['label'], prediction)
        )
    values: dict[str, float | np.ndarray] = {}
    for metric in map(metrics_lib.merge_metrics_across_hosts, updated):
      if isinstance(metric, metrics_lib.ConfusionMatrix):
        values['confusion'] = metric.counts
      for name, value in metric.compute().items():
        if name in values:
          raise ValueError(
            f'metrics: expected values of different names, got {name!r} twice'
          )
        values[name] = value
    for name, class_ids in self.class_subsets.items():
      values[name] = metrics_lib.mean_iou_of_classes(values['iou'], class_ids)
    split = self.predictions.split
    panel = None
    if panel_examples:
      panel = panels.draw_panels(panel_examples, split.classes, split.palette)
    return Evaluation(values, panel)


class Evaluation(NamedTuple):
  """The results of an evaluation.

  Attributes:
    values: values of all metrics, by name; with label maps also 'confusion',
      number of pixels by label and predicted class, int64 [C, C].
    panel: picture of input, label, prediction and error of some images, uint8
      [H, W, 3], or None.
  """

  values: metrics_lib.Values
  panel: np.ndarray | None


def combine_evaluation_summaries(
  *functions: Callable[[train_state.TrainState], tensorboard.Summaries],
) -> Callable[[train_state.TrainState], tensorboard.Summaries]:
  """Builds one evaluation function from several whose tags differ."""

  def evaluate(state: train_state.TrainState) -> tensorboard.Summaries:
    return _combine_summaries([function(state) for function in functions])

  return evaluate


def _combine_summaries(
  summaries: Sequence[tensorboard.Summaries],
) -> tensorboard.Summaries:
  return tensorboard.Summaries(
    {tag: value for each in summaries for tag, value in each.scalars.items()},
    {tag: image for each in summaries for tag, image in each.images.items()},
    {tag: value for each in summaries for tag, value in each.curves.items()},
    [line for each in summaries for line in each.report],
  )


def combine_evaluators(
  evaluators: Mapping[str, Evaluator],
) -> Callable[[train_state.TrainState], tensorboard.Summaries]:
  """Builds one evaluation function from the evaluators of several splits.

  Scalars are tagged '<split>/<metric>', pictures '<split>/panels' and
  '<split>/confusion', curves '<split>_iou/<class>'.
  """

  def evaluate(state: train_state.TrainState) -> tensorboard.Summaries:
    return _combine_summaries(
      [
        _summarize_evaluation(name, each.predictions.split, each(state))
        for name, each in evaluators.items()
      ]
    )

  return evaluate


def undefined_evaluation_values(values: metrics_lib.Values) -> str:
  """Names the values that are NaN, and why; '' if there are none."""
  names = [n for n, v in evaluation_scalars(values).items() if np.isnan(v)]
  if not names:
    return ''
  return f'{", ".join(names)}: undefined, no label was counted for it'


def _summarize_evaluation(
  name: str, split: datasets.Split, evaluation: Evaluation
) -> tensorboard.Summaries:
  """Returns the summaries of the evaluation of a split."""
  values, panel = evaluation
  pictures = {}
  if panel is not None:
    pictures[f'{name}/panels'] = panel
  if 'confusion' in values:
    pictures[f'{name}/confusion'] = confusion_picture.draw_confusion(
      values['confusion'], split.classes
    )
  return tensorboard.Summaries(
    {f'{name}/{k}': value for k, value in evaluation_scalars(values).items()},
    pictures,
    class_report.class_curves(name, split.classes, values),
    class_report.describe_evaluation(name, split.classes, values),
  )


def evaluation_to_json(
  values: metrics_lib.Values, split: datasets.Split
) -> dict[str, Any]:
  """Returns the entry of a split in `results.json`; NaN becomes null."""

  def number(value: float) -> float | None:
    return None if np.isnan(value) else float(value)

  numbers = {n: number(v) for n, v in values.items() if not np.ndim(v)}
  arrays = {n: v for n, v in values.items() if np.ndim(v) == 1}
  missing = undefined_evaluation_values(values)
  return {
    'split': split.name,
    'num_images': len(split),
    'metrics': numbers,
    **({'undefined': missing} if missing else {}),
    'per_class': {
      name: dict(zip(split.classes, map(number, value), strict=True))
      for name, value in arrays.items()
    },
  }


def evaluation_scalars(values: metrics_lib.Values) -> dict[str, float]:
  """Returns the values that are numbers, without those per class."""
  return {n: float(v) for n, v in values.items() if not np.ndim(v)}
