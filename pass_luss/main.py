"""PASS for unsupervised segmentation, from the command line.

python -m pass_luss.main --config=configs/pass_shapes.py:branch=swav
"""

import dataclasses
import functools
import pathlib
from collections.abc import Sequence
from typing import Literal

import jax.numpy as jnp
import ml_collections
import numpy as np
from jax.sharding import Mesh

from input_pipeline import datasets, loader, views
from pass_luss import represent, watch
from segcore import (
  app,
  dry_run,
  method,
  network,
  options,
  sharding,
  stage,
  train_loop,
)
from segcore import experiment as experiment_lib
from segcore.models import segmenter

_STAGES = ('represent', 'distance')
# Images whose views are watched.
_NUM_WATCHED = 64


@dataclasses.dataclass(frozen=True)
class RepresentOptions:
  """Representation learning.

  Attributes:
    data: images; their labels are not read.
    split: trained on.
    learn: what is learned from.
    widths: of the heads.
    large: the two views that everything is learned from.
    small: more views, for the clusters only; None for none.
    colours: of the views.
    start: of the encoder.
    recipe: batch, length, optimiser.
  """

  data: datasets.Options
  split: str
  learn: represent.Options
  widths: represent.Widths
  large: views.Views
  small: views.Views | None
  colours: represent.Colours
  recipe: method.Recipe
  start: experiment_lib.Start = experiment_lib.Start()

  def __post_init__(self):
    if (self.large.name, self.large.count) != ('large', 2):
      raise ValueError(
        f'large: found {self.large.count} views named {self.large.name!r}, '
        "expected 2 named 'large'"
      )
    if self.small and self.small.name != 'small':
      raise ValueError(
        f"small.name: found {self.small.name!r}, expected 'small'"
      )
    if self.small and not self.learn.clusters:
      raise ValueError('small: found views, but only clusters learn from them')
    if self.recipe.accumulate != 1:
      raise ValueError(
        f'recipe.accumulate: found {self.recipe.accumulate}, expected 1: '
        'assignments need the whole batch'
      )

  @property
  def crop(self) -> views.MultiCrop:
    """What all views are cut by."""
    groups = (self.large, self.small) if self.small else (self.large,)
    return views.MultiCrop(groups)


@dataclasses.dataclass(frozen=True)
class Experiment:
  """A whole config.

  Attributes:
    program: the module whose command line runs it.
    stages: which of the stages below, in order.
    data_dir: where records are kept; '' is TFDS's own place.
    without_files: what to do where data or weights are missing; may be ''.
    network: the encoder of all stages.
    operation: how it is carried out.
  """

  program: Literal['pass_luss.main']
  stages: tuple[str, ...]
  data_dir: str
  without_files: str
  network: network.Options
  represent: RepresentOptions
  operation: train_loop.Operation

  def __post_init__(self):
    if not self.stages or not set(self.stages) <= set(_STAGES):
      raise ValueError(
        f'stages: found {self.stages}, expected some of {_STAGES}'
      )


def build_stages(config: ml_collections.ConfigDict) -> Sequence[stage.Stage]:
  """The stages of an experiment; opens no data.

  Raises:
    UserError: a field is unknown, of a wrong type, or does not fit the others.
  """
  runner = _runner(config)
  return [runner.describe(name) for name in runner.experiment.stages]


def _runner(config: ml_collections.ConfigDict) -> 'Runner':
  experiment = options.build(Experiment, config, 'config')
  return Runner(experiment, sharding.make_mesh(experiment.operation.fsdp))


@dataclasses.dataclass(frozen=True)
class Runner:
  """Builds each stage from the experiment and runs it on the mesh."""

  experiment: Experiment
  mesh: Mesh

  @property
  def bench(self) -> experiment_lib.Bench:
    """What all stages are built on."""
    whole = self.experiment
    return experiment_lib.Bench(
      whole.network, whole.data_dir, whole.operation, self.mesh
    )

  def describe(self, name: str) -> stage.Stage:
    """Checks what can be checked without data, and describes the stage."""
    return getattr(self, f'_describe_{name}')()

  def _describe_represent(self) -> stage.Stage:
    block = self.experiment.represent
    path = 'config.represent'
    block.recipe.check(self.mesh, f'{path}.recipe')
    self._check_network(block, path)
    return stage.Stage(
      'represent',
      {'network': self.bench.fitted(block.large.size), 'represent': block},
      self.run_represent,
      block.start.needs(_STAGES),
      self._plan_represent,
    )

  def run_represent(self, place: stage.Place) -> Sequence[pathlib.Path]:
    """Learns an encoder from images alone."""
    block, bench = self.experiment.represent, self.bench
    bench.require(
      [
        functools.partial(
          block.start.require, _STAGES, 'config.represent.start'
        ),
        functools.partial(
          datasets.require, block.data, self.experiment.data_dir
        ),
      ]
    )
    stream = experiment_lib.ViewsOf(
      bench.open(block.data, block.split), block.crop
    )
    trained = self._represent(bench)
    watched = watch.Watch(
      trained,
      _watched(stream, min(_NUM_WATCHED, len(stream.split))),
      experiment_lib.NUM_PICTURES,
      self.mesh,
    )
    return bench.train(
      *(place, trained, {'': stream}, block.recipe, block, watched),
      start=block.start,
    )

  def _check_network(self, block: RepresentOptions, path: str) -> None:
    """Raises UserError unless views of both sizes fit, and stages exist."""
    net = self._segmenter(self.bench)
    network.check(net, block.large.size, f'{path}.large.size')
    if block.small:
      network.check(net, block.small.size, f'{path}.small.size')

  def _plan_represent(self, compiles: bool) -> Sequence[str]:
    """What the training would compute and cost."""
    block = self.experiment.represent
    plan = self.bench.plan(
      lambda bench, num_classes: self._represent(bench),
      block.recipe,
      block.large.size,
      lambda num_classes: block.crop.spec(block.recipe.batch_size),
      block.data,
    )
    return dry_run.report(plan, compiles)

  def _represent(self, bench: experiment_lib.Bench) -> represent.Represent:
    block = self.experiment.represent
    return represent.Represent(
      segmenter=self._segmenter(bench),
      update=block.recipe.update(('encoder', 'heads')),
      options=block.learn,
      colours=block.colours,
    )

  def _segmenter(self, bench: experiment_lib.Bench) -> segmenter.Segmenter:
    """The encoder with the heads of representation learning."""
    block = self.experiment.represent
    dtype = jnp.dtype(self.experiment.network.dtype)
    heads = represent.heads_of(block.learn, block.widths, dtype)
    return bench.build(heads, block.large.size)


def _watched(
  stream: experiment_lib.ViewsOf, count: int
) -> dict[str, np.ndarray]:
  """A batch that is always the same."""
  records = stream.split.records
  examples = [
    stream.look(records[i * len(records) // count], np.random.default_rng(i))
    for i in range(count)
  ]
  return loader.on_device(loader.stack(examples))


if __name__ == '__main__':
  app.run(build_stages, None)
