"""Data sets by name: where their records are, and their splits.

  options = datasets.Options('shapes/scenes')
  split = datasets.open_split(options, 'train', data_dir='')
  split.records[0]          # encoded bytes: see builders/records.py

A data set that is not prepared yet is prepared when it is opened.
"""

import contextlib
import dataclasses
import importlib
import os
import pathlib
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import numpy as np
import tensorflow_datasets as tfds
from absl import logging
from jax.experimental import multihost_utils

from input_pipeline.builders import base, shards
from input_pipeline.sources import audit, fingerprints, records
from runtime import errors, files, progress, threads

# Data sets made from files are looked for in $SEG_DATA_DIR/NAME, unless
# `source` says where they are.
SOURCE_VARIABLE = 'SEG_DATA_DIR'

# Module below input_pipeline.builders and class of each data set; imported only
# when it is asked for.
_BUILDERS = {
  'shapes': ('shapes', 'Shapes'),
  'camvid': ('camvid', 'Camvid'),
  'voc2012': ('voc2012', 'Voc2012'),
  'pascal_context': ('pascal_context', 'PascalContext'),
  'ade20k': ('ade20k', 'Ade20k'),
  'cityscapes': ('cityscapes', 'Cityscapes'),
  'gta5': ('gta5', 'Gta5'),
  'synthia': ('synthia', 'Synthia'),
  'imagenet': ('imagenet', 'Imagenet'),
  'imagenet_s': ('imagenet_s', 'ImagenetS'),
  'image_folder': ('folders', 'ImageFolder'),
  'image_mask_folder': ('folders', 'ImageMaskFolder'),
}


# Reports that this process has printed.
_TOLD: set[pathlib.Path] = set()

# Fields of `DataOptions` that only some data sets read.
_MASK_FIELDS = ('masks', 'classes', 'ignore', 'without_mask')
_FOLDER_FIELDS = (
  *('images', *_MASK_FIELDS),
  *('val_fraction', 'split_seed', 'on_bad_example'),
)
_FILE_FIELDS = ('source', *_FOLDER_FIELDS)


@dataclasses.dataclass(frozen=True)
class DataOptions:
  """A data set, and where its own files are.

  Attributes:
    name: as in docs/datasets.md: 'camvid', 'imagenet_s/50', 'image_folder'.
    source: folder of the files it is made from; '' looks in $SEG_DATA_DIR.
    images: folders only: where the images are in the source.
    masks: image_mask_folder only: where the masks are.
    classes: image_mask_folder only: file with the class list.
    ignore: image_mask_folder only: value or color of pixels without a class,
      '255' or '255,255,255' or '#ffffff'; '' if there are none.
    without_mask: image_mask_folder only: 'error' refuses images that have no
      mask, 'unlabeled' makes them a split of this name.
    val_fraction: folders only: part of the images that becomes `val`.
    split_seed: folders only: chooses which.
    on_bad_example: folders only: 'error' refuses all for one bad file, 'skip'
      leaves it out.
  """

  name: str
  source: str = ''
  images: str = ''
  masks: str = ''
  classes: str = ''
  ignore: str = ''
  without_mask: str = 'error'
  val_fraction: float = 0.0
  split_seed: int = 0
  on_bad_example: str = 'error'

  def __post_init__(self):
    name, slash, config = self.name.partition('/')
    if name not in _BUILDERS or (slash and not config):
      raise errors.UserError(
        f'there is no data set {self.name!r}: expected one of '
        f'{", ".join(_BUILDERS)}'
      )
    unread = {'shapes': _FILE_FIELDS, 'image_folder': _MASK_FIELDS}.get(
      name, () if name == 'image_mask_folder' else _FOLDER_FIELDS
    )
    for field in dataclasses.fields(self):
      if field.name in unread and getattr(self, field.name) != field.default:
        raise errors.UserError(
          f'{field.name} is {getattr(self, field.name)!r}, which {name} does '
          'not read: leave it out'
        )


class _Selected(Sequence[records.Record]):
  """The records of the given indices, as a random access source."""

  def __init__(self, source: Sequence[records.Record], indices: np.ndarray):
    self._source = source
    self._indices = indices

  def __len__(self) -> int:
    return len(self._indices)

  def __getitem__(self, i) -> records.Record:
    return self._source[int(self._indices[i])]

  def __repr__(self) -> str:
    return f'_Selected({len(self)} records)'


class _Joined(Sequence[records.Record]):
  """Sources one after the other, as a random access source."""

  def __init__(self, sources: Sequence[Sequence[records.Record]]):
    self._sources = sources
    self._ends = np.cumsum([len(source) for source in sources])

  def __len__(self) -> int:
    return int(self._ends[-1])

  def __getitem__(self, i) -> records.Record:
    at = range(len(self))[int(i)]  # Counts from the end, too.
    k = int(np.searchsorted(self._ends, at, side='right'))
    source = self._sources[k]
    return source[at - int(self._ends[k]) + len(source)]

  def __repr__(self) -> str:
    return f'_Joined({len(self)} records)'


@dataclasses.dataclass(frozen=True, eq=False)
class Split:
  """A split of a prepared data set.

  Attributes:
    name: for people: 'shapes/scenes train'.
    version: of the records it comes from; another one for every state of a
      folder.
    classes: name of each class id.
    palette: RGB color of each class id.
    label_kinds: kinds of label its records have: 'label', 'tags'.
    records: by index; encoded, see builders/records.py.
    index: what is known of the images without reading them.
  """

  name: str
  version: str
  classes: tuple[str, ...]
  palette: tuple[tuple[int, int, int], ...]
  label_kinds: tuple[str, ...]
  records: Sequence[records.Record]
  index: fingerprints.ImageIndex

  def __len__(self) -> int:
    return len(self.records)

  def select(self, indices: np.ndarray) -> 'Split':
    """The images of the given indices, as a split of its own."""
    if np.array_equal(indices, np.arange(len(self))):
      return self
    name = f'{self.name} ({len(indices)} of {len(self)} images)'
    return dataclasses.replace(
      self,
      name=name,
      records=_Selected(self.records, indices),
      index=self.index.select(indices),
    )

  def ids(self) -> list[str]:
    """The official name of each image."""
    return self.index.names()

  def require_labels(self, kind: str, purpose: str) -> None:
    """Raises UserError unless its records have this kind of label."""
    if kind not in self.label_kinds:
      raise errors.UserError(
        f'{self.name} has no {kind}, which {purpose} needs: choose another '
        'data set'
      )

  def sizes(self) -> list[tuple[int, int]]:
    """(height, width) of each image."""
    return [(height, width) for height, width in self.index.sizes.tolist()]


def default_data_dir() -> str:
  """Where records are kept: $TFDS_DATA_DIR or ~/tensorflow_datasets."""
  return str(
    pathlib.Path(
      os.environ.get('TFDS_DATA_DIR', '~/tensorflow_datasets')
    ).expanduser()
  )


def builder(options: DataOptions, data_dir: str = '') -> base.Builder:
  """The TFDS builder of a data set, prepared or not.

  Raises:
    UserError: there is no such configuration, or its files are not found.
  """
  name = options.name.partition('/')[0]
  module, cls, config = _class_of(options)
  kwargs = {'data_dir': data_dir or default_data_dir()}
  if config:
    kwargs['config'] = config
  if name == 'shapes':
    return cls(**kwargs)
  source = options.source or _source_of(name)
  if name in ('image_folder', 'image_mask_folder'):
    return cls(_folder_options(module, options, source), **kwargs)
  return cls(source=source, **kwargs)


def _class_of(options: DataOptions) -> tuple[Any, type[base.Builder], str]:
  """Module and class of a builder, and the configuration, '' if it has none.

  Raises:
    UserError: there is no such configuration.
  """
  name, _, config = options.name.partition('/')
  module_name, class_name = _BUILDERS[name]
  module = importlib.import_module(f'input_pipeline.builders.{module_name}')
  cls = getattr(module, class_name)
  config = config or cls.DEFAULT_BUILDER_CONFIG_NAME or ''
  if config not in (cls.builder_configs or ('',)):
    expected = f'{name}/ with one of {", ".join(cls.builder_configs)}'
    raise errors.UserError(
      f'there is no data set {options.name!r}: expected '
      f'{expected if cls.builder_configs else name}'
    )
  return module, cls, config


def known_num_classes(options: DataOptions) -> int | None:
  """How many classes a data set has; None if only its files tell.

  Opens none of them, and needs none to be there.

  >>> known_num_classes(DataOptions('cityscapes'))
  19

  Raises:
    UserError: there is no such configuration.
  """
  name = options.name.partition('/')[0]
  _, cls, config = _class_of(options)
  if name in ('imagenet', 'image_folder', 'image_mask_folder'):
    return None
  if name == 'imagenet_s':
    return cls.builder_configs[config].num_classes + 1  # And 'other'.
  made = cls(
    data_dir=default_data_dir(), **({'config': config} if config else {})
  )
  return len(made.contents().classes)


def prepare(
  options: DataOptions, data_dir: str = '', tell_known: bool = False
) -> base.Builder:
  """The builder of a data set, with its records on disk.

  Process 0 prepares while the others wait. The audit of the files is printed.

  Args:
    options: which data set.
    data_dir: where records are kept.
    tell_known: whether to say so if it is prepared already.

  Raises:
    UserError: a file is missing or bad.
  """
  with _quietly():
    made = builder(options, data_dir)
    problem = None
    if _is_host_0():
      problem = _prepare_on_host_0(made, options, tell_known)
    if jax.process_count() > 1:
      good = multihost_utils.broadcast_one_to_all(np.int32(problem is None))
      if not good and problem is None:
        problem = errors.UserError(f'host 0 could not prepare {options.name}')
      made = builder(options, data_dir)
    if problem is not None:
      raise problem
    # What another process has prepared is seen by a new builder only.
    return made if made.info.splits else builder(options, data_dir)


@contextlib.contextmanager
def _quietly() -> Iterator[None]:
  """Without what TFDS tells of each of its steps; what matters is said here."""
  verbosity = logging.get_verbosity()
  logging.set_verbosity(logging.ERROR)
  try:
    yield
  finally:
    logging.set_verbosity(verbosity)


def _is_host_0() -> bool:
  return jax.process_index() == 0


def _prepare_on_host_0(
  made: base.Builder, options: DataOptions, tell_known: bool
) -> errors.UserError | None:
  """Prepares what is not prepared; returns what went wrong."""
  report = pathlib.Path(made.data_dir) / base.REPORT
  try:
    known = made.is_prepared()
    if not known:
      with files.explaining_os_errors(made.name, made.data_dir):
        made.download_and_prepare()
    elif tell_known:
      print(
        f'{options.name} was prepared before, its files are not read again; '
        f'their audit is in {report}'
      )
    # What is left out is said in every run, once.
    anew = made.on_bad_example == 'skip' and report not in _TOLD
    if report.exists() and (not known or anew):
      _TOLD.add(report)
      print(report.read_text(), end='', flush=True)
  except errors.UserError as error:
    if builder(options, str(made.data_dir_root)).is_prepared():
      return None  # By another process, in the meantime.
    return error
  return None


def check_available(options: DataOptions, data_dir: str = '') -> None:
  """Raises Missing unless a data set is prepared, or its files are there.

  Nothing is prepared.
  """
  with _quietly():
    made = builder(options, data_dir)
    if not made.is_prepared():
      made.require()


def concatenate(splits: Sequence[Split]) -> Split:
  """The images of several splits, one after the other, without their labels."""
  first, *others = splits
  if not others:
    return first
  return dataclasses.replace(
    first,
    name=' and '.join(split.name for split in splits),
    version=' and '.join(split.version for split in splits),
    label_kinds=(),
    records=_Joined([split.records for split in splits]),
    index=fingerprints.ImageIndex.join([split.index for split in splits]),
  )


def open_split(options: DataOptions, split: str, data_dir: str = '') -> Split:
  """Opens a split, preparing the data set if need be.

  Raises:
    UserError: the data set cannot be prepared, or has no such split.
  """
  made = prepare(options, data_dir)
  if split not in made.info.splits:
    raise errors.UserError(
      f'{options.name} has no split {split!r}: expected one of '
      f'{", ".join(made.info.splits)}'
    )
  features = made.info.features
  encoded = {
    name: tfds.decode.SkipDecoding()
    for name in ('image', 'label')
    if name in features
  }
  metadata: Any = made.info.metadata
  lacks = metadata.get('lacks', {}).get(split, ())
  return Split(
    name=f'{options.name} {split}',
    version=made.info.full_name,
    classes=tuple(metadata['classes']),
    palette=tuple(tuple(color) for color in metadata['palette']),
    label_kinds=tuple(
      kind
      for kind in ('label', 'tags')
      if kind in features and kind not in lacks
    ),
    records=made.as_data_source(split, decoders=encoded),
    index=fingerprints.ImageIndex.read(
      shards.index_path(pathlib.Path(made.data_dir), split)
    ),
  )


class _Files(Sequence[records.Record]):
  """Records that are read from the image files themselves."""

  def __init__(self, examples: Sequence[audit.Example]):
    self._examples = examples

  def __len__(self) -> int:
    return len(self._examples)

  def __getitem__(self, i) -> records.Record:
    example = self._examples[int(i)]
    return {'image': example.image.read_bytes(), 'id': example.id.encode()}

  def __repr__(self) -> str:
    return f'_Files({len(self)} images)'


def open_folder(
  images: pathlib.Path,
  classes: tuple[str, ...],
  palette: tuple[tuple[int, int, int], ...],
) -> tuple[Split, tuple[errors.BadFile, ...]]:
  """The images of a folder as they are, without records; and what is unusable.

  Every image is decoded once, to see whether it can be.

  Raises:
    UserError: there is no such folder, or no usable image in it.
  """
  listing = audit.list_examples(images)
  found = [
    (example, known)
    for example, known in zip(
      listing.examples,
      progress.bar(
        threads.ordered_map(audit.catching(_look), listing.examples),
        desc=f'checking {images}',
        total=len(listing.examples),
      ),
      strict=True,
    )
  ]
  good = [pair for pair in found if not isinstance(pair[1], errors.BadFile)]
  bad = [known for _, known in found if isinstance(known, errors.BadFile)]
  bad = sorted([*listing.problems, *bad], key=str)
  if not good:
    raise errors.UserError(f'{images}: no image is usable: {bad[0]}; mend that')
  split = Split(
    name=str(images),
    version='',
    classes=classes,
    palette=palette,
    label_kinds=(),
    records=_Files([example for example, _ in good]),
    index=fingerprints.ImageIndex.join([known for _, known in good]),
  )
  return split, tuple(bad)


def _look(example: audit.Example) -> fingerprints.ImageIndex:
  return fingerprints.ImageIndex.from_sample(audit.read_example(example))


def _source_of(name: str) -> str:
  root = os.environ.get(SOURCE_VARIABLE)
  return str(pathlib.Path(root) / name) if root else ''


def _folder_options(module: Any, options: DataOptions, source: str) -> Any:
  common = {
    'source': source,
    'images': options.images,
    'val_fraction': options.val_fraction,
    'split_seed': options.split_seed,
    'on_bad_example': options.on_bad_example,
  }
  if options.name == 'image_folder':
    return module.ImageFolderOptions(**common)
  return module.ImageMaskFolderOptions(
    **common,
    masks=options.masks,
    classes=options.classes,
    ignore=module.parse_ignore(options.ignore),
    without_mask=options.without_mask,
  )
