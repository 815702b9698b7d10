"""U2PL and U2PL+, from the command line.

python -m u2pl.main --config=configs/u2pl_shapes.py:system=u2pl_plus,labels=50
"""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import jax.numpy as jnp
import numpy as np

from input_pipeline import batch as batch_lib
from input_pipeline import datasets, splits
from runtime import console, errors, files
from segcore import types
from segcore.eval import evaluator, predict
from segcore.experiment import cli, dry_run, program, stage
from segcore.experiment import context as context_lib
from segcore.models import heads as heads_lib
from segcore.models import network, segmenter
from segcore.train import loop, method
from segcore.train import update as update_lib
from segcore.train import workspace as workspace_lib
from u2pl import panels
from u2pl.semi import mean_teacher
from u2pl.semi import options as semi_options

_STAGES = ('train', 'evaluate')


@dataclasses.dataclass(frozen=True)
class HeadOptions:
  """The heads of student and teacher.

  Attributes:
    kind: of the scores: 'blocks' of convolution, norm and ReLU at a quarter of
      the resolution, or a single 'conv' at full resolution.
    width: channels of the blocks, of scores and representations.
    representation: D, channels of a representation; its map has stride 4.
    auxiliary_stage: name of the encoder's map that the auxiliary head reads.
  """

  kind: Literal['blocks', 'conv'] = 'blocks'
  width: int = 256
  representation: int = 256
  auxiliary_stage: str = 'x3'


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainOptions(context_lib.Labeled):
  """Training on labeled and unlabeled images.

  Attributes:
    unlabeled: split of the unlabeled images, '' for `split` itself; of
      either those that are labeled are left out.
    learn: what is learned from.
    heads: of the network.
    start: of encoder and decoder, for student and teacher.
    crop: name and fields of a crop (see `transforms.CROPS`), for both.
    flips: directions in which images are mirrored at random.
    steps_per_epoch: of the unlabeled images; in epochs go the warm-up, the
      teacher's copying and the share of unreliable pixels.
    recipe: images of each of the two streams, length, optimizer.
  """

  unlabeled: str = ''
  learn: semi_options.LearnOptions
  heads: HeadOptions = HeadOptions()
  start: context_lib.Start = context_lib.Start()
  crop: Mapping[str, Any]
  flips: tuple[str, ...] = ('horizontal',)
  steps_per_epoch: int
  recipe: update_lib.RecipeOptions

  def __post_init__(self):
    if self.steps_per_epoch < 1:
      raise ValueError(
        f'steps_per_epoch: found {self.steps_per_epoch}, expected >= 1'
      )
    if self.recipe.accumulate != 1:
      raise ValueError(
        f'recipe.accumulate: found {self.recipe.accumulate}, expected 1: '
        'percentiles, prototypes and the bank need the whole batch'
      )
    consistency = self.learn.consistency
    if consistency and self.recipe.batch_size % consistency.mixing.group:
      raise ValueError(
        f'learn.consistency.mixing.group: found {consistency.mixing.group}, '
        f'expected a divisor of the batch of {self.recipe.batch_size}'
      )
    if consistency and self.warmup_steps >= self.recipe.num_steps:
      raise ValueError(
        f'learn.warmup_epochs: found {self.learn.warmup_epochs} of '
        f'{self.steps_per_epoch} steps, expected fewer than the '
        f'{self.recipe.num_steps} steps in all'
      )

  @property
  def warmup_steps(self) -> int:
    """Steps of labeled images alone."""
    return self.learn.warmup_epochs * self.steps_per_epoch


@dataclasses.dataclass(frozen=True, kw_only=True)
class Experiment:
  """A whole config.

  Attributes:
    program: the module whose command line runs it.
    stages: which of the stages below, in order.
    data_dir: where records are kept; '' is TFDS's own place.
    without_files: what to do where data or weights are missing; may be ''.
    network: of student and teacher.
    operation: how it is carried out.
  """

  program: Literal['u2pl.main']
  stages: tuple[str, ...] = _STAGES
  data_dir: str = ''
  without_files: str = ''
  network: network.NetworkOptions
  train: TrainOptions
  evaluate: context_lib.EvaluateOptions
  operation: loop.OperationOptions = loop.OperationOptions()

  def __post_init__(self):
    program.check_stages(self.stages, _STAGES)


@dataclasses.dataclass(frozen=True)
class Runner(context_lib.OnMesh):
  """Builds each stage from the experiment and runs it on the mesh."""

  experiment: Experiment

  @property
  def reporting(self) -> context_lib.Reporting:
    """How the teacher is evaluated; the student, where there is none yet."""
    block = self.experiment.train

    def reported(found: Mapping[str, Any]) -> Mapping[str, Any]:
      taught = block.learn.consistency and found['step'] > block.warmup_steps
      prefix = 'teacher_' if taught else ''
      return {
        'step': found['step'],
        'params': found[f'{prefix}params'],
        'batch_stats': found.get(f'{prefix}batch_stats', {}),
      }

    parts = ('params', 'batch_stats')
    return context_lib.Reporting(
      bench=self.bench,
      trained_by='train',
      labeled=self.experiment.train,
      evaluate=self.experiment.evaluate,
      scores=lambda num_classes: method.HeadScores(
        self._segmenter(self.bench, num_classes)
      ),
      fields=('step', *parts, *(f'teacher_{part}' for part in parts)),
      reported=reported,
    )

  def model(self, workdir: files.Path) -> predict.Model:
    """What was trained, to predict with; UserError if it is not finished."""
    return self.reporting.model(workdir)

  def describe(self, name: str) -> stage.Stage:
    """Checks what can be checked without data, and describes the stage."""
    if name == 'evaluate':
      return self.reporting.describe(self.experiment.stages)
    block = self.experiment.train
    block.recipe.check(self.mesh, 'config.train.recipe')
    crop, _ = self._augmentations()
    net = self._segmenter(self.bench, num_classes=2)  # Any number fits.
    network.check_image_size(net, crop.size, 'config.train.crop.size')
    classes = datasets.known_num_classes(block.data)
    if classes is not None:
      self._check_classes(classes)
    settings = {'network': self.bench.fitted(crop.size), 'train': block}
    needs = block.start.needs(_STAGES)
    return stage.Stage(
      'train',
      settings,
      self.run_train,
      needs,
      lambda *asked: dry_run.report(self.plan(), *asked),
    )

  def run_train(self, place: workspace_lib.Workspace) -> Sequence[files.Path]:
    """Trains student and teacher."""
    block, bench = self.experiment.train, self.bench
    bench.require(
      [
        functools.partial(block.start.require, _STAGES, 'config.train.start'),
        functools.partial(
          datasets.check_available, block.data, self.experiment.data_dir
        ),
      ]
    )
    bench.check_labeled(block, self.experiment.evaluate.splits, 'train')
    labeled = bench.labeled(block, 'train')
    self._check_classes(len(labeled.classes))
    context_lib.keep_labeled_ids(place, labeled)
    trained = self._method(bench, len(labeled.classes))
    streams = self._streams(labeled)
    looks = evaluator.combine_evaluators(
      bench.followed(
        trained,
        block,
        block.recipe.batch_size,
        self.experiment.evaluate.protocol,
        'train',
      )
    )
    if block.learn.consistency:
      watched = panels.TeacherPanels(
        trained,
        self._watched(streams),
        labeled.palette,
        context_lib.NUM_PICTURES,
        self.mesh,
      )
      looks = evaluator.combine_summaries(looks, watched)
    outputs = bench.train(
      *(place, trained, streams, block.recipe, block, looks),
      best=f'{block.val_split}/miou',
      start=block.start,
      zero_terms_until=block.warmup_steps,
    )
    return [*outputs, *context_lib.write_classes(place, labeled)]

  def plan(self, name: str = 'train') -> dry_run.Plan:
    """The training, as far as it is known without its data."""
    del name  # There is but one.
    block = self.experiment.train
    crop, _ = self._augmentations()

    def batch_spec(num_classes: int) -> types.BatchSpec:
      del num_classes
      spec = batch_lib.spec(block.recipe.batch_size, crop.size, label=True)
      if block.learn.consistency is None:
        return spec
      return {'labeled': spec, 'unlabeled': spec}

    return self.bench.plan(
      self._method, block.recipe, crop.size, batch_spec, block.data
    )

  def _method(
    self, bench: context_lib.Bench, num_classes: int
  ) -> mean_teacher.MeanTeacher:
    block = self.experiment.train
    return mean_teacher.MeanTeacher(
      segmenter=self._segmenter(bench, num_classes),
      update=block.recipe.make_update(segmenter.SUBMODULES),
      options=block.learn,
      num_classes=num_classes,
      steps_per_epoch=block.steps_per_epoch,
    )

  def _segmenter(
    self, bench: context_lib.Bench, num_classes: int
  ) -> segmenter.Segmenter:
    """Student and teacher, fitted to the images of training."""
    crop, _ = self._augmentations()
    return bench.build(self._heads(num_classes), crop.size)

  def _heads(self, num_classes: int) -> dict[str, Any]:
    block = self.experiment.train
    blocks = functools.partial(
      heads_lib.ConvBlocksHead,
      width=block.heads.width,
      dtype=jnp.dtype(self.experiment.network.dtype),
    )
    if block.heads.kind == 'blocks':
      heads = {'logits': blocks(num_classes)}
    else:
      heads = {'logits': heads_lib.ConvHead(num_classes, init_scale=0.1)}
    if block.learn.needs_representations:
      heads['rep'] = blocks(block.heads.representation)
    if block.learn.supervised.auxiliary:
      heads['aux'] = blocks(
        num_classes,
        num_blocks=1,
        reads='encoder',
        map_name=block.heads.auxiliary_stage,
      )
    return heads

  def _streams(
    self, labeled: datasets.Split
  ) -> dict[str, context_lib.StreamOf]:
    """Labeled and unlabeled images, equally many of both."""
    block = self.experiment.train
    augmentations = self._augmentations()

    def stream(split: datasets.Split, *keep: str) -> context_lib.StreamOf:
      return context_lib.StreamOf(split, *augmentations, keep)

    batch = block.recipe.batch_size
    if block.learn.consistency is None:
      self._say_epoch(f'{len(labeled)} labeled images', len(labeled) / batch)
      return {'': stream(labeled, 'label')}
    unlabeled = self._unlabeled(labeled)
    self._say_epoch(
      f'{len(labeled)} labeled and {len(unlabeled)} unlabeled images',
      len(unlabeled) / batch,
    )
    entries = splits.repeat_to_length(
      len(labeled), max(len(labeled), len(unlabeled)), block.recipe.seed
    )
    # Only to say how good the teacher's labels are.
    truth = ('label',) if 'label' in unlabeled.label_kinds else ()
    return {
      'labeled': stream(labeled.select(entries), 'label'),
      'unlabeled': stream(unlabeled, *truth),
    }

  def _say_epoch(self, images: str, batches: float) -> None:
    console.log(
      f'train: {images}, {batches:.1f} batches; an epoch is '
      f'{self.experiment.train.steps_per_epoch} steps'
    )

  def _unlabeled(self, labeled: datasets.Split) -> datasets.Split:
    block = self.experiment.train
    split = self.bench.open(block.data, block.unlabeled or block.split)
    names = set(labeled.ids())
    if block.subset.held_out:
      held = self.bench.labeled_or(block, splits.HELD_OUT, 'train')
      names.update(held.ids())
    rest = [i for i, name in enumerate(split.ids()) if name not in names]
    if not rest:
      raise errors.UserError(
        f'config.train.subset: all {len(split)} images are labeled: label '
        'fewer, or name another split in config.train.unlabeled'
      )
    return split.select(np.array(rest))

  def _watched(
    self, streams: Mapping[str, context_lib.StreamOf]
  ) -> dict[str, Any]:
    """A batch that is always the same."""
    group = self.experiment.train.learn.consistency.mixing.group
    count = -(-context_lib.NUM_PICTURES // group) * group

    return {
      name: context_lib.fixed_batch(stream, count)
      for name, stream in streams.items()
    }

  def _augmentations(self):
    block = self.experiment.train
    return context_lib.augmentations(block.crop, block.flips, 'config.train')

  def _check_classes(self, num_classes: int) -> None:
    contrasted = self.experiment.train.learn.contrast
    if contrasted:
      try:
        contrasted.check_classes(num_classes)
      except ValueError as error:
        raise errors.UserError(
          f'config.train.learn.contrast: {error}'
        ) from error


PROGRAM = program.Program(Experiment, Runner)

if __name__ == '__main__':
  cli.run(PROGRAM)
