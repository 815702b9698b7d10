"""PASS for unsupervised segmentation, from the command line.

python -m pass_luss.main --config=configs/pass_shapes.py:branch=swav
"""

import dataclasses
import functools
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from input_pipeline import datasets, splits
from pass_luss import experiment as experiment_lib
from pass_luss import finetune
from pass_luss import networks as networks_lib
from pass_luss.benchmark import label_folders, matching
from pass_luss.pretrain import panels as pretrain_panels
from pass_luss.protocols import distance, segment
from pass_luss.pseudo_labels import cluster, features, kmeans
from pass_luss.pseudo_labels import labeler as labeler_lib
from runtime import console, errors, files, json_files, options
from segcore.distributed import collectives, sharding
from segcore.eval import predict, short_side
from segcore.eval import results as results_lib
from segcore.experiment import cli, dry_run, program, stage
from segcore.experiment import context as context_lib
from segcore.train import train_state
from segcore.train import workspace as workspace_lib
from segcore.weights import checkpoint_reader

# Images whose views are watched.
_NUM_WATCHED = 64
# Bytes of the features of a host, at most.
_MOST_FEATURES = 64e9


@dataclasses.dataclass(frozen=True)
class Runner(context_lib.OnMesh):
  """Builds each stage from the experiment and runs it on the mesh."""

  experiment: experiment_lib.Experiment

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
    if name in experiment_lib.TRAININGS:
      block.recipe.check(self.mesh, f'{path}.recipe')
      self.networks.check(name)
      settings['network'] = self.bench.fitted(self.networks.size(name))

      def plan(*asked: Any) -> Iterable[str]:
        return dry_run.report(self.plan(name), *asked)

    else:
      sharding.check_batch_size(
        block.batch_size, self.mesh, f'{path}.batch_size'
      )
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
      'represent': whole.represent.start.needs(experiment_lib.STAGES),
      'distance': ('represent',),
      'attend': ('represent',),
      'cluster': (clustered,),
      'label': (clustered, 'cluster'),
      'finetune': ('represent', 'label'),
      'segment': ('finetune',),
      'semi': ('represent',),
      'segment_semi': ('semi',),
      'segment_on': (whole.segment_on.trained_by,) if whole.segment_on else (),
    }[name]
    for needed in needs:
      if needed not in whole.stages:
        raise errors.UserError(
          f'config.stages: {name} needs {needed}, which is not among '
          f'{whole.stages}'
        )
    return needs

  # Step 1.

  def run_represent(
    self, place: workspace_lib.Workspace
  ) -> Sequence[files.Path]:
    """Learns an encoder from images alone."""
    block, bench = self.experiment.represent, self.bench
    self._check_data(place)
    stream = context_lib.ViewsOf(
      bench.open(block.data, block.split), block.crop
    )
    trained = self.networks.method('represent', bench)
    watched = pretrain_panels.PretrainPanels(
      trained,
      context_lib.fixed_batch(stream, min(_NUM_WATCHED, len(stream.split))),
      context_lib.NUM_PICTURES,
      self.mesh,
    )
    return bench.train(
      *(place, trained, {'': stream}, block.recipe, block, watched),
      start=block.start,
    )

  def run_distance(
    self, place: workspace_lib.Workspace
  ) -> Sequence[files.Path]:
    """Labels images by the regions of labeled ones that are nearest."""
    block = self.experiment.distance
    self._check_data(place)
    self._keep_same(place, self._open(''))
    trained = self.networks.method('represent', self.networks.exact_bench)
    step, state = self._state(place.needed['represent'])
    matcher = distance.DistanceMatcher(
      *(trained.segmenter, state, block, self.mesh),
      self.experiment.operation.reading,
    )
    known = self._open(block.bank, 'label', 'distance matching')
    bank = matcher.build_bank(known)
    console.log(f'{known.name}: {len(bank.labels)} regions')

    of_cells = matcher.grid_label_function(bank)

    def maps(split: datasets.Split) -> Any:
      return segment.resize_label_maps(of_cells(split))

    results, outputs = results_lib.Results(place, step), []
    for name in block.splits:
      split = self._open(name)
      folder = place.directory / name
      label_folders.write(split, maps, folder, place, block.short_side)
      outputs.append(folder)
      if 'label' not in split.label_kinds:
        outputs.append(
          segment.write_submission(split, folder, None, block.about)
        )
        continue
      said = {}
      if block.accuracy_from:
        tagged = self._open(block.accuracy_from)
        accuracy = matcher.image_accuracy(tagged, split)
        said = {} if accuracy is None else {'knn_accuracy': accuracy}
      count = len(split.classes) - 1
      self._score(results, name, split, folder, count, None, said)
      if block.rematch:
        match = segment.match_categories(split, folder, count)
        again = f'{name}_rematched'
        self._score(results, again, split, folder, count, match)
    said = results.write(stage='distance', protocol=block.describe(), step=step)
    return [*outputs, *said]

  # Step 2.

  def run_attend(self, place: workspace_lib.Workspace) -> Sequence[files.Path]:
    """Learns what to attend to."""
    block, bench = self.experiment.attend, self.bench
    self._check_data(place)
    stream = context_lib.ViewsOf(self._open(''), block.crop)
    start = context_lib.Start('represent', ('encoder', 'heads/clusters'))
    trained = self.networks.method('attend', bench)
    return bench.train(
      *(place, trained, {'': stream}, block.recipe, block, None), start=start
    )

  def run_cluster(self, place: workspace_lib.Workspace) -> Sequence[files.Path]:
    """Finds the centroids of as many clusters as there are classes."""
    split = self._open('')
    self._keep_same(place, split)
    self._check_clusters(split)
    block, folder = self.experiment.cluster, place.directory
    # As host 0 sees it; they are written last.
    if not collectives.broadcast_from_host_0(
      (folder / cluster.CENTROIDS).exists()
    ):
      self._find_clusters(place, split)
    # Host 0 says it; the others need not read so much.
    if jax.process_index() == 0 and block.kind != 'pixel':
      tags = features.single_tags(split)
      if tags is not None:
        assigned = cluster.read_assignments(folder)
        scores = kmeans.clustering_scores(assigned, tags)
        console.log(
          f'clusters against classes: NMI {scores["nmi"]:.4f}, accuracy '
          f'{scores["accuracy"]:.4f}'
        )
        numbers = folder / cluster.SCORES
        json_files.write(numbers, json_files.read(numbers) | scores)
    features.delete(place)
    return [folder / name for name in cluster.FILES]

  def _find_clusters(
    self, place: workspace_lib.Workspace, split: datasets.Split
  ) -> None:
    """Writes the centroids of the images, and what belongs to them."""
    block = self.experiment.cluster
    look = short_side.FeatureMaps(
      features.feature_function(self.networks.clustered_network(), block.kind),
      block.short_side,
      block.crop,
    )
    _, state = self._state(place.needed[self.networks.clustered])
    found = features.extract(
      *(split, look, state, block.batch_size, self.mesh),
      *(self.experiment.operation.reading, place),
    )
    rows = found.reshape(-1, found.shape[-1])
    num_clusters = len(split.classes) - 1
    cluster.write_clustering(
      place.directory,
      cluster.fit_centroids(rows, num_clusters, block, self.mesh, place),
      len(rows),
    )

  def run_label(self, place: workspace_lib.Workspace) -> Sequence[files.Path]:
    """Labels every training image, and reports what such labels are worth."""
    block = self.experiment.label
    train = self._open('')
    self._keep_same(place, train)
    count = len(train.classes) - 1
    step, labeler = self._labeler(place)
    foreground = labeler_lib.foreground_function(
      block.saliency, self._labeled_ids()
    )
    threshold = self._threshold(place, 'label', labeler, count, foreground)

    maps = functools.partial(
      labeler.label_maps, threshold=threshold.threshold, foreground=foreground
    )
    of_train = functools.partial(
      maps, image_categories=self._given(place, train)
    )
    folder = place.directory / 'train'
    label_folders.write(train, of_train, folder, place, block.short_side)
    outputs = [folder, place.directory / 'threshold.json']
    results, match = results_lib.Results(place, step), None
    for name in self._reported():
      split = self._open(name, 'label', 'a report')
      labels = place.directory / name
      label_folders.write(split, maps, labels, place, block.short_side)
      if match is None:
        match = segment.match_categories(split, labels, count)
      self._score(results, name, split, labels, count, match)
      outputs.append(labels)
    some = splits.evenly_spaced(len(train), context_lib.NUM_PICTURES)
    panel = labeler.draw_panel(train.select(np.array(some)), folder, foreground)
    if panel is not None:
      results.write_panel('attention', panel)
    said = results.write(
      stage='label',
      protocol=block.describe(self.experiment.cluster.kind),
      step=step,
      **threshold.summary(),
    )
    return [*outputs, *said]

  def _labeler(
    self, place: workspace_lib.Workspace
  ) -> tuple[int, labeler_lib.Labeler]:
    """Labels by the centroids; and the steps of the network's training."""
    block = self.experiment.label
    look = labeler_lib.category_function(
      self.networks.clustered_network(),
      cluster.read_centroids(place.needed['cluster']),
      self.experiment.cluster.kind,
    )
    step, state = self._state(place.needed[self.networks.clustered])
    return step, labeler_lib.Labeler(
      short_side.FeatureMaps(look, block.short_side),
      *(state, self.mesh, block.batch_size),
      self.experiment.operation.reading,
    )

  def _given(
    self, place: workspace_lib.Workspace, train: datasets.Split
  ) -> dict[str, int] | None:
    """The category of each training image, where whole images have one."""
    if self.experiment.cluster.kind != 'image':
      return None
    clusters = cluster.read_assignments(place.needed['cluster'])
    return labeler_lib.categories_by_id(train.ids(), clusters)

  def _chooses(self, name: str) -> bool:
    """Whether a stage chooses its threshold, which takes masks."""
    block = getattr(self.experiment, name)
    if name != 'label':
      return block.inference == 'cam' and block.threshold < 0
    attended = self.experiment.cluster.kind == 'attended'
    return block.threshold < 0 and (attended or bool(block.saliency))

  def _threshold(
    self,
    place: workspace_lib.Workspace,
    name: str,
    labeler: labeler_lib.Labeler,
    count: int,
    foreground: labeler_lib.ForegroundFunction | None = None,
  ) -> labeler_lib.ForegroundThreshold:
    """What attention has to reach; in threshold.json, once it is known.

    Args:
      place: of the stage.
      name: of the stage.
      labeler: whose attention it is.
      count: of categories.
      foreground: that is supplied.
    """
    path = place.directory / 'threshold.json'
    if collectives.broadcast_from_host_0(path.exists()):
      return labeler_lib.ForegroundThreshold(**json_files.read(path))
    block = getattr(self.experiment, name)
    found = labeler_lib.ForegroundThreshold(max(block.threshold, 0.0))
    if self._chooses(name):
      known = block.choose_on if name == 'label' else block.match_on
      split = self._open(known, 'label', 'a threshold', self._data_of(name))
      classes = len(split.classes) - 1
      swept = labeler.sweep_thresholds(split, count, classes, foreground)
      found = labeler_lib.ForegroundThreshold(*swept.best(), split.name)
      console.log(
        f'threshold {found.threshold:.2f}: mIoU {found.miou:.4f} on '
        f'{split.name}, the best of those tried'
      )
    json_files.write(path, found._asdict())
    return found

  # Step 3.

  def _run_finetune(
    self, name: str, place: workspace_lib.Workspace
  ) -> Sequence[files.Path]:
    """Learns to segment."""
    block, bench = getattr(self.experiment, name), self.bench
    self._check_data(place)
    if block.split:
      split = self._open(block.split, 'label', name)
    else:
      images = self._open('')
      split = label_folders.with_pseudo_labels(
        images, place.needed['label'] / 'train', len(images.classes) - 1
      )
    stream = context_lib.StreamOf(
      split, *self.networks.augmentations(name), ('label',)
    )
    trained = self.networks.method(name, bench, len(split.classes))
    start = context_lib.Start('represent', ('encoder',))
    outputs = bench.train(
      *(place, trained, {'': stream}, block.recipe, block, None), start=start
    )
    return [*outputs, *context_lib.write_classes(place, split)]

  def _run_segment(
    self, name: str, place: workspace_lib.Workspace
  ) -> Sequence[files.Path]:
    """Labels whole splits, matches categories with classes, and scores."""
    block = getattr(self.experiment, name)
    (needed,) = self._needs(name)
    folder, data = place.needed[needed], self._data_of(name)
    names, of_masks = self._segmented(name), needed == 'semi'
    first = self._open(names[0], '' if of_masks else 'label', 'matching', data)
    self._keep_same(place, first)
    known = json_files.read(folder / 'classes.json')['classes']
    match = matching.match_by_name(known, first.classes) if of_masks else None
    count = len(known) - 1
    trained = self.networks.method(needed, self.networks.exact_bench, count + 1)
    step, state = self._state(folder)
    maps, threshold = self._maps(place, name, trained, state, count)
    path = place.directory / 'match.json'
    results = results_lib.Results(place, step)
    outputs = [path, *context_lib.write_classes(place, first)]
    for split_name in names:
      split = self._open(split_name, data=data)
      labels = place.directory / split_name
      label_folders.write(split, maps, labels, place, block.short_side)
      outputs.append(labels)
      if split_name == names[0]:
        match = match or segment.match_categories(split, labels, count)
        if jax.process_index() == 0:
          match.write(path)
      if 'label' in split.label_kinds:
        self._score(results, split_name, split, labels, count, match)
      else:
        outputs.append(
          segment.write_submission(split, labels, path, block.about)
        )
    said = results.write(
      stage=name,
      protocol=block.describe(of_masks),
      step=step,
      **(threshold.summary() if threshold else {}),
    )
    return [*outputs, *said]

  def _segmented(self, name: str) -> list[str]:
    """Splits that a stage segments, that of the matching first."""
    block = getattr(self.experiment, name)
    (needed,) = self._needs(name)
    # Classes that were learned from masks have their names.
    matched = [] if needed == 'semi' else [block.match_on]
    return [*dict.fromkeys([*matched, *block.splits])]

  def _data_of(self, name: str) -> datasets.DataOptions:
    """The data set that a stage segments."""
    whole = self.experiment
    return whole.segment_on.data if name == 'segment_on' else whole.images.data

  def _maps(
    self,
    place: workspace_lib.Workspace,
    name: str,
    trained: finetune.Finetune,
    state: train_state.TrainState,
    count: int,
  ) -> tuple[
    label_folders.LabelMapFunction, labeler_lib.ForegroundThreshold | None
  ]:
    """How label maps are found, and of activations the threshold."""
    block = getattr(self.experiment, name)
    reading = self.experiment.operation.reading
    if block.inference == 'cam':
      labeler = labeler_lib.Labeler(
        short_side.FeatureMaps(trained.activation, block.short_side),
        *(state, self.mesh, block.batch_size, reading),
      )
      found = self._threshold(place, name, labeler, count)
      return lambda split: labeler.label_maps(split, found.threshold), found
    look = short_side.LabelMaps(trained, block.short_side)
    maps = segment.label_map_function(
      look, state, block.batch_size, self.mesh, reading
    )
    return maps, None

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
    segment.log_scores(values, split, f'{name} ({split.name})')
    panel = segment.draw_panel(split, labels, count, match)
    results.add(name, values, split, panel)

  def model(self, workdir: files.Path) -> predict.Model:
    """What was fine-tuned; categories have the names they were matched with.

    Raises:
      UserError: it is not finished.
    """
    folder, matched = workdir / 'finetune', workdir / 'segment'
    for needed in (folder, matched):
      stage.require_finished(needed, 'predict')
    found = json_files.read(folder / 'classes.json')
    count = len(found['classes']) - 1
    known = json_files.read(matched / 'classes.json')
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
      state=self._state(folder)[1],
      predictor=short_side.LabelMaps(
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

  def _state(self, folder: files.Path) -> tuple[int, train_state.TrainState]:
    """Steps of a training, and what it has trained."""
    found = checkpoint_reader.read(
      folder / 'checkpoints', ('step', 'params', 'batch_stats')
    )
    return int(found['step']), train_state.inference_state(found, self.mesh)

  def _open(
    self,
    split: str,
    kind: str = '',
    purpose: str = '',
    data: datasets.DataOptions | None = None,
  ) -> datasets.Split:
    """A split of the images, or of other data; '' for what is clustered."""
    images = self.experiment.images
    return self.bench.open(
      data or images.data, split or images.split, kind, purpose
    )

  def _keep_same(
    self, place: workspace_lib.Workspace, split: datasets.Split
  ) -> None:
    """Raises UserError if what was begun belongs to other images."""
    json_files.require_unchanged(
      place.directory / 'data.json',
      {'version': split.version, 'num_images': len(split)},
      'the data set',
    )

  def _check_clusters(self, split: datasets.Split) -> None:
    """Raises UserError if there are too few rows to cluster, or too many."""
    rows, kind = len(split), self.experiment.cluster.kind
    if kind == 'pixel':
      *cells, channels = self.networks.features_of_cells()
      rows *= math.prod(cells)
      size = 4 * rows * channels
      if size > _MOST_FEATURES:
        raise errors.UserError(
          f"config.cluster.kind: found 'pixel', whose features of "
          f'{len(split):,} images take {size / 1e9:.0f} GB: expected fewer '
          "images (the paper has it for ImageNet-S 50 only), or 'attended'"
        )
    if rows < len(split.classes) - 1:
      raise errors.UserError(
        f'config.images: found {rows} rows to cluster in {split.name}, '
        f'expected at least {len(split.classes) - 1}, one for each class: '
        'choose data with more images'
      )

  def _check_data(self, place: workspace_lib.Workspace) -> None:
    """Asks for all that is left to read, so that nothing fails hours later.

    Raises:
      UserError: a data set, a split or a weight file is missing.
    """
    whole = self.experiment
    here = np.array(
      [stage.is_finished(place.directory.parent / x) for x in whole.stages]
    )
    left = [
      name
      for name, finished in zip(
        whole.stages, collectives.broadcast_from_host_0(here), strict=True
      )
      if not finished
    ]
    read = [each for name in left for each in self._reads(name)]
    requirements = [
      functools.partial(datasets.check_available, data, whole.data_dir)
      for data in dict.fromkeys(data for data, *_ in read)
    ]
    if 'represent' in left:
      start = whole.represent.start
      requirements.append(
        functools.partial(
          start.require, experiment_lib.STAGES, 'config.represent.start'
        )
      )
    self.bench.require(requirements)
    # Each once, for the first stage that reads it.
    first = {
      (data, split, kind): name for data, split, kind, name in read[::-1]
    }
    for (data, split, kind), name in first.items():
      self.bench.open(data, split, kind, name)
    if 'cluster' in left:
      self._check_clusters(self._open(''))
    if 'label' in left:
      labeler_lib.foreground_function(whole.label.saliency, self._labeled_ids())

  def _reads(
    self, name: str
  ) -> list[tuple[datasets.DataOptions, str, str, str]]:
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
        found += [(split, 'label') for split in self._masked()]
      case 'semi':
        found = [(block.split, 'label')]
      case 'segment' | 'segment_semi' | 'segment_on':
        data = self._data_of(name)
        found = [(split, '') for split in self._segmented(name)]
        if self._needs(name) != ('semi',) or self._chooses(name):
          found += [(block.match_on, 'label')]
    return [(data, split, kind, name) for split, kind in found]

  def _reported(self) -> list[str]:
    """Splits that are labeled and scored, that of the matching first."""
    block = self.experiment.label
    # The matching is that of `choose_on`, whatever else is reported.
    reported = [block.choose_on, *block.report] if block.report else []
    return [*dict.fromkeys(reported)]

  def _masked(self) -> list[str]:
    """Splits of which `label` needs the masks."""
    chosen = [self.experiment.label.choose_on] if self._chooses('label') else []
    return [*dict.fromkeys([*self._reported(), *chosen])]

  def _labeled_ids(self) -> list[str]:
    """Names of all images that are labeled."""
    splits = ('', *self._masked())
    return [i for name in splits for i in self._open(name).ids()]


PROGRAM = program.Program(experiment_lib.Experiment, Runner)

if __name__ == '__main__':
  cli.run(PROGRAM)
