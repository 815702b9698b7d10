"""From a config to the stages of its experiment: the registry of a method."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import ml_collections

from runtime import errors, files
from runtime import options as options_lib
from segcore.distributed import sharding
from segcore.eval import predict
from segcore.experiment import experiment_stage, stage
from segcore.models import network
from segcore.train import loop


@dataclasses.dataclass(frozen=True, kw_only=True)
class Experiment:
  """Holds the fields of every experiment; a method adds blocks of its stages.

  Attributes:
    program: name of the module whose command line runs the experiment.
    stages: names of the stages to run, in order.
    data_dir: folder of the records; '' for the default of TFDS.
    network: options of the network of all stages.
    operation: options of speed and intervals, which change no result.
    without_files: advice in the message about missing data or weights; or ''.
    notes: what the config chose for the user, printed at the start; one line
      each.
  """

  program: str
  stages: tuple[str, ...]
  data_dir: str = ''
  network: network.NetworkOptions
  operation: loop.OperationOptions = loop.OperationOptions()
  without_files: str = ''
  notes: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Program:
  """A kind of experiment, as a command line runs it.

  Attributes:
    experiment: dataclass of a whole config.
    stages: classes of all stages, each after the stages that it may need.
    predicts_with: class of the stage that loads the trained network by its
      method `load_model(workdir)`.
  """

  experiment: type[Experiment]
  stages: tuple[type[experiment_stage.ExperimentStage], ...]
  predicts_with: type[Any]

  @property
  def registry(self) -> dict[str, type[experiment_stage.ExperimentStage]]:
    """Returns the stage classes by name."""
    return {cls.name: cls for cls in self.stages}

  def build(
    self, config: ml_collections.ConfigDict, devices: list | None = None
  ) -> dict[str, experiment_stage.ExperimentStage]:
    """Builds the stage objects of an experiment by name; opens no data.

    Args:
      config: config of the experiment.
      devices: devices to run on; None for all devices of all hosts.

    Raises:
      UserError: a field is unknown, of a wrong type, or does not fit the
        others; or a stage is unknown or has no block.
    """
    experiment = options_lib.build_options(self.experiment, config, 'config')
    registry = self.registry
    if not experiment.stages or not set(experiment.stages) <= set(registry):
      raise errors.UserError(
        f'config.stages: expected some of {tuple(registry)}, got '
        f'{experiment.stages}'
      )
    opened = {}
    mesh = sharding.make_mesh(experiment.operation.fsdp, devices)
    built = {
      name: registry[name].build(experiment, mesh, tuple(registry), opened)
      for name in experiment.stages
    }
    for name, each in built.items():
      if each.options is None:
        raise errors.UserError(
          f'config.stages: {name} is among {experiment.stages}, but '
          f'config.{name} is missing'
        )
    return built

  def complete(self, config: ml_collections.ConfigDict) -> dict[str, Any]:
    """Adds the fields that a config leaves out, with their defaults."""
    return options_lib.complete_options(self.experiment, config)

  def is_chosen_by_name(self, path: str) -> bool:
    """Returns whether a block's field `name` chooses what it may hold."""
    return options_lib.is_option_chosen_by_name(self.experiment, path)

  def build_stages(
    self, config: ml_collections.ConfigDict, devices: list | None = None
  ) -> Sequence[stage.Stage]:
    """Returns the stages as they are executed; opens no data.

    Args:
      config: config of the experiment.
      devices: devices to run on; None for all devices of all hosts.

    Raises:
      UserError: a field or a stage is wrong, or settings do not fit each other.
    """
    stages = tuple(self.build(config, devices).values())
    return [each.describe(stages) for each in stages]

  def load_model(
    self, config: ml_collections.ConfigDict, workdir: files.Path
  ) -> predict.Model:
    """Loads the trained network of a finished run.

    Raises:
      UserError: the run is not finished.
    """
    first = next(iter(self.build(config).values()))
    reader = self.predicts_with(first.experiment, first.context)
    return reader.load_model(workdir)
