"""Decoder denoising pretraining, from the command line.

python -m ddep.main --config=configs/ddep_shapes.py:init=ddep,labels=100
"""

import dataclasses
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import jax
import ml_collections
import numpy as np
from jax.sharding import Mesh

from ddep import classify, denoise, finetune, noise
from input_pipeline import (
  batch,
  datasets,
  errors,
  fingerprints,
  loader,
  splits,
  transforms,
)
from segcore import (
  app,
  checkpoint,
  dry_run,
  evaluate,
  inference,
  journal,
  method,
  metrics,
  network,
  optimizers,
  options,
  pictures,
  predict,
  pretrained,
  protocols,
  sharding,
  stage,
  summary,
  train_loop,
)
from segcore.models import segmenter

_STAGES = ('classify', 'denoise', 'finetune', 'evaluate')
# Classes of a data set that says how many only when it is read.
_ASSUMED_CLASSES = 21
# Images whose tags are counted before a classification starts.
_LOOKED_AT = 100
# In the folder of `finetune`: names and colours of the class ids.
_CLASSES = 'classes.json'
# Rows of a panel.
_NUM_PICTURES = 6
# Images of val on which denoising is followed.
_NUM_WATCHED = 32


@dataclasses.dataclass(frozen=True)
class Start:
  """Where parameters come from before step 0.

  Attributes:
    path: a stage of this experiment, the folder of another one's, or a weight
      file; '' starts from random values.
    take: the parts that are taken: 'encoder', 'decoder'.
  """

  path: str = ''
  take: tuple[str, ...] = ()

  def __post_init__(self):
    if bool(self.path) != bool(self.take):
      raise ValueError(
        f'path={self.path!r} and take={self.take}: expected both or neither'
      )


@dataclasses.dataclass(frozen=True)
class ClassifyOptions:
  """Pretraining of the encoder on image-level labels.

  Attributes:
    data: needs tags.
    split: trained on.
    val_split: evaluated on.
    kind: 'softmax' where an image has one class, 'sigmoid' where several.
    crop: name and fields of a crop (see `transforms.CROPS`).
    flips: directions in which images are mirrored at random.
    recipe: batch, length, optimiser.
  """

  data: datasets.Options
  split: str
  val_split: str
  kind: Literal['softmax', 'sigmoid']
  crop: Mapping[str, Any]
  flips: tuple[str, ...]
  recipe: method.Recipe


@dataclasses.dataclass(frozen=True)
class DenoiseOptions:
  """Denoising pretraining.

  Attributes:
    data: images; their labels are not read.
    split: trained on.
    val_split: some of its images are denoised along the way.
    start: of the frozen encoder (DDeP), or nothing (DeP).
    trained: parts that learn: ('decoder', 'heads') is DDeP, with 'encoder' DeP.
    noise: kind and strength.
    crop: as above.
    flips: as above.
    recipe: as above.
  """

  data: datasets.Options
  split: str
  val_split: str
  start: Start
  trained: tuple[str, ...]
  noise: noise.Options
  crop: Mapping[str, Any]
  flips: tuple[str, ...]
  recipe: method.Recipe

  def __post_init__(self):
    allowed = ('encoder', 'decoder', 'heads')
    if not self.trained or not set(self.trained) <= set(allowed):
      raise ValueError(
        f'trained: found {self.trained}, expected some of {allowed}'
      )


@dataclasses.dataclass(frozen=True)
class FinetuneOptions:
  """Fine-tuning on few pixel labels.

  Attributes:
    data: needs masks.
    split: its labelled subset is trained on.
    val_split: evaluated on, on the way.
    follow: splits that are evaluated on the way too, for a curve; the split
      that is trained on means its labelled images.
    subset: which images are labelled.
    start: of encoder and decoder.
    crop: as above.
    flips: as above.
    recipe: as above.
  """

  data: datasets.Options
  split: str
  val_split: str
  follow: tuple[str, ...]
  subset: splits.Subset
  start: Start
  crop: Mapping[str, Any]
  flips: tuple[str, ...]
  recipe: method.Recipe


@dataclasses.dataclass(frozen=True)
class EvaluateOptions:
  """The evaluation that is reported.

  Attributes:
    splits: of the fine-tuning's data set; the split that was trained on means
      its labelled images.
    batch_size: global number of images.
    protocol: how the network looks at an image.
    which: the state after the last step, or the best one on `val_split`.
  """

  splits: tuple[str, ...]
  batch_size: int
  protocol: protocols.Options
  which: Literal['last', 'best'] = 'last'


@dataclasses.dataclass(frozen=True)
class Experiment:
  """A whole config.

  Attributes:
    program: the module whose command line runs it.
    stages: which of the stages below, in order.
    data_dir: where records are kept; '' is TFDS's own place.
    network: of all stages.
    operation: how it is carried out.
  """

  program: Literal['ddep.main']
  stages: tuple[str, ...]
  data_dir: str
  network: network.Options
  classify: ClassifyOptions
  denoise: DenoiseOptions
  finetune: FinetuneOptions
  evaluate: EvaluateOptions
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
  experiment = options.build(Experiment, config, 'config')
  runner = Runner(experiment, sharding.make_mesh(experiment.operation.fsdp))
  return [runner.describe(name) for name in experiment.stages]


def load_model(
  config: ml_collections.ConfigDict, workdir: pathlib.Path
) -> predict.Model:
  """The fine-tuned network of a finished run, to predict with.

  Raises:
    UserError: the run is not finished.
  """
  experiment = options.build(Experiment, config, 'config')
  mesh = sharding.make_mesh(experiment.operation.fsdp)
  return Runner(experiment, mesh).model(workdir)


@dataclasses.dataclass(frozen=True)
class Runner:
  """Builds each stage from the experiment and runs it on the mesh."""

  experiment: Experiment
  mesh: Mesh

  def describe(self, name: str) -> stage.Stage:
    """Checks what can be checked without data, and describes the stage."""
    block = getattr(self.experiment, name)
    if name == 'evaluate':
      self._check_evaluate()
      settings = options.to_dict(block)
      # How many images at once changes nothing of what is found.
      del settings['batch_size']
      return stage.Stage(
        name, settings, self.run_evaluate, ('finetune',), self._plan_evaluate
      )
    block.recipe.check(self.mesh, f'config.{name}.recipe')
    crop, _ = self._augmentations(name)
    heads = _heads(name, num_classes=2)  # Any number shows whether it fits.
    network.check(self._network(heads), crop.size, f'config.{name}.crop.size')
    settings = {
      'network': self.experiment.network,
      name: block,
    }
    start = getattr(block, 'start', Start())
    needs = (start.path,) if start.path in _STAGES else ()
    if start.path and not needs and not _folder(start.path).exists():
      raise errors.UserError(
        f'config.{name}.start.path: {start.path} does not exist: expected a '
        'stage, the folder of one, or a weight file'
      )
    return stage.Stage(
      name,
      settings,
      getattr(self, f'run_{name}'),
      needs,
      lambda compiles: dry_run.report(self._plan(name), compiles),
    )

  def _plan(self, name: str) -> dry_run.Plan:
    """A stage of training, as far as it is known without its data."""
    block = getattr(self.experiment, name)
    crop, _ = self._augmentations(name)
    classes = datasets.known_classes(block.data)
    notes = [
      optimizers.describe(block.recipe.optimizer, block.recipe.num_steps)
    ]
    if name != 'denoise' and classes is None:
      classes = _ASSUMED_CLASSES
      notes.append(
        f'only the files of {block.data.name} tell its classes: '
        f'{classes} are assumed'
      )
    return dry_run.Plan(
      build=lambda remat: self._with_remat(remat)._method(name, classes or 0),
      remat=self.experiment.network.remat,
      batch_spec=batch.spec(
        block.recipe.batch_size,
        crop.size,
        label=name == 'finetune',
        num_tags=classes if name == 'classify' else None,
      ),
      batch_size=block.recipe.batch_size,
      accumulate=block.recipe.accumulate,
      num_steps=block.recipe.num_steps,
      image_size=crop.size,
      mesh=self.mesh,
      notes=tuple(notes),
    )

  def _plan_evaluate(self, compiles: bool) -> Sequence[str]:
    """The protocol in words."""
    del compiles  # How large the images are is known from the data only.
    block = self.experiment.evaluate
    return [
      f'{", ".join(block.splits)}: {block.protocol.describe()}',
      f'by the {block.which} state of finetune, {block.batch_size} images at '
      'once',
    ]

  def run_classify(self, place: stage.Place) -> Sequence[pathlib.Path]:
    """Trains the encoder on tags."""
    self._check_data()
    block = self.experiment.classify
    split = self._open(block.data, block.split, 'tags', 'classify')
    val = self._open(block.data, block.val_split, 'tags', 'classify')
    trained = self._method('classify', len(split.classes))
    evaluator = self._evaluator(
      val,
      inference.ImageScores(trained, self._multiple),
      metrics.Accuracy.empty(),
      'tags',
      block.recipe.batch_size,
    )
    return self._train(
      *(place, block, trained, split, ('tags',)),
      evaluate.together({block.val_split: evaluator}),
      f'{block.val_split}/accuracy',
    )

  def run_denoise(self, place: stage.Place) -> Sequence[pathlib.Path]:
    """Trains the decoder, or everything, to find noise."""
    self._check_data()
    block = self.experiment.denoise
    split = self._open(block.data, block.split)
    trained = self._method('denoise')
    # Like training images, but always the same ones.
    val = self._open(block.data, block.val_split)
    look = _augment(val, (), *self._augmentations('denoise'))
    watched = [
      look(val.records[i], np.random.default_rng(i))['image']
      for i in range(min(_NUM_WATCHED, len(val)))
    ]
    watch = denoise.Watch(
      *(trained, block.val_split, np.stack(watched)),
      *(_NUM_PICTURES, self.mesh),
    )
    return self._train(place, block, trained, split, (), watch)

  def run_finetune(self, place: stage.Place) -> Sequence[pathlib.Path]:
    """Trains everything on labelled images."""
    self._check_data()
    block = self.experiment.finetune
    labelled = self._labelled()
    stage.keep_same(
      place.directory / 'labelled_ids.json',
      labelled.ids(),
      'the choice of labelled images',
    )
    trained = self._method('finetune', len(labelled.classes))
    evaluators = {
      name: self._segmentation_evaluator(
        trained,
        self._labelled_or(name),
        block.recipe.batch_size,
        self.experiment.evaluate.protocol.single(),
      )
      for name in (block.val_split, *block.follow)
    }
    outputs = self._train(
      *(place, block, trained, labelled, ('label',)),
      evaluate.together(evaluators),
      f'{block.val_split}/miou',
    )
    names = place.directory / _CLASSES
    stage.write_json(
      names, {'classes': labelled.classes, 'palette': labelled.palette}
    )
    return [*outputs, names]

  def run_evaluate(self, place: stage.Place) -> Sequence[pathlib.Path]:
    """Reports the fine-tuned network by the protocol of the config."""
    block = self.experiment.evaluate
    self._check_data()
    trained = self._method('finetune', len(self._labelled().classes))
    step, state = self._finetuned(place.needed['finetune'])
    pictured = place.directory / 'pictures'
    pictured.mkdir(parents=True, exist_ok=True)
    writer = summary.open_writer(place.directory / 'tensorboard')
    results = {}
    for name in block.splits:
      split = self._labelled_or(name)
      evaluator = self._segmentation_evaluator(
        trained, split, block.batch_size, block.protocol, show=True
      )
      evaluated = evaluator(state)
      results[name] = evaluate.to_json(evaluated.values, split)
      scalars = evaluate.scalars(evaluated.values)
      writer.write_scalars(step, {f'{name}/{k}': v for k, v in scalars.items()})
      if evaluated.panel is not None and jax.process_index() == 0:
        writer.write_images(step, {f'{name}/panels': evaluated.panel[None]})
        pictures.write(pictured / f'{name}.png', evaluated.panel)
      journal.say(
        f'{split.name}: mIoU {evaluated.values["miou"]:.4f} over {len(split)} '
        'images'
      )
    writer.close()
    path = place.directory / 'results.json'
    stage.write_json(
      path,
      {
        'protocol': block.protocol.describe(),
        'which': block.which,
        'step': step,
        'digest': place.digest,
        'splits': results,
      },
    )
    return [path, pictured]

  def model(self, workdir: pathlib.Path) -> predict.Model:
    """What the stage `finetune` of a folder has trained.

    Raises:
      UserError: it is not finished.
    """
    folder = workdir / 'finetune'
    stage.verify(folder, 'predict')
    found = stage.read_json(folder / _CLASSES)
    block = self.experiment.evaluate
    trained = self._method('finetune', len(found['classes']))
    _, state = self._finetuned(folder)
    return predict.Model(
      state=state,
      predictor=self._label_maps(
        trained, len(found['classes']), block.protocol
      ),
      classes=tuple(found['classes']),
      palette=tuple((r, g, b) for r, g, b in found['palette']),
      batch_size=block.batch_size,
      mesh=self.mesh,
      reading=self.experiment.operation.reading,
    )

  def _finetuned(self, folder: pathlib.Path) -> tuple[int, method.TrainState]:
    """The step and the state that are reported."""
    which = self.experiment.evaluate.which
    found = checkpoint.read(
      folder / ('best' if which == 'best' else 'checkpoints'),
      ('step', 'params', 'batch_stats'),
    )
    return int(found['step']), method.frozen(found, self.mesh)

  def _label_maps(
    self,
    trained: finetune.Finetune,
    num_classes: int,
    protocol: protocols.Options,
  ) -> inference.LabelMaps:
    return inference.LabelMaps(trained, num_classes, protocol, self._multiple)

  def _train(
    self,
    place: stage.Place,
    block: Any,
    trained: method.Method,
    split: datasets.Split,
    keep: tuple[str, ...],
    evaluation: train_loop.Evaluate,
    best: str | None = None,
  ) -> Sequence[pathlib.Path]:
    """Trains to the end of the block's recipe; returns what it leaves."""
    stage.keep_same(
      place.directory / 'data.json',
      {'version': split.version, 'num_images': len(split)},
      'the data set',
    )
    crop, flips = self._augmentations(place.directory.name)
    batches = loader.Loader(
      {'': loader.Stream(split.records, _augment(split, keep, crop, flips))},
      block.recipe.batch_size,
      block.recipe.seed,
      self.experiment.operation.reading,
    )
    training = train_loop.Training(
      method=trained,
      loader=batches,
      num_steps=block.recipe.num_steps,
      seed=block.recipe.seed,
      evaluate=evaluation,
      evaluate_every=block.recipe.evaluate_every,
      best=best and train_loop.Best(best),
      loaded=self._loaded(place, block, trained.segmenter, crop.size),
      note=optimizers.describe(block.recipe.optimizer, block.recipe.num_steps),
      hparams=options.to_dict(block),
    )
    train_loop.train(training, place, self.experiment.operation, self.mesh)
    folders = [place.directory / name for name in ('checkpoints', 'best')]
    return [*folders, place.directory / 'metrics.jsonl']

  def _augmentations(self, name: str) -> tuple[Any, transforms.RandomFlip]:
    """The crop and the flips of a stage."""
    block = getattr(self.experiment, name)
    crop = _crop(block.crop, f'config.{name}.crop')
    return crop, _flips(block.flips, f'config.{name}.flips')

  def _loaded(
    self,
    place: stage.Place,
    block: Any,
    net: segmenter.Segmenter,
    size: tuple[int, int],
  ) -> dict[str, Any] | None:
    start = getattr(block, 'start', Start())
    if not start.path:
      return None
    path = place.needed.get(start.path, _folder(start.path))
    return pretrained.load(path, start.take, net, (1, *size, 3))

  def _method(self, name: str, num_classes: int = 0) -> method.OneLoss:
    """What a stage trains, and how."""
    block = getattr(self.experiment, name)
    net = self._network(_heads(name, num_classes))
    update = block.recipe.update
    match name:
      case 'classify':
        return classify.Classify(net, update(('encoder', 'heads')), block.kind)
      case 'denoise':
        return denoise.Denoise(net, update(block.trained), block.noise)
      case _:
        return finetune.Finetune(net, update(('encoder', 'decoder', 'heads')))

  def _with_remat(self, remat: bool) -> 'Runner':
    """The same, but for what is stored for the backward pass."""
    net = dataclasses.replace(self.experiment.network, remat=remat)
    experiment = dataclasses.replace(self.experiment, network=net)
    return dataclasses.replace(self, experiment=experiment)

  def _segmentation_evaluator(
    self,
    trained: finetune.Finetune,
    split: datasets.Split,
    batch_size: int,
    protocol: protocols.Options,
    show: bool = False,
  ) -> evaluate.Evaluator:
    metric = metrics.ConfusionMatrix.empty(len(split.classes))
    predictor = self._label_maps(trained, len(split.classes), protocol)
    return self._evaluator(split, predictor, metric, 'label', batch_size, show)

  @property
  def _multiple(self) -> int:
    return self._network(_heads('classify', 1)).encoder.multiple

  def _evaluator(
    self, split, predictor, metric, target, batch_size, show=False
  ) -> evaluate.Evaluator:
    predictions = evaluate.Predictions(
      split=split,
      predictor=predictor,
      batch_size=batch_size,
      mesh=self.mesh,
      keep=(target,),
      reading=self.experiment.operation.reading,
      show=show,
    )
    pictured = _NUM_PICTURES if target == 'label' else 0
    return evaluate.Evaluator(predictions, (metric,), target, pictured)

  def _network(self, heads) -> segmenter.Segmenter:
    return network.build(self.experiment.network, heads, 'config.network')

  def _open(
    self, data: datasets.Options, split: str, kind: str = '', purpose: str = ''
  ) -> datasets.Split:
    opened = datasets.open_split(data, split, self.experiment.data_dir)
    if kind:
      opened.require(kind, purpose)
    return opened

  def _check_data(self) -> None:
    """Opens all that any stage will read, so that nothing fails hours later.

    Raises:
      UserError: a split is missing or has not the labels that are needed.
    """
    stages, block = self.experiment.stages, self.experiment
    if 'classify' in stages:
      tagged = self._open(
        block.classify.data, block.classify.split, 'tags', 'classify'
      )
      _check_tags(tagged, block.classify.kind)
      self._open(
        block.classify.data, block.classify.val_split, 'tags', 'classify'
      )
    if 'denoise' in stages:
      for name in (block.denoise.split, block.denoise.val_split):
        self._open(block.denoise.data, name)
    if 'finetune' in stages:
      tuning = block.finetune
      used = (tuning.split, tuning.val_split, *tuning.follow)
      for name in (*used, *block.evaluate.splits):
        opened = self._labelled_or(name)
        if name != tuning.split:
          labelled = self._labelled()
          fingerprints.check_disjoint(
            labelled.index, opened.index, (labelled.name, opened.name)
          )

  def _labelled_or(self, name: str) -> datasets.Split:
    """A split with masks; of the one that is trained on, the labelled part."""
    block = self.experiment.finetune
    if name == block.split:
      return self._labelled()
    return self._open(block.data, name, 'label', 'finetune')

  def _labelled(self) -> datasets.Split:
    block = self.experiment.finetune
    split = self._open(block.data, block.split, 'label', 'finetune')
    return split.select(block.subset.choose(split.ids()))

  def _check_evaluate(self) -> None:
    if 'finetune' not in self.experiment.stages:
      raise errors.UserError(
        'config.stages: evaluate needs finetune, which is not among '
        f'{self.experiment.stages}'
      )
    sharding.check_batch(
      self.experiment.evaluate.batch_size,
      self.mesh,
      'config.evaluate.batch_size',
    )


def _folder(path: str) -> pathlib.Path:
  return pathlib.Path(path).expanduser()


def _heads(name: str, num_classes: int) -> dict[str, Any]:
  """The heads of a stage."""
  match name:
    case 'classify':
      return {'tags': segmenter.PoolHead(num_classes)}
    case 'denoise':
      return {'noise': segmenter.ConvHead(3)}
    case _:
      # Small first scores: the loss starts at log(num_classes).
      return {'logits': segmenter.ConvHead(num_classes, init_scale=0.1)}


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


def _crop(block: Mapping[str, Any], path: str) -> Any:
  return options.choose(transforms.CROPS, block, path)


def _flips(kinds: tuple[str, ...], path: str) -> transforms.RandomFlip:
  return options.build(transforms.RandomFlip, {'kinds': kinds}, path)


def _augment(
  split: datasets.Split,
  keep: tuple[str, ...],
  *augmentations: transforms.Transform,
) -> transforms.Transform:
  """From a record of the split to an example of training."""
  decode = transforms.Decode(len(split.classes), keep)
  return transforms.Sequence((decode, *augmentations))


if __name__ == '__main__':
  app.run(build_stages, load_model)
