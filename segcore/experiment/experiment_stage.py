"""The stages of a method: one small class a stage, on these shared bases.

  class FinetuneStage(experiment_stage.TrainingStage):
    name = 'finetune'

    def inputs(self): ...
    def streams(self, workspace): ...
    def method(self, context, num_classes): ...
    def evaluation(self, trained, streams): ...

Describing the stage, its dry run, the check of its inputs and running it follow
from these.
"""

import abc
import dataclasses
from collections.abc import Iterable, Sequence
from typing import Any, ClassVar

from etils import epy
from jax.sharding import Mesh

from input_pipeline import datasets, loader, transforms
from runtime import errors, files, json_files, options
from segcore import types
from segcore.distributed import collectives
from segcore.experiment import context as context_lib
from segcore.experiment import data as data_lib
from segcore.experiment import input_checks, placement, stage
from segcore.experiment import start as start_lib
from segcore.train import workspace as workspace_lib

with epy.lazy_imports():
  from segcore.cost import topology as topology_lib
  from segcore.experiment import dry_run, extension, fitting
  from segcore.models import network as network_lib
  from segcore.train import callbacks, loop, optimizers
  from segcore.train import method as method_lib

# Number of classes assumed in a dry run where only the files of a data set tell
# how many there are.
_ASSUMED_CLASSES = 21


@dataclasses.dataclass(frozen=True)
class SplitInput:
  """A split that a stage reads.

  Attributes:
    data: the data set.
    split: name of the split.
    kind: kind of label it must have: 'label', 'tags' or '' for none.
  """

  data: datasets.DataOptions
  split: str
  kind: str = ''


@dataclasses.dataclass(frozen=True)
class Inputs:
  """Everything that a stage reads, apart from the results of other stages.

  Attributes:
    splits: splits of data sets.
    start: source of the parameters before step 0.
  """

  splits: tuple[SplitInput, ...] = ()
  start: start_lib.Start = start_lib.Start()


class ExperimentStage(abc.ABC):
  """A stage of an experiment.

  Attributes:
    name: name of the stage, of its config block and of its folder.
    is_report: whether no other stage reads its results.
    experiment: whole config as a dataclass.
    context: network options, data and devices of all stages.
  """

  name: ClassVar[str]
  is_report: ClassVar[bool] = False

  def __init__(self, experiment: Any, context: context_lib.Context):
    self.experiment = experiment
    self.context = context

  @classmethod
  def build(
    cls,
    experiment: Any,
    mesh: Mesh,
    stages: Sequence[str],
    opened: dict[Any, datasets.Split] | None = None,
  ) -> 'ExperimentStage':
    """Builds the stage of an experiment.

    Args:
      experiment: whole config, with `network`, `data_dir` and `operation`.
      mesh: mesh of the devices.
      stages: names of all stages that such an experiment may have.
      opened: splits that were opened already, to be shared by stages.
    """
    context = context_lib.Context(
      experiment.network,
      experiment.data_dir,
      experiment.operation,
      mesh,
      tuple(stages),
      {} if opened is None else opened,
    )
    return cls(experiment, context)

  @property
  def options(self) -> Any:
    """Returns the stage's block of the config, which has the stage's name."""
    return getattr(self.experiment, self.name)

  @property
  def path(self) -> str:
    """Returns the path of the stage's block in the config, for messages."""
    return f'config.{self.name}'

  @property
  def needs(self) -> tuple[str, ...]:
    """Returns the names of the stages whose results this stage reads."""
    return self.inputs().start.needs(self.context.stages)

  @abc.abstractmethod
  def settings(self) -> Any:
    """Returns all settings that decide the result of the stage."""

  @abc.abstractmethod
  def check(self) -> None:
    """Checks the settings, as far as that needs no data.

    Raises:
      UserError: fields do not fit each other, or the devices.
    """

  @abc.abstractmethod
  def inputs(self) -> Inputs:
    """Returns the data and the parameters that the stage reads from disk."""

  def check_data(self) -> None:
    """Checks the content of the inputs, which exist and can be opened.

    Raises:
      UserError: the content of an input does not fit.
    """
    return

  def content(self) -> dict[str, Any]:
    """Returns what identifies the content of all that the stage reads, as JSON.

    The version of a user's folder has a digest of its files in it.

    Raises:
      UserError: something is missing or cannot be opened.
    """
    inputs, block = self.inputs(), self.options
    content: dict[str, Any] = {}
    if inputs.splits:
      content['data'] = [
        self.context.open(each.data, each.split).version
        for each in inputs.splits
      ]
    if isinstance(block, data_lib.LabeledData):
      labeled = self.context.labeled(block, self.name)
      content['labeled'] = options.options_digest(labeled.ids())
    inputs.start.require(self.context.stages, f'{self.path}.start')
    if start := inputs.start.fingerprint(self.context.stages):
      content['start'] = start
    return content

  def extension(self) -> placement.Extension | None:
    """Returns how the stage may continue a shorter training, if it trains."""
    return None

  def reported_metrics(self) -> tuple[str, ...] | None:
    """Returns the names of the metrics in the stage's results.json.

    A name is '<split>/<metric>'; '<split>/*' stands for any metric of the
    split. None if the stage does not know them before it has run.
    """
    return None

  @abc.abstractmethod
  def run(self, workspace: workspace_lib.Workspace) -> Sequence[files.Path]:
    """Runs the stage; returns the files and folders that it has written."""

  @abc.abstractmethod
  def dry_run(
    self, compiles: bool, topology: 'topology_lib.Topology | None'
  ) -> Iterable[str]:
    """Reports in lines what the stage would compute and cost.

    Args:
      compiles: whether the figures of the compiler are reported, too.
      topology: devices to compile for; None for those of the mesh.
    """

  def describe(self, stages: Sequence['ExperimentStage']) -> stage.Stage:
    """Checks the settings and returns the stage in the form that is executed.

    Args:
      stages: all stages of the experiment, whose inputs are checked before the
        first of them runs.

    Raises:
      UserError: settings do not fit each other, or a needed stage is missing.
    """
    names = [other.name for other in stages]
    for needed in self.needs:
      if needed not in names:
        raise errors.UserError(
          f'config.stages: {self.name} needs {needed}, which is not among '
          f'{tuple(names)}'
        )
    self.check()

    def run(workspace: workspace_lib.Workspace) -> Sequence[files.Path]:
      input_checks.check_stage_inputs(stages, workspace.directory.parent)
      if content := self.content():
        json_files.require_unchanged_json(
          workspace.directory / stage.CONTENT_FILE, content, 'the data set'
        )
      return self.run(workspace)

    def has_same_content(directory: files.Path) -> bool:
      path = directory / stage.CONTENT_FILE
      return path.exists() and json_files.read_json(path) == self.content()

    return stage.Stage(
      self.name,
      self.settings(),
      run,
      self.needs,
      self.dry_run,
      has_same_content,
      self.is_report,
      self.extension(),
      self.reported_metrics(),
    )


class TrainingStage(ExperimentStage):
  """A stage that trains a network; its config block has a `recipe`.

  Attributes:
    val_metric: metric on the validation split that decides which checkpoint is
      kept as the best one; None keeps the latest ones only.
    zero_terms_until: last step at which a term of the loss may be 0 by design;
      later, such a term is reported as a likely mistake.
    follows_num_steps: whether the method itself, not only its learning rate,
      depends on the length of the training.
  """

  val_metric: str | None = None
  zero_terms_until: int = 0
  follows_num_steps: bool = False

  @property
  def best_metric(self) -> str | None:
    """Returns the scalar of `val_metric`, or None: 'val/miou'."""
    return self.val_metric and f'{self.options.val_split}/{self.val_metric}'

  @property
  def size(self) -> tuple[int, int]:
    """Returns height and width of the images of a training step."""
    crop, _ = self.augmentations()
    return crop.size

  def augmentations(self) -> tuple[Any, transforms.RandomFlip]:
    """Builds the crop and the random flips of the stage's block."""
    block = self.options
    return data_lib.augmentations_from_config(
      block.crop, block.flips, self.path
    )

  @property
  def size_path(self) -> str:
    """Returns the path of the field that sets the size, for messages."""
    return f'{self.path}.crop.size'

  @property
  def num_classes_from(self) -> datasets.DataOptions:
    """Returns the data set that decides the number of classes."""
    return self.options.data

  @abc.abstractmethod
  def batch_spec(self, num_classes: int) -> types.BatchSpec:
    """Returns shapes and types of a global batch."""

  @abc.abstractmethod
  def method(
    self, context: context_lib.Context, num_classes: int
  ) -> 'method_lib.Method':
    """Builds the method that the stage trains.

    Args:
      context: network options, data and devices; `remat` and `dtype` may differ
        from those of the stage's own context.
      num_classes: number of classes of the training data.
    """

  @abc.abstractmethod
  def streams(self, workspace: workspace_lib.Workspace) -> data_lib.Streams:
    """Opens the streams of training data by name; a single one is named ''."""

  def trained_method(
    self, workspace: workspace_lib.Workspace, streams: data_lib.Streams
  ) -> 'method_lib.Method':
    """Builds the method, with what it takes from the training data."""
    del workspace
    first = next(iter(streams.values()))
    return self.method(self.context, len(first.split.classes))

  def evaluation(
    self, trained: 'method_lib.Method', streams: data_lib.Streams
  ) -> 'loop.EvaluateFn | None':
    """Builds the evaluation during training; returns None without one.

    Args:
      trained: method that is trained.
      streams: streams of training data by name.
    """
    del trained, streams
    return None

  def refresh(
    self,
    trained: 'method_lib.Method',
    streams: data_lib.Streams,
    workspace: workspace_lib.Workspace,
  ) -> 'callbacks.Refresh | None':
    """Returns the part of the state computed anew between steps, or None."""
    del trained, streams, workspace
    return None

  def write_outputs(
    self, workspace: workspace_lib.Workspace, streams: data_lib.Streams
  ) -> Sequence[files.Path]:
    """Writes further results after training; returns the paths of the files."""
    del workspace, streams
    return []

  def settings(self) -> Any:
    """Returns the network options for the image size, and the stage's block."""
    return {'network': self.context.fitted(self.size), self.name: self.options}

  def reported_metrics(self) -> tuple[str, ...]:
    """Returns no metrics: those during training are no results."""
    return ()

  def extension(self) -> placement.Extension:
    """Returns how the stage may continue a shorter training."""
    return placement.Extension(
      f'settings.{self.name}.recipe.num_steps',
      self.context.operation.extend,
      self._refuse_extension,
    )

  def _refuse_extension(self, directory: files.Path, old: int) -> str:
    """Returns why a training of `old` steps cannot go on, '' if it can."""
    reason = extension.explain_refused_extension(
      self.options.recipe, old, self.follows_num_steps
    )
    if not reason or not hasattr(self.options, 'start'):
      return reason and f'{reason}: choose another --workdir to train anew'
    net = self.method(self.context, num_classes=2).segmenter
    stages = self.experiment.stages
    start = extension.describe_new_training_start(
      self.path, directory, net, stages[stages.index(self.name) :]
    )
    return f'{reason}; {start}'

  def check(self) -> None:
    """Checks that batch and images fit devices and network."""
    self.options.recipe.check(self.context.mesh, f'{self.path}.recipe')
    # The number of classes, which only data tell, does not matter here.
    net = self.method(self.context, num_classes=2).segmenter
    network_lib.check_network_image_size(net, self.size, self.size_path)

  def run(self, workspace: workspace_lib.Workspace) -> Sequence[files.Path]:
    """Trains to the end of the recipe."""
    recipe, context = self.options.recipe, self.context
    streams = self.streams(workspace)
    trained = self.trained_method(workspace, streams)
    evaluate = self.evaluation(trained, streams)
    for name, stream in streams.items():
      collectives.check_equal_on_all_hosts(
        f'the data{name and f" ({name})"}',
        f'{len(stream.split)} images of version {stream.split.version}',
      )
    batches = loader.Loader(
      {name: stream.open() for name, stream in streams.items()},
      recipe.batch_size,
      recipe.seed,
      context.operation.reading,
    )
    start = self.inputs().start
    training = loop.TrainingSpec(
      method=trained,
      loader=batches,
      num_steps=recipe.num_steps,
      seed=recipe.seed,
      evaluate=evaluate,
      evaluate_every=recipe.evaluate_every,
      best=self.best_metric and loop.BestMetric(self.best_metric),
      loaded=start.read(workspace, trained.segmenter, self.size),
      summary=optimizers.describe_optimizer(recipe.optimizer, recipe.num_steps),
      hparams=options.options_to_dict(self.options),
      zero_terms_until=self.zero_terms_until,
      refresh=self.refresh(trained, streams, workspace),
    )
    loop.run_training_loop(training, workspace, context.operation, context.mesh)
    names = 'checkpoints', 'best', 'metrics.jsonl'
    outputs = [workspace.directory / name for name in names]
    return [*outputs, *self.write_outputs(workspace, streams)]

  def workload(self) -> 'dry_run.Workload':
    """Describes the training, as far as the config decides it without data."""
    recipe, data = self.options.recipe, self.num_classes_from
    notes = fitting.describe_fitted_crop(self.options, self.size)
    notes += [optimizers.describe_optimizer(recipe.optimizer, recipe.num_steps)]
    num_classes = datasets.known_dataset_num_classes(data)
    if num_classes is None:
      num_classes = _ASSUMED_CLASSES
      unknown = f'only the files of {data.name} tell its classes'
      notes.append(f'{unknown}: {num_classes} are assumed')
    return dry_run.Workload(
      build=lambda remat: self.method(
        self.context.with_network(remat=remat), num_classes
      ),
      remat=self.context.network.remat,
      batch_spec=self.batch_spec(num_classes),
      batch_size=recipe.batch_size,
      accumulate=recipe.accumulate,
      num_steps=recipe.num_steps,
      image_size=self.size,
      mesh=self.context.mesh,
      notes=tuple(notes),
      first_step=self.zero_terms_until,
    )

  def dry_run(
    self, compiles: bool, topology: 'topology_lib.Topology | None'
  ) -> Iterable[str]:
    """Reports parameters, operations, memory and time."""
    return dry_run.report_dry_run(self.workload(), compiles, topology)
