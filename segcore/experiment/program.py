"""From a config to the stages of its experiment: what a method's `main` is."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, Protocol, runtime_checkable

import ml_collections
from jax.sharding import Mesh

from runtime import files
from runtime import options as options_lib
from segcore.distributed import sharding
from segcore.eval import predict
from segcore.experiment import dry_run, stage


@runtime_checkable
class Runner(Protocol):
  """Builds each stage of an experiment."""

  experiment: Any

  def describe(self, name: str) -> stage.Stage:
    """Checks what can be checked without data, and describes the stage."""
    ...

  def plan(self, name: str) -> dry_run.Plan:
    """A training, as far as it is known without its data."""
    ...

  def model(self, workdir: files.Path) -> predict.Model:
    """What a finished run has trained, to predict with."""
    ...


@dataclasses.dataclass(frozen=True)
class Program:
  """What a command line runs: a kind of experiment.

  Attributes:
    options: the fields of a whole config.
    runner: builds its stages, from these and the devices.
  """

  options: type
  runner: Callable[[Any, Mesh], Runner]

  def complete(self, config: ml_collections.ConfigDict) -> dict[str, Any]:
    """Returns the config with all fields, by the defaults of the options."""
    return options_lib.complete(self.options, config)

  def build_stages(
    self, config: ml_collections.ConfigDict, devices: list | None = None
  ) -> Sequence[stage.Stage]:
    """The stages of an experiment; opens no data.

    Args:
      config: the experiment.
      devices: it is for; all that are at hand by default.

    Raises:
      UserError: a field is unknown, of a wrong type, or does not fit the
        others.
    """
    runner = self.build_runner(config, devices)
    return [runner.describe(name) for name in runner.experiment.stages]

  def load_model(
    self, config: ml_collections.ConfigDict, workdir: files.Path
  ) -> predict.Model:
    """The trained network of a finished run, to predict with.

    Raises:
      UserError: the run is not finished.
    """
    return self.build_runner(config).model(workdir)

  def build_runner(
    self, config: ml_collections.ConfigDict, devices: list | None = None
  ) -> Runner:
    """What builds the stages.

    Raises:
      UserError: as above.
    """
    experiment = options_lib.build(self.options, config, 'config')
    mesh = sharding.make_mesh(experiment.operation.fsdp, devices)
    return self.runner(experiment, mesh)


def check_stages(stages: Sequence[str], known: Sequence[str]) -> None:
  """Raises ValueError unless there are some stages, all of them known."""
  if not stages or not set(stages) <= set(known):
    raise ValueError(f'stages: found {stages}, expected some of {known}')
