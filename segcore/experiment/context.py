"""What the stages of any experiment share: data, network, training, report.

A method's `main` builds a `Bench` from its config and describes its stages with
it; `Reporting` is the stage that evaluates a trained segmentation network.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import jax
import numpy as np
from jax.sharding import Mesh

from input_pipeline import datasets, loader, splits, transforms, views
from input_pipeline.sources import fingerprints
from runtime import console, errors, files, json_files, options
from segcore import types
from segcore.distributed import collectives, sharding
from segcore.eval import evaluator as evaluator_lib
from segcore.eval import inference, metrics, predict, protocols
from segcore.eval import results as results_lib
from segcore.experiment import dry_run, stage
from segcore.models import heads as heads_lib
from segcore.models import network, segmenter
from segcore.train import (
  loop,
  method,
  optimizers,
  train_state,
  update,
)
from segcore.train import workspace as workspace_lib
from segcore.weights import checkpoint_reader, load

# In the folder of a trained segmentation network: names and colors of the
# class ids.
_CLASSES = 'classes.json'
# Classes of a data set that says how many only when it is read.
_ASSUMED_CLASSES = 21
# Rows of a panel.
NUM_PICTURES = 6


@dataclasses.dataclass(frozen=True)
class Start:
  """Where parameters come from before step 0.

  Attributes:
    path: a stage of this experiment, the folder of another one's, or a weight
      file; '' starts from random values.
    take: the parts that are taken: 'encoder', 'decoder', 'heads/NAME'.
  """

  path: str = ''
  take: tuple[str, ...] = ()

  def __post_init__(self):
    if bool(self.path) != bool(self.take):
      raise ValueError(
        f'path={self.path!r} and take={self.take}: expected both or neither'
      )

  @property
  def folder(self) -> files.Path:
    """Where another experiment's stage, or a file, is."""
    return files.parse_path(self.path, 'path')

  def needs(self, stages: Sequence[str]) -> tuple[str, ...]:
    """The stage of this experiment that it starts from, if it does.

    Args:
      stages: all there may be in such an experiment.
    """
    return (self.path,) if self.path in stages else ()

  def require(self, stages: Sequence[str], path: str) -> None:
    """Raises Missing unless there is what it starts from.

    Args:
      stages: as above.
      path: of the block, for the message.
    """
    if self.needs(stages) or not self.path or self.folder.exists():
      return
    raise errors.MissingInput(
      f'{path}.path: {self.path} does not exist: expected a stage, the folder '
      'of one, or a weight file'
    )


@dataclasses.dataclass(frozen=True)
class Images:
  """Images of a data set; their labels are not read."""

  data: datasets.DataOptions
  split: str = 'train'


@dataclasses.dataclass(frozen=True, kw_only=True)
class Labeled:
  """Images with masks, of which some are labeled.

  Attributes:
    data: needs masks.
    split: its labeled subset is trained on.
    val_split: evaluated on, on the way; 'held_out' is the part of `split` that
      the subset sets aside.
    follow: splits that are evaluated on the way too, for a curve; the split
      that is trained on means its labeled images.
    subset: which images are labeled.
  """

  data: datasets.DataOptions
  split: str = 'train'
  val_split: str = 'val'
  follow: tuple[str, ...] = ()
  subset: splits.Subset = splits.Subset()


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvaluateOptions:
  """The evaluation that is reported.

  Attributes:
    splits: of the data set that was trained on; the split that was trained on
      means its labeled images.
    batch_size: global number of images.
    protocol: how the network looks at an image.
    which: the state after the last step, or the best one on `val_split`.
    framed: also report, as NAME_framed, each split with the border around
      images that are smaller than the protocol's window as class 0.
  """

  splits: tuple[str, ...] = ('val',)
  batch_size: int = 8
  protocol: protocols.ProtocolOptions
  which: Literal['last', 'best'] = 'last'
  framed: bool = False

  def __post_init__(self):
    if self.framed and self.protocol.padding_mode != 'mean':
      raise ValueError(
        'framed=True: found with a protocol without a border, expected '
        "protocol.padding_mode='mean'"
      )

  @property
  def frames(self) -> dict[str, transforms.CenterCrop | None]:
    """What images are put into, by what is added to the name of a result."""
    whole = {'': None}
    if not self.framed:
      return whole
    return whole | {
      '_framed': transforms.CenterCrop(self.protocol.window, 'paper')
    }


@dataclasses.dataclass(frozen=True)
class Bench:
  """What the stages of an experiment are built on.

  Attributes:
    network: of all stages.
    data_dir: where records are kept; '' is TFDS's own place.
    operation: how it is carried out.
    mesh: the devices.
  """

  network: network.NetworkOptions
  data_dir: str
  operation: loop.OperationOptions
  mesh: Mesh

  def fitted(self, size: tuple[int, int]) -> network.NetworkOptions:
    """The network for training on images of this (height, width)."""
    return network.with_position_grid(self.network, size, 'config.network')

  def build(
    self, heads: Mapping[str, Any], size: tuple[int, int]
  ) -> segmenter.Segmenter:
    """The same, with these heads."""
    return network.build(self.fitted(size), heads, 'config.network')

  def plan(
    self,
    trained: Callable[['Bench', int], method.Method],
    recipe: update.RecipeOptions,
    size: tuple[int, int],
    batch_spec: Callable[[int], types.BatchSpec],
    data: datasets.DataOptions,
  ) -> dry_run.Plan:
    """A training, as far as it is known without its data.

    Args:
      trained: the method, by what it is built on and the number of classes.
      recipe: batch, length, optimizer.
      size: height and width of the images.
      batch_spec: of a batch, by the number of classes.
      data: that knows its classes, or not.
    """
    notes = [optimizers.describe(recipe.optimizer, recipe.num_steps)]
    classes = datasets.known_num_classes(data)
    if classes is None:
      classes = _ASSUMED_CLASSES
      notes.append(
        f'only the files of {data.name} tell its classes: {classes} are assumed'
      )

    def build(remat: bool) -> method.Method:
      net = dataclasses.replace(self.network, remat=remat)
      return trained(dataclasses.replace(self, network=net), classes)

    return dry_run.Plan(
      build=build,
      remat=self.network.remat,
      batch_spec=batch_spec(classes),
      batch_size=recipe.batch_size,
      accumulate=recipe.accumulate,
      num_steps=recipe.num_steps,
      image_size=size,
      mesh=self.mesh,
      notes=tuple(notes),
    )

  @property
  def multiple(self) -> int:
    """What the sides of the network's inputs are multiples of."""
    encoder_only = {'tags': heads_lib.PoolHead(1)}
    built = network.build(self.network, encoder_only, 'config.network')
    return built.encoder.size_multiple

  def require(self, requirements: Sequence[Callable[[], None]]) -> None:
    """Asks for all that is to be there, and names all that is missing at once.

    Args:
      requirements: each raises Missing where something is.

    Raises:
      Missing: something is, where host 0 looks.
    """
    found = {}
    for requirement in requirements if jax.process_index() == 0 else ():
      try:
        requirement()
      except errors.MissingInput as error:
        found[str(error)] = None  # Each once, in order.
    if collectives.broadcast_from_host_0(bool(found)):
      raise errors.MissingInput('; '.join(found) or 'host 0 misses files')

  def open(
    self,
    data: datasets.DataOptions,
    split: str,
    kind: str = '',
    purpose: str = '',
  ) -> datasets.Split:
    """Opens a split; with a kind of label if one is named.

    Raises:
      UserError: it is not there, or has no such labels.
    """
    opened = datasets.open_split(data, split, self.data_dir)
    if kind:
      opened.require_labels(kind, purpose)
    return opened

  def labeled(self, block: Labeled, purpose: str) -> datasets.Split:
    """The labeled images."""
    split = self.open(block.data, block.split, 'label', purpose)
    return split.select(block.subset.labeled_indices(split.ids()))

  def labeled_or(
    self, block: Labeled, name: str, purpose: str
  ) -> datasets.Split:
    """A split with masks; of the one that is trained on, the labeled part."""
    if name == block.split:
      return self.labeled(block, purpose)
    if name == splits.HELD_OUT:
      split = self.open(block.data, block.split, 'label', purpose)
      return split.select(block.subset.held_out_indices(split.ids()))
    return self.open(block.data, name, 'label', purpose)

  def check_labeled(
    self, block: Labeled, reported: Sequence[str], purpose: str
  ) -> None:
    """Opens all that training and report will read; nothing may leak.

    Raises:
      UserError: a split is missing or has no masks, or shares an image with the
        labeled ones.
    """
    for name in (block.split, block.val_split, *block.follow, *reported):
      opened = self.labeled_or(block, name, purpose)
      if name != block.split:
        labeled = self.labeled(block, purpose)
        fingerprints.check_disjoint(
          labeled.index, opened.index, (labeled.name, opened.name)
        )

  def loaded(
    self,
    place: workspace_lib.Workspace,
    start: Start,
    net: segmenter.Segmenter,
    size: tuple[int, int],
  ) -> dict[str, Any] | None:
    """The parameters to start from; None for random ones.

    Raises:
      UserError: they cannot be read, or do not fit.
    """
    if not start.path:
      return None
    path = place.needed.get(start.path, start.folder)
    return load.load_parts(path, start.take, net, (1, *size, 3))

  def train(
    self,
    place: workspace_lib.Workspace,
    trained: method.Method,
    streams: Mapping[str, 'StreamOf | ViewsOf'],
    recipe: update.RecipeOptions,
    block: Any,
    evaluation: loop.EvaluateFn | None,
    best: str | None = None,
    start: Start | None = None,
    zero_terms_until: int = 0,
  ) -> Sequence[files.Path]:
    """Trains to the end of a recipe; returns what it leaves.

    Args:
      place: of the stage.
      trained: the method.
      streams: what the batches are made of; a single one has the name ''.
      recipe: batch, length, optimizer.
      block: all settings, for TensorBoard.
      evaluation: on the way.
      best: name of the scalar that says which state is the best.
      start: where parameters come from.
      zero_terms_until: last step at which a term of the loss may be 0 by
        design.
    """
    for name, stream in streams.items():
      collectives.check_equal_on_all_hosts(
        f'the data{name and f" ({name})"}',
        f'{len(stream.split)} images of version {stream.split.version}',
      )
      json_files.require_unchanged(
        place.directory / f'data{name and "_" + name}.json',
        {'version': stream.split.version, 'num_images': len(stream.split)},
        'the data set',
      )
    batches = loader.Loader(
      {name: stream.open() for name, stream in streams.items()},
      recipe.batch_size,
      recipe.seed,
      self.operation.reading,
    )
    size = next(iter(streams.values())).size
    training = loop.TrainingSpec(
      method=trained,
      loader=batches,
      num_steps=recipe.num_steps,
      seed=recipe.seed,
      evaluate=evaluation,
      evaluate_every=recipe.evaluate_every,
      best=best and loop.BestMetric(best),
      loaded=self.loaded(place, start or Start(), trained.segmenter, size),
      summary=optimizers.describe(recipe.optimizer, recipe.num_steps),
      hparams=options.to_dict(block),
      zero_terms_until=zero_terms_until,
    )
    loop.train(training, place, self.operation, self.mesh)
    folders = [place.directory / name for name in ('checkpoints', 'best')]
    return [*folders, place.directory / 'metrics.jsonl']

  def evaluator(
    self,
    split: datasets.Split,
    predictor: inference.Predictor,
    metric: metrics.Metric,
    target: str,
    batch_size: int,
    show: bool = False,
    frame: transforms.CenterCrop | None = None,
  ) -> evaluator_lib.Evaluator:
    """Compares what a predictor finds in a split with its labels."""
    predictions = evaluator_lib.Predictions(
      split=split,
      predictor=predictor,
      batch_size=batch_size,
      mesh=self.mesh,
      keep=(target,),
      reading=self.operation.reading,
      log_progress=show,
      padding=frame,
    )
    pictured = NUM_PICTURES if target == 'label' else 0
    return evaluator_lib.Evaluator(predictions, (metric,), target, pictured)

  def label_maps(
    self,
    trained: method.ScoreModel,
    num_classes: int,
    protocol: protocols.ProtocolOptions,
  ) -> inference.LabelMaps:
    """How label maps are found."""
    return inference.LabelMaps(trained, num_classes, protocol, self.multiple)

  def segmentation_evaluator(
    self,
    trained: method.ScoreModel,
    split: datasets.Split,
    batch_size: int,
    protocol: protocols.ProtocolOptions,
    show: bool = False,
    frame: transforms.CenterCrop | None = None,
  ) -> evaluator_lib.Evaluator:
    """The confusion of classes over a split."""
    num_classes = len(split.classes)
    return self.evaluator(
      split,
      self.label_maps(trained, num_classes, protocol),
      metrics.ConfusionMatrix.empty(num_classes),
      'label',
      batch_size,
      show,
      frame,
    )

  def followed(
    self,
    trained: method.ScoreModel,
    block: Labeled,
    batch_size: int,
    protocol: protocols.ProtocolOptions,
    purpose: str,
  ) -> dict[str, evaluator_lib.Evaluator]:
    """Evaluators of the splits that are looked at on the way."""
    return {
      name: self.segmentation_evaluator(
        trained,
        self.labeled_or(block, name, purpose),
        batch_size,
        protocol.single_view(),
      )
      for name in (block.val_split, *block.follow)
    }


@dataclasses.dataclass(frozen=True)
class OnMesh:
  """An experiment and the devices it is for.

  Attributes:
    experiment: a whole config; has `network`, `data_dir`, `operation`.
    mesh: the devices.
  """

  experiment: Any
  mesh: Mesh

  @property
  def bench(self) -> Bench:
    """What all stages are built on."""
    whole = self.experiment
    return Bench(whole.network, whole.data_dir, whole.operation, self.mesh)


@dataclasses.dataclass(frozen=True)
class StreamOf:
  """Images of a split, as training sees them.

  Attributes:
    split: the images.
    crop: one of `transforms.CROPS`.
    flips: random mirrors.
    keep: kinds of label that examples have.
  """

  split: datasets.Split
  crop: Any
  flips: transforms.RandomFlip
  keep: tuple[str, ...] = ()

  @property
  def size(self) -> tuple[int, int]:
    """Height and width of an image."""
    return self.crop.size

  @property
  def look(self) -> transforms.Transform:
    """From a record to an example."""
    decode = transforms.Decode(len(self.split.classes), self.keep)
    return transforms.Compose((decode, self.crop, self.flips))

  def open(self) -> loader.Stream:
    """For the loader."""
    return loader.Stream(self.split.records, self.look)


@dataclasses.dataclass(frozen=True)
class ViewsOf:
  """Several views of each image of a split, as training sees them.

  Attributes:
    split: the images.
    crop: what the views are cut by.
  """

  split: datasets.Split
  crop: views.MultiCrop

  @property
  def size(self) -> tuple[int, int]:
    """Height and width of a view of the first group."""
    return self.crop.groups[0].size

  @property
  def look(self) -> transforms.Transform:
    """From a record to an example."""
    decode = transforms.Decode(len(self.split.classes), ())
    return transforms.Compose((decode, self.crop))

  def open(self) -> loader.Stream:
    """For the loader."""
    return loader.Stream(self.split.records, self.look)


def augmentations(
  crop: Mapping[str, Any], flips: tuple[str, ...], path: str
) -> tuple[Any, transforms.RandomFlip]:
  """The crop and the mirrors of a block.

  Args:
    crop: name and fields (see `transforms.CROPS`).
    flips: directions.
    path: of the block, for messages.

  Raises:
    UserError: a field is wrong.
  """
  return (
    options.build_named(transforms.CROPS, crop, f'{path}.crop'),
    options.build(transforms.RandomFlip, {'kinds': flips}, f'{path}.flips'),
  )


def write_classes(
  place: workspace_lib.Workspace, split: datasets.Split
) -> Sequence[files.Path]:
  """Leaves the names and colors of the classes for the stages after."""
  path = place.directory / _CLASSES
  json_files.write(path, {'classes': split.classes, 'palette': split.palette})
  return [path]


def fixed_batch(stream: StreamOf | ViewsOf, count: int) -> dict[str, Any]:
  """A batch to look at again and again, of images from all over a split."""
  records = stream.split.records
  examples = [
    # From all over, as one image may stand many times in a row.
    stream.look(records[i * len(records) // count], np.random.default_rng(i))
    for i in range(count)
  ]
  return loader.drop_host_only(loader.stack(examples))


def keep_labeled_ids(
  place: workspace_lib.Workspace, labeled: datasets.Split
) -> None:
  """Writes which images are labeled; refuses others later on.

  Raises:
    UserError: they are not those the stage was started with.
  """
  json_files.require_unchanged(
    place.directory / 'labeled_ids.json',
    labeled.ids(),
    'the choice of labeled images',
  )


# From a checkpoint's fields to {'step': …, 'params': …, 'batch_stats': …}.
Reported = Callable[[Mapping[str, Any]], Mapping[str, Any]]


@dataclasses.dataclass(frozen=True)
class Reporting:
  """Evaluates and predicts with what a stage has trained.

  Attributes:
    bench: what it is built on.
    trained_by: name of the stage.
    labeled: its data.
    evaluate: what is reported.
    scores: from a number of classes to what predicts them.
    fields: of a checkpoint, that are read.
    reported: which of them are the network's.
  """

  bench: Bench
  trained_by: str
  labeled: Labeled
  evaluate: EvaluateOptions
  scores: Callable[[int], method.ScoreModel]
  fields: tuple[str, ...] = ('step', 'params', 'batch_stats')
  reported: Reported = dict

  def describe(self, stages: Sequence[str]) -> stage.Stage:
    """The stage `evaluate`.

    Raises:
      UserError: the network is not trained here.
    """
    if self.trained_by not in stages:
      raise errors.UserError(
        f'config.stages: evaluate needs {self.trained_by}, which is not among '
        f'{tuple(stages)}'
      )
    sharding.check_batch_size(
      self.evaluate.batch_size, self.bench.mesh, 'config.evaluate.batch_size'
    )
    settings = options.to_dict(self.evaluate)
    # How many images at once changes nothing of what is found.
    del settings['batch_size']
    return stage.Stage(
      'evaluate', settings, self.run, (self.trained_by,), self._plan
    )

  def run(self, place: workspace_lib.Workspace) -> Sequence[files.Path]:
    """Reports the network by the protocol of the config."""
    bench, block = self.bench, self.evaluate
    bench.check_labeled(self.labeled, block.splits, self.trained_by)
    classes = bench.labeled(self.labeled, self.trained_by).classes
    trained = self.scores(len(classes))
    step, state = self._state(place.needed[self.trained_by])
    results = results_lib.Results(place, step)
    for name in block.splits:
      split = bench.labeled_or(self.labeled, name, self.trained_by)
      for added, frame in block.frames.items():
        evaluator = bench.segmentation_evaluator(
          *(trained, split, block.batch_size, block.protocol),
          show=True,
          frame=frame,
        )
        evaluated = evaluator(state)
        results.add(f'{name}{added}', evaluated.values, split, evaluated.panel)
        console.log(
          f'{split.name}{added}: mIoU {evaluated.values["miou"]:.4f} over '
          f'{len(split)} images'
        )
    return results.write(
      protocol=block.protocol.describe(), which=block.which, step=step
    )

  def model(self, workdir: files.Path) -> predict.Model:
    """What was trained in a folder, to predict with.

    Raises:
      UserError: it is not finished.
    """
    folder = workdir / self.trained_by
    stage.require_finished(folder, 'predict')
    found = json_files.read(folder / _CLASSES)
    num_classes = len(found['classes'])
    _, state = self._state(folder)
    return predict.Model(
      state=state,
      predictor=self.bench.label_maps(
        self.scores(num_classes), num_classes, self.evaluate.protocol
      ),
      classes=tuple(found['classes']),
      palette=tuple((r, g, b) for r, g, b in found['palette']),
      batch_size=self.evaluate.batch_size,
      mesh=self.bench.mesh,
      reading=self.bench.operation.reading,
    )

  def _plan(self, *asked: Any) -> Sequence[str]:
    """The protocol in words."""
    del asked  # How large the images are is known from the data only.
    block = self.evaluate
    return [
      f'{", ".join(block.splits)}: {block.protocol.describe()}',
      f'by the {block.which} state of {self.trained_by}, {block.batch_size} '
      'images at once',
    ]

  def _state(self, folder: files.Path) -> tuple[int, train_state.TrainState]:
    """The step and the state that are reported."""
    kept = 'best' if self.evaluate.which == 'best' else 'checkpoints'
    found = self.reported(checkpoint_reader.read(folder / kept, self.fields))
    return int(found['step']), train_state.inference_state(
      found, self.bench.mesh
    )
