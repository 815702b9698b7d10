"""PASS for unsupervised segmentation, from the command line.

python -m pass_luss.main --config=configs/pass_shapes.py:branch=swav
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from input_pipeline import datasets, errors
from pass_luss import (
  blocks,
  cluster,
  distance,
  finetune,
  kmeans,
  label_folders,
  looking,
  matching,
  pseudo_labels,
  segment,
  watch,
)
from pass_luss import networks as networks_lib
from segcore import (
  app,
  checkpoint,
  dry_run,
  files,
  hosts,
  journal,
  method,
  options,
  pictures,
  predict,
  program,
  sharding,
  stage,
)
from segcore import experiment as experiment_lib
from segcore import results as results_lib

# Images whose views are watched.
_NUM_WATCHED = 64
# Bytes of the features of a host, at most.
_MOST_FEATURES = 64e9


@dataclasses.dataclass(frozen=True)
class Runner(experiment_lib.OnMesh):
  """Builds each stage from the experiment and runs it on the mesh."""

  experiment: blocks.Experiment

  @property
  def networks(self) -> networks_lib.Networks:
    """What each stage trains or looks with."""
    return networks_lib.Networks(self.experiment, self.mesh)

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
    if name in blocks.TRAININGS:
      block.recipe.check(self.mesh, f'{path}.recipe')
      self.networks.check(name)
      settings['network'] = self.bench.fitted(self.networks.size(name))

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

  def plan(self, name: str) -> dry_run.Plan:
    """A training, as far as it is known without its data."""
    return self.networks.plan(name)

  def _needs(self, name: str) -> tuple[str, ...]:
    """The stages that one starts from.

    Raises:
      UserError: one of them is not among the experiment's.
    """
    whole = self.experiment
    clustered = self.networks.clustered
    needs = {
      'represent': whole.represent.start.needs(blocks.STAGES),
      'distance': ('represent',),
      'attend': ('represent',),
      'cluster': (clustered,),
      'label': (clustered, 'cluster'),
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

  def run_represent(self, place: stage.Place) -> Sequence[files.Path]:
    """Learns an encoder from images alone."""
    block, bench = self.experiment.represent, self.bench
    self._check_data(place)
    stream = experiment_lib.ViewsOf(
      bench.open(block.data, block.split), block.crop
    )
    trained = self.networks.method('represent', bench)
    watched = watch.Watch(
      trained,
      experiment_lib.fixed_batch(stream, min(_NUM_WATCHED, len(stream.split))),
      experiment_lib.NUM_PICTURES,
      self.mesh,
    )
    return bench.train(
      *(place, trained, {'': stream}, block.recipe, block, watched),
      start=block.start,
    )

  def run_distance(self, place: stage.Place) -> Sequence[files.Path]:
    """Labels images by the regions of labelled ones that are nearest."""
    block = self.experiment.distance
    self._check_data(place)
    self._keep_same(place, self._open(''))
    trained = self.networks.method('represent', self.networks.exact_bench)
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

    of_cells = matcher.maps(bank)

    def maps(split: datasets.Split) -> Any:
      return segment.at_size(of_cells(split))

    results, outputs = results_lib.Results(place), []
    for name in block.splits:
      split = self._open(name)
      folder = place.directory / name
      label_folders.write(split, maps, folder, place, block.short_side)
      outputs.append(folder)
      if 'label' not in split.has:
        about = self.experiment.segment.about
        outputs.append(segment.write_submission(split, folder, None, about))
        continue
      said = {}
      if block.accuracy_from:
        tagged = self._open(block.accuracy_from)
        accuracy = matcher.accuracy(tagged, split)
        said = {} if accuracy is None else {'knn_accuracy': accuracy}
      count = len(split.classes) - 1
      self._score(results, name, split, folder, count, None, said)
      if block.rematch:
        match = segment.find_match(split, folder, count)
        again = f'{name}_rematched'
        self._score(results, again, split, folder, count, match)
    return [*outputs, *results.write(stage='distance')]

  # Step 2.

  def run_attend(self, place: stage.Place) -> Sequence[files.Path]:
    """Learns what to attend to."""
    block, bench = self.experiment.attend, self.bench
    self._check_data(place)
    stream = experiment_lib.ViewsOf(self._open(''), block.crop)
    start = experiment_lib.Start('represent', ('encoder', 'heads/clusters'))
    trained = self.networks.method('attend', bench)
    return bench.train(
      *(place, trained, {'': stream}, block.recipe, block, None), start=start
    )

  def run_cluster(self, place: stage.Place) -> Sequence[files.Path]:
    """Finds the centroids of as many clusters as there are classes."""
    block = self.experiment.cluster
    split = self._open('')
    self._keep_same(place, split)
    self._check_memory(split)
    look = looking.AtGrid(
      cluster.look_of(self.networks.clustered_network(), block.kind),
      block.short_side,
      block.crop,
    )
    found = cluster.features(
      *(split, look, self._state(place.needed[self.networks.clustered])),
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

  def run_label(self, place: stage.Place) -> Sequence[files.Path]:
    """Labels every training image, and reports what such labels are worth."""
    block = self.experiment.label
    train = self._open('')
    self._keep_same(place, train)
    count = len(train.classes) - 1
    labeller = self._labeller(place)
    foreground = pseudo_labels.foreground_of(
      block.saliency, self._labelled_ids()
    )
    threshold = block.threshold
    if self.experiment.cluster.kind != 'attended' and not block.saliency:
      threshold = 0.0  # Everything has a category.
    threshold = self._threshold(
      *(place, labeller, threshold, count),
      functools.partial(self._open, block.choose_on, 'label', 'a threshold'),
      foreground,
    )

    def maps(split: datasets.Split) -> Any:
      return labeller.maps(split, threshold, foreground)

    folder = place.directory / 'train'
    label_folders.write(train, maps, folder, place, block.short_side)
    outputs = [folder, place.directory / 'threshold.json']
    results, match = results_lib.Results(place), None
    for name in self._reported():
      split = self._open(name, 'label', 'a report')
      labels = place.directory / name
      label_folders.write(split, maps, labels, place, block.short_side)
      if match is None:
        match = segment.find_match(split, labels, count)
      self._score(results, name, split, labels, count, match)
      outputs.append(labels)
    some = sorted(pictures.spread(len(train), experiment_lib.NUM_PICTURES))
    panel = labeller.panel(train.select(np.array(some)), folder)
    if panel is not None:
      results.draw('attention', panel)
    return [*outputs, *results.write(stage='label')]

  def _labeller(self, place: stage.Place) -> pseudo_labels.Labeller:
    """Labels by the centroids."""
    block = self.experiment.label
    look = pseudo_labels.look_of(
      self.networks.clustered_network(),
      cluster.read(place.needed['cluster'] / 'centroids.npy'),
      self.experiment.cluster.kind,
    )
    return pseudo_labels.Labeller(
      looking.AtGrid(look, block.short_side),
      self._state(place.needed[self.networks.clustered]),
      *(self.mesh, block.batch_size, self.experiment.operation.reading),
    )

  def _threshold(
    self,
    place: stage.Place,
    labeller: pseudo_labels.Labeller,
    threshold: float,
    count: int,
    open_known: Callable[[], datasets.Split],
    foreground: pseudo_labels.Foreground | None = None,
  ) -> float:
    """What attention has to reach; written to threshold.json.

    Args:
      place: of the stage.
      labeller: whose attention it is.
      threshold: below 0 the best of those tried is chosen.
      count: of categories.
      open_known: opens the labelled images to choose it on.
      foreground: that is supplied.
    """
    said = {}
    if threshold < 0:
      split = open_known()
      classes = len(split.classes) - 1
      found = labeller.sweep(split, count, classes, foreground)
      threshold, miou = found.best()
      said = {'chosen_on': split.name, 'miou': miou}
      journal.say(
        f'threshold {threshold:.2f}: mIoU {miou:.4f} on {split.name}, the best '
        'of those tried'
      )
    path = place.directory / 'threshold.json'
    stage.write_json(path, {'threshold': threshold, **said})
    return threshold

  # Step 3.

  def _run_finetune(
    self, name: str, place: stage.Place
  ) -> Sequence[files.Path]:
    """Learns to segment."""
    block, bench = getattr(self.experiment, name), self.bench
    self._check_data(place)
    if block.split:
      split = self._open(block.split, 'label', name)
    else:
      images = self._open('')
      split = label_folders.labelled_by(
        images, place.needed['label'] / 'train', len(images.classes) - 1
      )
    stream = experiment_lib.StreamOf(
      split, *self.networks.augmentations(name), ('label',)
    )
    trained = self.networks.method(name, bench, len(split.classes))
    start = experiment_lib.Start('represent', ('encoder',))
    outputs = bench.train(
      *(place, trained, {'': stream}, block.recipe, block, None), start=start
    )
    return [*outputs, *experiment_lib.write_classes(place, split)]

  def _run_segment(self, name: str, place: stage.Place) -> Sequence[files.Path]:
    """Labels whole splits, matches categories with classes, and scores."""
    block = getattr(self.experiment, name)
    (needed,) = self._needs(name)
    folder = place.needed[needed]
    count = len(stage.read_json(folder / 'classes.json')['classes']) - 1
    trained = self.networks.method(needed, self.networks.exact_bench, count + 1)
    known = self._open(block.match_on, data=block.data)
    self._keep_same(place, known)
    maps = self._maps(place, block, trained, self._state(folder), count)
    generated = name == 'segment'
    results, outputs, matched = results_lib.Results(place), [], None
    for split_name in dict.fromkeys(
      [*((block.match_on,) if generated else ()), *block.splits]
    ):
      first = generated and matched is None
      kind = 'label' if first else ''
      split = self._open(split_name, kind, 'matching', block.data)
      labels = place.directory / split_name
      label_folders.write(split, maps, labels, place, block.short_side)
      outputs.append(labels)
      if first:
        matched = segment.find_match(split, labels, count)
        if jax.process_index() == 0:
          matched.write(place.directory / 'match.json')
      if 'label' in split.has:
        self._score(results, split_name, split, labels, count, matched)
      else:
        path = place.directory / 'match.json' if generated else None
        outputs.append(
          segment.write_submission(split, labels, path, block.about)
        )
    if generated:
      outputs.append(place.directory / 'match.json')
      outputs += experiment_lib.write_classes(place, known)
    return [*outputs, *results.write(stage=name)]

  def _maps(
    self,
    place: stage.Place,
    block: blocks.SegmentOptions,
    trained: finetune.Finetune,
    state: method.TrainState,
    count: int,
  ) -> label_folders.Maps:
    """How label maps are found."""
    reading = self.experiment.operation.reading
    if block.inference == 'cam':
      labeller = pseudo_labels.Labeller(
        looking.AtGrid(trained.activation, block.short_side),
        *(state, self.mesh, block.batch_size, reading),
      )
      threshold = self._threshold(
        *(place, labeller, block.threshold, count),
        functools.partial(
          self._open, block.match_on, 'label', 'a threshold', block.data
        ),
      )
      return lambda split: labeller.maps(split, threshold)
    look = looking.LabelMaps(trained, block.short_side)
    return segment.predicted(look, state, block.batch_size, self.mesh, reading)

  def _score(
    self,
    results: results_lib.Results,
    name: str,
    split: datasets.Split,
    labels: files.Path,
    count: int,
    match: matching.Match | None,
    more: Mapping[str, float] | None = None,
  ) -> None:
    """Reports what the label maps of a split are worth, and draws some."""
    values = {**segment.score(split, labels, count, match), **(more or {})}
    segment.say(values, split, f'{name} ({split.name})')
    panel = segment.panel(split, labels, count, match)
    results.add(name, values, split, panel)

  def model(self, workdir: files.Path) -> predict.Model:
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
        self.networks.method('finetune', self.networks.exact_bench, count + 1),
        block.short_side,
      ),
      classes=tuple(known['classes'][i] for i in match.classes),
      palette=tuple(tuple(known['palette'][i]) for i in match.classes),
      batch_size=block.batch_size,
      mesh=self.mesh,
      reading=self.experiment.operation.reading,
    )

  # What stages share.

  def _state(self, folder: files.Path) -> method.TrainState:
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
    cells = self.networks.features_of_cells()
    size = 4 * len(split) * math.prod(cells)
    if size > _MOST_FEATURES:
      raise errors.UserError(
        f"config.cluster.kind: found 'pixel', whose features of {len(split):,} "
        f'images take {size / 1e9:.0f} GB: expected fewer images (the paper '
        "has it for ImageNet-S 50 only), or 'attended'"
      )

  def _check_data(self, place: stage.Place) -> None:
    """Asks for all that is left to read, so that nothing fails hours later.

    Raises:
      UserError: a data set, a split or a weight file is missing.
    """
    whole = self.experiment
    here = [
      stage.is_finished(place.directory.parent / name) for name in whole.stages
    ]
    left = [
      name
      for name, finished in zip(
        whole.stages, hosts.of_host_0(here), strict=True
      )
      if not finished
    ]
    read = [each for name in left for each in self._reads(name)]
    requirements = [
      functools.partial(datasets.require, data, whole.data_dir)
      for data in dict.fromkeys(data for data, *_ in read)
    ]
    if 'represent' in left:
      start = whole.represent.start
      requirements.append(
        functools.partial(
          start.require, blocks.STAGES, 'config.represent.start'
        )
      )
    self.bench.require(requirements)
    # Each once, for the first stage that reads it.
    first = {
      (data, split, kind): name for data, split, kind, name in read[::-1]
    }
    for (data, split, kind), name in first.items():
      self.bench.open(data, split, kind, name)
    if 'label' in left:
      pseudo_labels.foreground_of(whole.label.saliency, self._labelled_ids())

  def _reads(self, name: str) -> list[tuple[datasets.Options, str, str, str]]:
    """Data, split and kind of label of all that a stage reads, and its name."""
    whole = self.experiment
    images, block = whole.images, getattr(whole, name)
    data, found = images.data, [(images.split, '')]
    match name:
      case 'represent':
        data, found = block.data, [(block.split, '')]
      case 'distance':
        found += [(block.bank, 'label')]
        found += [(split, '') for split in block.splits]
        found += [(block.accuracy_from, '')] if block.accuracy_from else []
      case 'label':
        found += [(split, 'label') for split in self._reported()]
        found += [(block.choose_on, 'label')] if block.threshold < 0 else []
      case 'semi':
        found = [(block.split, 'label')]
      case 'segment' | 'segment_semi':
        data = block.data or images.data
        found = [(block.match_on, 'label' if name == 'segment' else '')]
        found += [(split, '') for split in block.splits]
    return [(data, split, kind, name) for split, kind in found]

  def _reported(self) -> list[str]:
    """Splits that are labelled and scored, that of the matching first."""
    block = self.experiment.label
    # The matching is that of `choose_on`, whatever else is reported.
    reported = [block.choose_on, *block.report] if block.report else []
    return [*dict.fromkeys(reported)]

  def _labelled_ids(self) -> list[str]:
    """Names of all images that get generated labels."""
    splits = ('', *self._reported())
    return [i for name in splits for i in self._open(name).ids()]


PROGRAM = program.Program(blocks.Experiment, Runner)
build_stages, load_model = PROGRAM.build_stages, PROGRAM.load_model

if __name__ == '__main__':
  app.run(build_stages, load_model)
