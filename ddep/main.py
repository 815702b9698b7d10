"""Decoder denoising pretraining, from the command line.

python -m ddep.main --config=configs/ddep_shapes.py:init=ddep,labels=100
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import numpy as np

from ddep import noise
from ddep.stages import classify, denoise, finetune
from input_pipeline import batch as batch_lib
from input_pipeline import datasets, transforms
from runtime import errors, files
from segcore.eval import evaluator as evaluator_lib
from segcore.eval import inference, metrics, predict
from segcore.experiment import cli, dry_run, program, stage
from segcore.experiment import context as context_lib
from segcore.models import heads as heads_lib
from segcore.models import network
from segcore.train import loop, method
from segcore.train import update as update_lib
from segcore.train import workspace as workspace_lib

_STAGES = ('classify', 'denoise', 'finetune', 'evaluate')
# Images whose tags are counted before a classification starts.
_LOOKED_AT = 100
# Images of val on which denoising is followed.
_NUM_WATCHED = 32


@dataclasses.dataclass(frozen=True, kw_only=True)
class ClassifyOptions:
  """Pretraining of the encoder on image-level labels.

  Attributes:
    data: needs tags.
    split: trained on.
    val_split: evaluated on.
    kind: 'softmax' where an image has one class, 'sigmoid' where several.
    crop: name and fields of a crop (see `transforms.CROPS`).
    flips: directions in which images are mirrored at random.
    recipe: batch, length, optimizer.
  """

  data: datasets.DataOptions
  split: str = 'train'
  val_split: str = 'val'
  kind: Literal['softmax', 'sigmoid']
  crop: Mapping[str, Any]
  flips: tuple[str, ...] = ('horizontal',)
  recipe: update_lib.RecipeOptions


@dataclasses.dataclass(frozen=True, kw_only=True)
class DenoiseOptions:
  """Denoising pretraining.

  Attributes:
    data: images; their labels are not read.
    split: trained on.
    also: further images that are trained on.
    val_split: some of its images are denoised along the way.
    start: of the frozen encoder (DDeP), or nothing (DeP).
    trained: parts that learn: ('decoder', 'heads') is DDeP, with 'encoder' DeP.
    noise: kind and strength.
    crop: as above.
    flips: as above.
    recipe: as above.
  """

  data: datasets.DataOptions
  split: str = 'train'
  val_split: str = 'val'
  start: context_lib.Start = context_lib.Start()
  trained: tuple[str, ...] = ('decoder', 'heads')
  noise: noise.NoiseOptions
  crop: Mapping[str, Any]
  flips: tuple[str, ...] = ('horizontal',)
  recipe: update_lib.RecipeOptions
  also: tuple[context_lib.Images, ...] = ()

  def __post_init__(self):
    allowed = ('encoder', 'decoder', 'heads')
    if not self.trained or not set(self.trained) <= set(allowed):
      raise ValueError(
        f'trained: found {self.trained}, expected some of {allowed}'
      )


@dataclasses.dataclass(frozen=True, kw_only=True)
class FinetuneOptions(context_lib.Labeled):
  """Fine-tuning on few pixel labels.

  Attributes:
    start: of encoder and decoder.
    crop: as above.
    flips: as above.
    recipe: as above.
  """

  start: context_lib.Start = context_lib.Start()
  crop: Mapping[str, Any]
  flips: tuple[str, ...] = ('horizontal',)
  recipe: update_lib.RecipeOptions


@dataclasses.dataclass(frozen=True, kw_only=True)
class Experiment:
  """A whole config.

  Attributes:
    program: the module whose command line runs it.
    stages: which of the stages below, in order.
    data_dir: where records are kept; '' is TFDS's own place.
    network: of all stages.
    operation: how it is carried out.
    classify: None where the encoder comes from elsewhere.
    without_files: what can be done where data or weights are missing.
  """

  program: Literal['ddep.main']
  stages: tuple[str, ...]
  data_dir: str = ''
  network: network.NetworkOptions
  denoise: DenoiseOptions
  finetune: FinetuneOptions
  evaluate: context_lib.EvaluateOptions
  operation: loop.OperationOptions = loop.OperationOptions()
  classify: ClassifyOptions | None = None
  without_files: str = ''

  def __post_init__(self):
    program.check_stages(self.stages, _STAGES)
    if 'classify' in self.stages and self.classify is None:
      raise ValueError(
        f'stages: found {self.stages}, but there is no block `classify`'
      )


@dataclasses.dataclass(frozen=True)
class Runner(context_lib.OnMesh):
  """Builds each stage from the experiment and runs it on the mesh."""

  experiment: Experiment

  @property
  def reporting(self) -> context_lib.Reporting:
    """How the fine-tuned network is evaluated."""
    return context_lib.Reporting(
      bench=self.bench,
      trained_by='finetune',
      labeled=self.experiment.finetune,
      evaluate=self.experiment.evaluate,
      scores=lambda num_classes: self._method(
        'finetune', self.bench, num_classes
      ),
    )

  def model(self, workdir: files.Path) -> predict.Model:
    """What was trained, to predict with; UserError if it is not finished."""
    return self.reporting.model(workdir)

  def describe(self, name: str) -> stage.Stage:
    """Checks what can be checked without data, and describes the stage."""
    if name == 'evaluate':
      return self.reporting.describe(self.experiment.stages)
    block = getattr(self.experiment, name)
    path = f'config.{name}'
    block.recipe.check(self.mesh, f'{path}.recipe')
    crop, _ = self._augmentations(name)
    heads = _heads(name, num_classes=2)  # Any number fits.
    net = self.bench.build(heads, crop.size)
    network.check_image_size(net, crop.size, f'{path}.crop.size')
    settings = {'network': self.bench.fitted(crop.size), name: block}
    needs = _start(block).needs(_STAGES)
    return stage.Stage(
      name,
      settings,
      getattr(self, f'run_{name}'),
      needs,
      lambda *asked: dry_run.report(self.plan(name), *asked),
    )

  def plan(self, name: str) -> dry_run.Plan:
    """A stage of training, as far as it is known without its data."""
    block = getattr(self.experiment, name)
    crop, _ = self._augmentations(name)
    return self.bench.plan(
      functools.partial(self._method, name),
      block.recipe,
      crop.size,
      lambda num_classes: batch_lib.spec(
        block.recipe.batch_size,
        crop.size,
        label=name == 'finetune',
        num_tags=num_classes if name == 'classify' else None,
      ),
      block.data,
    )

  def run_classify(
    self, place: workspace_lib.Workspace
  ) -> Sequence[files.Path]:
    """Trains the encoder on tags."""
    self._check_data(place)
    block = self.experiment.classify
    split, val = (
      self.bench.open(block.data, name, 'tags', 'classify')
      for name in (block.split, block.val_split)
    )
    trained = self._method('classify', self.bench, len(split.classes))
    evaluator = self.bench.evaluator(
      val,
      inference.ImageScores(trained, self.bench.multiple),
      metrics.Accuracy.empty(),
      'tags',
      block.recipe.batch_size,
    )
    return self._train(
      *(place, trained, split, ('tags',)),
      evaluator_lib.combine_evaluators({block.val_split: evaluator}),
      f'{block.val_split}/accuracy',
    )

  def run_denoise(self, place: workspace_lib.Workspace) -> Sequence[files.Path]:
    """Trains the decoder, or everything, to find noise."""
    self._check_data(place)
    block = self.experiment.denoise
    trained = self._method('denoise', self.bench, 0)
    # Like training images, but always the same ones.
    val = self.bench.open(block.data, block.val_split)
    look = context_lib.StreamOf(val, *self._augmentations('denoise')).look
    watched = [
      look(val.records[i], np.random.default_rng(i))['image']
      for i in range(min(_NUM_WATCHED, len(val)))
    ]
    watch = denoise.Watch(
      *(trained, block.val_split, np.stack(watched)),
      *(context_lib.NUM_PICTURES, self.mesh),
    )
    split = datasets.concatenate(
      [self.bench.open(images.data, images.split) for images in _images(block)]
    )
    return self._train(place, trained, split, (), watch)

  def run_finetune(
    self, place: workspace_lib.Workspace
  ) -> Sequence[files.Path]:
    """Trains everything on labeled images."""
    self._check_data(place)
    block = self.experiment.finetune
    labeled = self.bench.labeled(block, 'finetune')
    context_lib.keep_labeled_ids(place, labeled)
    trained = self._method('finetune', self.bench, len(labeled.classes))
    evaluators = self.bench.followed(
      trained,
      block,
      block.recipe.batch_size,
      self.experiment.evaluate.protocol,
      'finetune',
    )
    outputs = self._train(
      *(place, trained, labeled, ('label',)),
      evaluator_lib.combine_evaluators(evaluators),
      f'{block.val_split}/miou',
    )
    return [*outputs, *context_lib.write_classes(place, labeled)]

  def _train(
    self,
    place: workspace_lib.Workspace,
    trained: method.Method,
    split: datasets.Split,
    keep: tuple[str, ...],
    evaluation: loop.EvaluateFn,
    best: str | None = None,
  ) -> Sequence[files.Path]:
    """Trains to the end of the stage's recipe; returns what it leaves."""
    name = place.directory.name
    block = getattr(self.experiment, name)
    stream = context_lib.StreamOf(split, *self._augmentations(name), keep)
    return self.bench.train(
      *(place, trained, {'': stream}, block.recipe, block),
      evaluation,
      best,
      _start(block),
    )

  def _augmentations(self, name: str) -> tuple[Any, transforms.RandomFlip]:
    """The crop and the flips of a stage."""
    block = getattr(self.experiment, name)
    return context_lib.augmentations(block.crop, block.flips, f'config.{name}')

  def _method(
    self, name: str, bench: context_lib.Bench, num_classes: int
  ) -> method.SingleLossMethod:
    """What a stage trains, and how."""
    block = getattr(self.experiment, name)
    crop, _ = self._augmentations(name)
    net = bench.build(_heads(name, num_classes), crop.size)
    update = block.recipe.make_update
    match name:
      case 'classify':
        return classify.Classify(net, update(('encoder', 'heads')), block.kind)
      case 'denoise':
        return denoise.Denoise(net, update(block.trained), block.noise)
      case _:
        return finetune.Finetune(net, update(('encoder', 'decoder', 'heads')))

  def _check_data(self, place: workspace_lib.Workspace) -> None:
    """Opens all that is left to read, so that nothing fails hours later.

    Raises:
      UserError: a data set, a split or a weight file is missing, or a split has
        not the labels that are needed.
    """
    block = self.experiment
    stages = [
      name
      for name in block.stages
      if not stage.is_finished(place.directory.parent / name)
    ]
    self.bench.require(
      [require for name in stages for require in self._requirements(name)]
    )
    if 'classify' in stages:
      for name in (block.classify.split, block.classify.val_split):
        tagged = self.bench.open(block.classify.data, name, 'tags', 'classify')
        _check_tags(tagged, block.classify.kind)
    if 'denoise' in stages:
      self.bench.open(block.denoise.data, block.denoise.val_split)
      for images in _images(block.denoise):
        self.bench.open(images.data, images.split)
    if 'finetune' in stages:
      self.bench.check_labeled(
        block.finetune, block.evaluate.splits, 'finetune'
      )

  def _requirements(self, name: str) -> list[Callable[[], None]]:
    """What raises Missing unless data and weights of a stage are there."""
    if name == 'evaluate':
      return []  # What it reads is fine-tuning's.
    block = getattr(self.experiment, name)
    return [
      functools.partial(_start(block).require, _STAGES, f'config.{name}.start'),
      *(
        functools.partial(
          datasets.check_available, images.data, self.experiment.data_dir
        )
        for images in _images(block)
      ),
    ]


def _images(block: Any) -> list[context_lib.Images]:
  """All images that a stage is trained on."""
  return [
    context_lib.Images(block.data, block.split),
    *getattr(block, 'also', ()),
  ]


def _start(block: Any) -> context_lib.Start:
  return getattr(block, 'start', context_lib.Start())


def _heads(name: str, num_classes: int) -> dict[str, Any]:
  """The heads of a stage."""
  match name:
    case 'classify':
      return {'tags': heads_lib.PoolHead(num_classes)}
    case 'denoise':
      return {'noise': heads_lib.ConvHead(3)}
    case _:
      # Small first scores: the loss starts at log(num_classes).
      return {'logits': heads_lib.ConvHead(num_classes, init_scale=0.1)}


def _check_tags(split: datasets.Split, kind: str) -> None:
  """Raises UserError if softmax is asked for where images have several tags."""
  if kind != 'softmax':
    return
  for i in range(min(len(split), _LOOKED_AT)):
    record = split.records[i]
    if len(record['tags']) != 1:
      raise errors.UserError(
        f"config.classify.kind: found 'softmax', but image "
        f'{record["id"].decode()} of {split.name} has {len(record["tags"])} '
        "tags: expected 'sigmoid'"
      )


PROGRAM = program.Program(Experiment, Runner)

if __name__ == '__main__':
  cli.run(PROGRAM)
