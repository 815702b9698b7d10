"""From a config to the stages of its experiment: the registry of a method.

  PROGRAM = program.Program(
    lambda: program.Parts(experiment.Experiment, STAGES, FinetuneStage)
  )

The parts are given by a function, so that a command line which is refused, or
asks for help, imports neither the stages nor their networks.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import ml_collections
from etils import epy

from runtime import errors, files, memory

with epy.lazy_imports():
  from runtime import options as options_lib
  from segcore.distributed import sharding
  from segcore.eval import predict
  from segcore.experiment import (
    experiment_fields,
    experiment_stage,
    input_checks,
    stage,
  )


class Parts(NamedTuple):
  """Defines a kind of experiment.

  Attributes:
    experiment: dataclass of a whole config.
    stages: classes of all stages, each after the stages that it may need.
    predicts_with: class of the stage that loads the trained network by its
      method `load_model(workdir)`.
  """

  experiment: 'type[experiment_fields.Experiment]'
  stages: 'tuple[type[experiment_stage.ExperimentStage], ...]'
  predicts_with: type[Any]


class Program:
  """A kind of experiment, as a command line runs it."""

  def __init__(self, define: Callable[[], Parts]):
    """Stores the function that imports and returns the parts.

    Args:
      define: function that returns the parts, called when they are needed.
    """
    self._define = define

  @functools.cached_property
  def parts(self) -> Parts:
    """Returns the dataclass of the config, and the stages."""
    return self._define()

  @property
  def registry(self) -> 'dict[str, type[experiment_stage.ExperimentStage]]':
    """Returns the stage classes by name."""
    return {cls.name: cls for cls in self.parts.stages}

  def build(
    self, config: ml_collections.ConfigDict, devices: list | None = None
  ) -> 'dict[str, experiment_stage.ExperimentStage]':
    """Builds the stage objects of an experiment by name; opens no data.

    Args:
      config: config of the experiment.
      devices: devices to run on; None for all devices of all hosts.

    Raises:
      UserError: a field is unknown, of a wrong type, or does not fit the
        others; or a stage is unknown or has no block.
    """
    experiment = options_lib.build_options(
      self.parts.experiment, config, 'config'
    )
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
    return options_lib.complete_options(self.parts.experiment, config)

  def is_chosen_by_name(self, path: str) -> bool:
    """Returns whether a block's field `name` chooses what it may hold."""
    return options_lib.is_option_chosen_by_name(self.parts.experiment, path)

  def build_stages(
    self,
    config: ml_collections.ConfigDict,
    devices: list | None = None,
    workdir: files.Path | None = None,
  ) -> 'Sequence[stage.Stage]':
    """Returns the stages as they are executed; opens no data.

    Args:
      config: config of the experiment.
      devices: devices to run on; None for all devices of all hosts.
      workdir: folder of a run, for which the files that its unfinished stages
        read must exist; None if nothing is to be run.

    Raises:
      UserError: a field or a stage is wrong, or settings do not fit each other.
      MissingInput: a data set or a weight file of the run is missing.
    """
    with memory.without_garbage_collection():
      stages = tuple(self.build(config, devices).values())
      if workdir is not None:
        # Before the networks are traced, which takes seconds.
        input_checks.require_stage_files(stages, workdir)
    return [each.describe(stages) for each in stages]

  def load_model(
    self, config: ml_collections.ConfigDict, workdir: files.Path
  ) -> 'predict.Model':
    """Loads the trained network of a finished run.

    Raises:
      UserError: the run is not finished.
    """
    first = next(iter(self.build(config).values()))
    reader = self.parts.predicts_with(first.experiment, first.context)
    return reader.load_model(workdir)
