"""PASS for unsupervised segmentation, from the command line.

python -m pass_luss.main --config=configs/pass_shapes.py:branch=swav
"""

import dataclasses
import functools
import pathlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
from jax.sharding import Mesh

from input_pipeline import batch as batch_lib
from input_pipeline import datasets, errors, loader, views
from pass_luss import (
  attend,
  cluster,
  distance,
  finetune,
  heads,
  kmeans,
  looking,
  matching,
  pseudo_labels,
  represent,
  segment,
  swav,
  watch,
)
from segcore import (
  app,
  checkpoint,
  dry_run,
  journal,
  method,
  network,
  options,
  photometric,
  pictures,
  predict,
  sharding,
  stage,
  summary,
  train_loop,
)
from segcore import experiment as experiment_lib
from segcore.models import segmenter

# In an order in which each comes after what it needs.
_STAGES = (
  *('represent', 'distance', 'attend', 'cluster', 'label'),
  *('finetune', 'segment', 'semi', 'segment_semi'),
)
# Stages of training.
_TRAININGS = ('represent', 'attend', 'finetune', 'semi')
# Images whose views are watched.
_NUM_WATCHED = 64
# Bytes of the features of a host, at most.
_MOST_FEATURES = 64e9
# Classes of a data set that says how many only when it is read.
_ASSUMED_CLASSES = 50


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
    _check_large(self.large)
    if self.small and self.small.name != 'small':
      raise ValueError(
        f"small.name: found {self.small.name!r}, expected 'small'"
      )
    if self.small and not self.learn.clusters:
      raise ValueError('small: found views, but only clusters learn from them')
    _check_whole(self.recipe)

  @property
  def crop(self) -> views.MultiCrop:
    """What all views are cut by."""
    groups = (self.large, self.small) if self.small else (self.large,)
    return views.MultiCrop(groups)


@dataclasses.dataclass(frozen=True)
class AttendOptions:
  """Pixel attention.

  Attributes:
    clusters: its targets, their loss and the queue.
    shared: one attention for all channels.
    large: both views.
    colours: of the views.
    recipe: batch, length, optimiser.
  """

  clusters: swav.Options
  shared: bool
  large: views.Views
  colours: represent.Colours
  recipe: method.Recipe

  def __post_init__(self):
    _check_large(self.large)
    _check_whole(self.recipe)

  @property
  def crop(self) -> views.MultiCrop:
    """What the views are cut by."""
    return views.MultiCrop((self.large,))


@dataclasses.dataclass(frozen=True)
class FinetuneOptions:
  """Fine-tuning, on generated labels or on given masks.

  Attributes:
    split: whose masks are learned from; '' for the generated labels of the
      training images.
    crop: name and fields of a crop (see `transforms.CROPS`).
    flips: directions in which images are mirrored at random.
    colours: how colours are changed.
    reduction: factor by which label maps are made smaller.
    doubles: whether scores are doubled on the way there, again and again.
    recipe: batch, length, optimiser.
  """

  split: str
  crop: Mapping[str, Any]
  flips: tuple[str, ...]
  reduction: int
  recipe: method.Recipe
  doubles: bool = False
  colours: photometric.Options = photometric.Options()

  def __post_init__(self):
    if self.reduction < 1:
      raise ValueError(f'reduction: found {self.reduction}, expected 1 or more')


@dataclasses.dataclass(frozen=True)
class SegmentOptions:
  """Label maps of whole splits, and their score.

  Attributes:
    splits: that are labelled; those with masks are scored.
    match_on: the split that generated categories are matched with classes on.
    inference: 'logits', or 'cam': the activation of the image's category.
    threshold: of 'cam'; negative: chosen on `match_on`.
    short_side: of the images.
    batch_size: global number of images; changes nothing of what is found.
    about: what a submission says of the method.
    data: that is segmented; None for the images that were learned from. The
      categories of another, smaller data set are matched with its classes, and
      those left over are 'other' (§5.6).
  """

  splits: tuple[str, ...]
  match_on: str = 'val'
  inference: Literal['logits', 'cam'] = 'logits'
  threshold: float = -1.0
  short_side: int = 256
  batch_size: int = 16
  about: segment.About = segment.About()
  data: datasets.Options | None = None


@dataclasses.dataclass(frozen=True)
class Experiment:
  """A whole config.

  Attributes:
    program: the module whose command line runs it.
    stages: which of the stages below, in order.
    data_dir: where records are kept; '' is TFDS's own place.
    without_files: what to do where data or weights are missing; may be ''.
    network: the encoder of all stages.
    images: what is clustered, labelled and segmented.
    represent: step 1, an encoder from images alone.
    distance: of it, by neighbours.
    attend: step 2a, what matters in an image.
    cluster: step 2b, centroids.
    label: step 2c, a label map for each image.
    finetune: step 3, on these.
    segment: of what was fine-tuned.
    semi: fine-tuning on masks instead.
    segment_semi: of that.
    operation: how it is carried out.
  """

  program: Literal['pass_luss.main']
  stages: tuple[str, ...]
  data_dir: str
  without_files: str
  network: network.Options
  images: experiment_lib.Images
  represent: RepresentOptions
  distance: distance.Options
  attend: AttendOptions
  cluster: cluster.Options
  label: pseudo_labels.Options
  finetune: FinetuneOptions
  segment: SegmentOptions
  semi: FinetuneOptions
  segment_semi: SegmentOptions
  operation: train_loop.Operation

  def __post_init__(self):
    if not self.stages or not set(self.stages) <= set(_STAGES):
      raise ValueError(
        f'stages: found {self.stages}, expected some of {_STAGES}'
      )
    if 'attend' in self.stages and not self.represent.learn.clusters:
      raise ValueError(
        "stages: found 'attend', which learns by clusters, but "
        'represent.learn.clusters is None'
      )
    if bool(self.finetune.split) or not self.semi.split:
      raise ValueError(
        f'finetune.split={self.finetune.split!r} and semi.split='
        f"{self.semi.split!r}: expected '' for generated labels, and a split "
        'with masks'
      )


def _check_large(large: views.Views) -> None:
  if (large.name, large.count) != ('large', 2):
    raise ValueError(
      f'large: found {large.count} views named {large.name!r}, expected 2 '
      "named 'large'"
    )


def _check_whole(recipe: method.Recipe) -> None:
  if recipe.accumulate != 1:
    raise ValueError(
      f'recipe.accumulate: found {recipe.accumulate}, expected 1: assignments '
      'need the whole batch'
    )


def build_stages(
  config: ml_collections.ConfigDict, devices: list | None = None
) -> Sequence[stage.Stage]:
  """The stages of an experiment; opens no data.

  Args:
    config: the experiment.
    devices: it is for; all that are at hand by default.

  Raises:
    UserError: a field is unknown, of a wrong type, or does not fit the others.
  """
  experiment = options.build(Experiment, config, 'config')
  mesh = sharding.make_mesh(experiment.operation.fsdp, devices)
  runner = Runner(experiment, mesh)
  return [runner.describe(name) for name in experiment.stages]


def load_model(
  config: ml_collections.ConfigDict, workdir: pathlib.Path
) -> predict.Model:
  """The fine-tuned network of a finished run, to predict with.

  Raises:
    UserError: the run is not finished.
  """
  experiment = options.build(Experiment, config, 'config')
  runner = Runner(experiment, sharding.make_mesh(experiment.operation.fsdp))
  return runner.model(workdir)


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

  @property
  def _exact_bench(self) -> experiment_lib.Bench:
    """The same, for looking at images: in float32 throughout."""
    exact = dataclasses.replace(self.experiment.network, dtype='float32')
    return dataclasses.replace(self.bench, network=exact)

  def describe(self, name: str) -> stage.Stage:
    """Checks what can be checked without data, and describes the stage.

    Raises:
      UserError: it does not fit the others.
    """
    whole = self.experiment
    block = getattr(whole, name)
    path = f'config.{name}'
    run = getattr(self, f'run_{name}', None)
    settings: dict[str, Any] = {name: block}
    if name != 'represent':
      settings['images'] = whole.images
    plan = None
    if name in _TRAININGS:
      block.recipe.check(self.mesh, f'{path}.recipe')
      self._check_network(name)
      settings['network'] = self.bench.fitted(self._size(name))

      def plan(*asked: Any) -> Iterable[str]:
        return dry_run.report(self.plan(name), *asked)

    else:
      sharding.check_batch(block.batch_size, self.mesh, f'{path}.batch_size')
      settings = options.to_dict(settings)
      # How many images at once changes nothing of what is found.
      del settings[name]['batch_size']
      settings[name].pop('about', None)  # Nor does what is said of it.
    if name.startswith('segment'):
      run = functools.partial(self._run_segment, name)
    if name in ('finetune', 'semi'):
      run = functools.partial(self._run_finetune, name)
    return stage.Stage(name, settings, run, self._needs(name), plan)

  def _needs(self, name: str) -> tuple[str, ...]:
    """The stages that one starts from.

    Raises:
      UserError: one of them is not among the experiment's.
    """
    whole = self.experiment
    attended = whole.cluster.kind == 'attended'
    needs = {
      'represent': whole.represent.start.needs(_STAGES),
      'distance': ('represent',),
      'attend': ('represent',),
      'cluster': ('attend',) if attended else ('represent',),
      'label': (('attend',) if attended else ('represent',)) + ('cluster',),
      'finetune': ('represent', 'label'),
      'segment': ('finetune',),
      'semi': ('represent',),
      'segment_semi': ('semi',),
    }[name]
    for needed in needs:
      if needed not in whole.stages:
        raise errors.UserError(
          f'config.stages: {name} needs {needed}, which is not among '
          f'{whole.stages}'
        )
    return needs

  # Step 1.

  def run_represent(self, place: stage.Place) -> Sequence[pathlib.Path]:
    """Learns an encoder from images alone."""
    block, bench = self.experiment.represent, self.bench
    self._check_data(place)
    stream = experiment_lib.ViewsOf(
      bench.open(block.data, block.split), block.crop
    )
    trained = self._trained('represent', bench)
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

  def run_distance(self, place: stage.Place) -> Sequence[pathlib.Path]:
    """Labels images by the regions of labelled ones that are nearest."""
    block = self.experiment.distance
    self._check_data(place)
    trained = self._trained('represent', self._exact_bench)
    matcher = distance.Matcher(
      trained.segmenter,
      self._state(place.needed['represent']),
      block,
      self.mesh,
      self.experiment.operation.reading,
    )
    known = self._open(block.bank, 'label', 'distance matching')
    bank = matcher.bank(known)
    journal.say(f'{known.name}: {len(bank.labels)} regions')

    def maps(split: datasets.Split) -> Any:
      return segment.at_size(matcher.maps(split, bank))

    results, outputs = {}, []
    for name in block.splits:
      split = self._open(name)
      folder = place.directory / name
      segment.write_maps(split, maps, folder, place)
      outputs.append(folder)
      count = len(split.classes) - 1
      if 'label' not in split.has:
        about = self.experiment.segment.about
        outputs.append(segment.write_submission(folder, None, about))
        continue
      values = segment.score(split, folder, count, None)
      if block.accuracy_from:
        known = self._open(block.accuracy_from)
        accuracy = matcher.accuracy(known, split)
        if accuracy is not None:
          values = {**values, 'knn_accuracy': accuracy}
      results[name] = segment.report(split, values, split.name)
      if block.rematch:
        match = segment.find_match(split, folder, count)
        again = segment.score(split, folder, count, match)
        results[f'{name}_rematched'] = segment.report(
          split, again, f'{split.name}, matched once more'
        )
    return [*outputs, self._report(place, 'distance', results)]

  # Step 2.

  def run_attend(self, place: stage.Place) -> Sequence[pathlib.Path]:
    """Learns what to attend to."""
    block, bench = self.experiment.attend, self.bench
    self._check_data(place)
    stream = experiment_lib.ViewsOf(self._open(''), block.crop)
    start = experiment_lib.Start('represent', ('encoder', 'heads/clusters'))
    trained = self._trained('attend', bench)
    return bench.train(
      *(place, trained, {'': stream}, block.recipe, block, None), start=start
    )

  def run_cluster(self, place: stage.Place) -> Sequence[pathlib.Path]:
    """Finds the centroids of as many clusters as there are classes."""
    block = self.experiment.cluster
    split = self._open('')
    self._keep_same(place, split)
    self._check_memory(split)
    look = looking.AtGrid(
      cluster.look_of(self._looked(), block.kind), block.short_side, block.crop
    )
    found = cluster.features(
      *(split, look, self._state(place.needed[self._eyes])),
      *(block.batch_size, self.mesh, self.experiment.operation.reading),
      place,
    )
    rows = found.reshape(-1, found.shape[-1])
    clustering = cluster.centroids(
      rows, len(split.classes) - 1, block, self.mesh, place
    )
    path = place.directory / 'centroids.npy'
    cluster.write(path, np.asarray(clustering.centroids))
    cluster.forget(place)
    said = {'objective': clustering.objective, 'num_rows': len(rows)}
    whole = sharding.replicated(self.mesh)
    assigned = np.asarray(jax.device_put(clustering.assignments, whole))
    # Host 0 writes and says it; the others need not read so much.
    if jax.process_index() == 0 and block.kind != 'pixel':
      tags = cluster.tags_of(split)
      if tags is not None:
        said |= kmeans.clustering_scores(assigned[: len(rows)], tags)
        journal.say(
          f'clusters against classes: NMI {said["nmi"]:.4f}, accuracy '
          f'{said["accuracy"]:.4f}'
        )
    numbers = place.directory / 'clusters.json'
    stage.write_json(numbers, said)
    return [path, numbers]

  def run_label(self, place: stage.Place) -> Sequence[pathlib.Path]:
    """Labels every training image, and reports what such labels are worth."""
    block = self.experiment.label
    train = self._open('')
    self._keep_same(place, train)
    count = len(train.classes) - 1
    found = cluster.read(place.needed['cluster'] / 'centroids.npy')
    kind = self.experiment.cluster.kind
    labeller = pseudo_labels.Labeller(
      looking.AtGrid(
        pseudo_labels.look_of(self._looked(), found, kind), block.short_side
      ),
      self._state(place.needed[self._eyes]),
      self.mesh,
      block.batch_size,
      self.experiment.operation.reading,
    )
    foreground = pseudo_labels.foreground_of(
      block.saliency,
      [*train.ids(), *(i for n in block.report for i in self._open(n).ids())],
    )
    threshold, said = block.threshold, {}
    if kind != 'attended' and not block.saliency:
      threshold = 0.0  # Everything has a category.
    elif threshold < 0:
      chosen_on = self._open(block.choose_on, 'label', 'a threshold')
      sweep = labeller.sweep(chosen_on, count, count, foreground)
      threshold, miou = sweep.best()
      said = {'chosen_on': chosen_on.name, 'miou': miou}
      journal.say(
        f'threshold {threshold:.2f}: mIoU {miou:.4f} on {chosen_on.name}, the '
        'best of those tried'
      )
    numbers = place.directory / 'threshold.json'
    stage.write_json(numbers, {'threshold': threshold, **said})
    folder = place.directory / 'train'
    labeller.write(train, folder, threshold, place, foreground)
    outputs = [folder, numbers]
    results, match = {}, None
    # The matching is that of `choose_on`, whatever else is reported.
    for name in dict.fromkeys([block.choose_on, *block.report]):
      if not block.report:
        break
      split = self._open(name, 'label', 'a report')
      maps = place.directory / name
      labeller.write(split, maps, threshold, place, foreground)
      if match is None:
        match = segment.find_match(split, maps, count)
      values = segment.score(split, maps, count, match)
      results[name] = segment.report(split, values, f'labels of {split.name}')
      self._write_panel(
        place, name, segment.panel(split, maps, count, match), 'labels'
      )
      outputs.append(maps)
    if results:
      outputs += [self._report(place, 'label', results)]
    self._write_attention(place, labeller)
    return [*outputs, place.directory / 'pictures']

  # Step 3.

  def _run_finetune(
    self, name: str, place: stage.Place
  ) -> Sequence[pathlib.Path]:
    """Learns to segment."""
    block, bench = getattr(self.experiment, name), self.bench
    self._check_data(place)
    if block.split:
      split = self._open(block.split, 'label', name)
    else:
      images = self._open('')
      split = pseudo_labels.labelled_by(
        images, place.needed['label'] / 'train', len(images.classes) - 1
      )
    stream = experiment_lib.StreamOf(
      split, *self._augmentations(name), ('label',)
    )
    trained = self._trained(name, bench, len(split.classes))
    start = experiment_lib.Start('represent', ('encoder',))
    outputs = bench.train(
      *(place, trained, {'': stream}, block.recipe, block, None), start=start
    )
    return [*outputs, *experiment_lib.write_classes(place, split)]

  def _run_segment(
    self, name: str, place: stage.Place
  ) -> Sequence[pathlib.Path]:
    """Labels whole splits, matches categories with classes, and scores."""
    block = getattr(self.experiment, name)
    (needed,) = self._needs(name)
    folder = place.needed[needed]
    count = len(stage.read_json(folder / 'classes.json')['classes']) - 1
    trained = self._trained(needed, self._exact_bench, count + 1)
    maps = self._maps(place, block, trained, self._state(folder), count)
    matched = None
    generated = name == 'segment'
    if generated:
      matched = self._match(place, block, maps, count)
    results, outputs = {}, []
    for split_name in dict.fromkeys(
      [*((block.match_on,) if generated else ()), *block.splits]
    ):
      split = self._open(split_name, data=block.data)
      self._keep_same(place, self._open(block.match_on, data=block.data))
      labels = place.directory / split_name
      segment.write_maps(split, maps, labels, place)
      outputs.append(labels)
      if 'label' not in split.has:
        path = place.directory / 'match.json' if generated else None
        outputs.append(segment.write_submission(labels, path, block.about))
        continue
      values = segment.score(split, labels, count, matched)
      results[split_name] = segment.report(split, values, split.name)
      panel = segment.panel(split, labels, count, matched)
      self._write_panel(place, split_name, panel, 'panels')
    if generated:
      outputs.append(place.directory / 'match.json')
      outputs += experiment_lib.write_classes(
        place, self._open(block.match_on, data=block.data)
      )
    return [
      *outputs,
      self._report(place, name, results),
      place.directory / 'pictures',
    ]

  def _maps(
    self,
    place: stage.Place,
    block: SegmentOptions,
    trained: finetune.Finetune,
    state: method.TrainState,
    count: int,
  ) -> segment.Maps:
    """How label maps are found."""
    reading = self.experiment.operation.reading
    if block.inference == 'cam':
      labeller = pseudo_labels.Labeller(
        looking.AtGrid(trained.activation, block.short_side),
        *(state, self.mesh, block.batch_size, reading),
      )
      threshold = block.threshold
      if threshold < 0:
        chosen_on = self._open(
          block.match_on, 'label', 'a threshold', block.data
        )
        classes = len(chosen_on.classes) - 1
        threshold, _ = labeller.sweep(chosen_on, count, classes).best()
        journal.say(f'threshold {threshold:.2f}, chosen on {chosen_on.name}')
      stage.write_json(
        place.directory / 'threshold.json', {'threshold': threshold}
      )
      return lambda split: labeller.maps(split, threshold)
    look = looking.LabelMaps(trained, block.short_side)
    return segment.predicted(look, state, block.batch_size, self.mesh, reading)

  def _match(
    self, place: stage.Place, block: SegmentOptions, maps: segment.Maps, n: int
  ) -> Any:
    """The matching of categories and classes, written to match.json."""
    split = self._open(block.match_on, 'label', 'matching', block.data)
    folder = place.directory / block.match_on
    segment.write_maps(split, maps, folder, place)
    match = segment.find_match(split, folder, n)
    if jax.process_index() == 0:
      match.write(place.directory / 'match.json')
    return match

  def model(self, workdir: pathlib.Path) -> predict.Model:
    """What was fine-tuned; categories have the names they were matched with.

    Raises:
      UserError: it is not finished.
    """
    folder, matched = workdir / 'finetune', workdir / 'segment'
    for needed in (folder, matched):
      stage.verify(needed, 'predict')
    found = stage.read_json(folder / 'classes.json')
    count = len(found['classes']) - 1
    known = stage.read_json(matched / 'classes.json')
    match = matching.Match.read(
      matched / 'match.json', len(known['classes']) - 1
    )
    block = self.experiment.segment
    if block.inference != 'logits':
      raise errors.UserError(
        f'config.segment.inference: found {block.inference!r}, but predictions '
        "are by scores: expected 'logits'"
      )
    return predict.Model(
      state=self._state(folder),
      predictor=looking.LabelMaps(
        self._trained('finetune', self._exact_bench, count + 1),
        block.short_side,
      ),
      classes=tuple(known['classes'][i] for i in match.classes),
      palette=tuple(tuple(known['palette'][i]) for i in match.classes),
      batch_size=block.batch_size,
      mesh=self.mesh,
      reading=self.experiment.operation.reading,
    )

  # What stages share.

  @property
  def _eyes(self) -> str:
    """The stage whose network clusters and labels."""
    attended = self.experiment.cluster.kind == 'attended'
    return 'attend' if attended else 'represent'

  def _looked(self) -> segmenter.Segmenter:
    """The network that clusters and labels."""
    return self._segmenter(self._eyes, self._exact_bench)

  def _state(self, folder: pathlib.Path) -> method.TrainState:
    """What a stage has trained."""
    found = checkpoint.read(
      folder / 'checkpoints', ('step', 'params', 'batch_stats')
    )
    return method.frozen(found, self.mesh)

  def _open(
    self,
    split: str,
    kind: str = '',
    purpose: str = '',
    data: datasets.Options | None = None,
  ) -> datasets.Split:
    """A split of the images, or of other data; '' for what is clustered."""
    images = self.experiment.images
    return self.bench.open(
      data or images.data, split or images.split, kind, purpose
    )

  def _keep_same(self, place: stage.Place, split: datasets.Split) -> None:
    """Raises UserError if what was begun belongs to other images."""
    stage.keep_same(
      place.directory / 'data.json',
      {'version': split.version, 'num_images': len(split)},
      'the data set',
    )

  def _check_memory(self, split: datasets.Split) -> None:
    """Raises UserError if the features of all cells would not fit a host."""
    block = self.experiment.cluster
    if block.kind != 'pixel':
      return
    images = jax.ShapeDtypeStruct((1, block.crop, block.crop, 3), jnp.float32)
    net = self._looked()
    shape = jax.eval_shape(
      lambda images: (
        net.init_with_output(
          jax.random.PRNGKey(0), images, decode=False, method='features'
        )[0]['encoder'].deepest.array
      ),
      images,
    ).shape
    size = 4 * len(split) * int(np.prod(shape))
    if size > _MOST_FEATURES:
      raise errors.UserError(
        f"config.cluster.kind: found 'pixel', whose features of {len(split):,} "
        f'images take {size / 1e9:.0f} GB: expected fewer images (the paper '
        "has it for ImageNet-S 50 only), or 'attended'"
      )

  def _report(
    self, place: stage.Place, name: str, results: Mapping[str, Any]
  ) -> pathlib.Path:
    """Writes results.json, and the same for TensorBoard."""
    path = place.directory / 'results.json'
    stage.write_json(
      path, {'stage': name, 'digest': place.digest, 'splits': results}
    )
    writer = summary.open_writer(place.directory / 'tensorboard')
    for split, found in results.items():
      scalars = {
        f'{split}/{metric}': value
        for metric, value in found['metrics'].items()
        if value is not None
      }
      writer.write_scalars(0, scalars)
    writer.close()
    return path

  def _write_panel(
    self, place: stage.Place, name: str, panel: np.ndarray, what: str
  ) -> None:
    """As a file, and for TensorBoard; from host 0."""
    if jax.process_index() != 0:
      return
    folder = place.directory / 'pictures'
    folder.mkdir(parents=True, exist_ok=True)
    pictures.write(folder / f'{name}.png', panel)
    writer = summary.open_writer(place.directory / 'tensorboard')
    writer.write_images(0, {f'{name}/{what}': panel[None]})
    writer.close()

  def _write_attention(
    self, place: stage.Place, labeller: pseudo_labels.Labeller
  ) -> None:
    """Images, what is attended to, and labels of some training images."""
    train = self._open('')
    some = sorted(pictures.spread(len(train), experiment_lib.NUM_PICTURES))
    panel = labeller.panel(
      train.select(np.array(some)), place.directory / 'train'
    )
    if panel is not None:
      self._write_panel(place, 'attention', panel, 'panels')

  def _check_data(self, place: stage.Place) -> None:
    """Asks for all that is left to read, so that nothing fails hours later.

    Raises:
      UserError: a data set, a split or a weight file is missing.
    """
    whole = self.experiment
    left = [
      name
      for name in whole.stages
      if not stage.is_finished(place.directory.parent / name)
    ]
    requirements = []
    if 'represent' in left:
      requirements = [
        functools.partial(
          whole.represent.start.require, _STAGES, 'config.represent.start'
        ),
        functools.partial(
          datasets.require, whole.represent.data, whole.data_dir
        ),
      ]
    if set(left) - {'represent'}:
      requirements.append(
        functools.partial(datasets.require, whole.images.data, whole.data_dir)
      )
    self.bench.require(requirements)
    wanted = {
      'distance': [(whole.distance.bank, 'label')]
      + [(name, '') for name in whole.distance.splits],
      'label': [(name, 'label') for name in whole.label.report],
      'segment': [(whole.segment.match_on, 'label')]
      + [(name, '') for name in whole.segment.splits],
      'semi': [(whole.semi.split, 'label')],
    }
    if whole.label.threshold < 0:
      wanted['label'].append((whole.label.choose_on, 'label'))
    for name in left:
      for split, kind in wanted.get(name, ()):
        self._open(split, kind, name)
    if 'label' in left:
      pseudo_labels.foreground_of(
        whole.label.saliency,
        [
          i
          for name in ('', *whole.label.report)
          for i in self._open(name).ids()
        ],
      )

  def _size(self, name: str) -> tuple[int, int]:
    """Height and width of the images of a training."""
    if name in ('represent', 'attend'):
      return getattr(self.experiment, name).large.size
    return self._augmentations(name)[0].size

  def _check_network(self, name: str) -> None:
    """Raises UserError unless images of all sizes fit, and stages exist."""
    block, path = getattr(self.experiment, name), f'config.{name}'
    net = self._segmenter(name, self.bench, 2)  # Any number fits.
    what = 'large.size' if hasattr(block, 'large') else 'crop.size'
    network.check(net, self._size(name), f'{path}.{what}')
    if getattr(block, 'small', None):
      network.check(net, block.small.size, f'{path}.small.size')

  def plan(self, name: str) -> dry_run.Plan:
    """A training, as far as it is known without its data."""
    block = getattr(self.experiment, name)
    size = self._size(name)

    def spec(num_classes: int) -> Any:
      del num_classes
      if hasattr(block, 'large'):
        return block.crop.spec(block.recipe.batch_size)
      return batch_lib.spec(block.recipe.batch_size, size, label=True)

    data = self.experiment.represent.data
    if name != 'represent':
      data = self.experiment.images.data
    return self.bench.plan(
      functools.partial(self._trained, name), block.recipe, size, spec, data
    )

  def _trained(
    self,
    name: str,
    bench: experiment_lib.Bench,
    num_classes: int = _ASSUMED_CLASSES,
  ) -> Any:
    """What a stage trains, and how."""
    block = getattr(self.experiment, name)
    net = self._segmenter(name, bench, num_classes)
    update = block.recipe.update
    match name:
      case 'represent':
        return represent.Represent(
          net, update(('encoder', 'heads')), block.learn, block.colours
        )
      case 'attend':
        frozen = dataclasses.replace(
          block.recipe.optimizer,
          groups=(attend.FROZEN, *block.recipe.optimizer.groups),
        )
        recipe = dataclasses.replace(block.recipe, optimizer=frozen)
        return attend.Attend(
          net, recipe.update(('heads',)), block.clusters, block.colours
        )
      case _:
        image_level = name == 'finetune' and (
          self.experiment.cluster.kind == 'image'
        )
        return finetune.Finetune(
          net,
          update(('encoder', 'heads')),
          'images' if image_level else 'pixels',
          block.reduction,
          block.doubles,
          block.colours,
        )

  def _segmenter(
    self,
    name: str,
    bench: experiment_lib.Bench,
    num_classes: int = _ASSUMED_CLASSES,
  ) -> segmenter.Segmenter:
    """The encoder with the heads of a stage."""
    learned = self.experiment.represent
    dtype = jnp.dtype(bench.network.dtype)
    match name:
      case 'represent':
        found = represent.heads_of(learned.learn, learned.widths, dtype)
      case 'attend':
        all_heads = represent.heads_of(learned.learn, learned.widths, dtype)
        found = {
          'clusters': all_heads['clusters'],
          'attention': heads.Attention(
            self.experiment.attend.shared, dtype=dtype
          ),
        }
      case _:
        found = {'logits': heads.Classifier(num_classes, dtype=dtype)}
    return bench.build(found, self._size(name))

  def _augmentations(self, name: str):
    block = getattr(self.experiment, name)
    return experiment_lib.augmentations(
      block.crop, block.flips, f'config.{name}'
    )


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
  app.run(build_stages, load_model)
