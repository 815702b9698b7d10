"""Data sets by name: opens their splits, and prepares their records.

  options = datasets.DataOptions('shapes/scenes')
  split = datasets.open_dataset_split(options, 'train', data_dir='')
  split.records[0]          # encoded bytes: see sources/records.py

A data set that is not prepared yet is prepared when it is opened.
"""

import contextlib
import dataclasses
import importlib
import os
import pathlib
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from absl import logging
from etils import epy
from jaxtyping import Int64

from input_pipeline import data_options, folder_options
from input_pipeline.builders import official_files
from input_pipeline.data_options import DataOptions
from input_pipeline.sources import image_ids
from runtime import errors, files

with epy.lazy_imports():
  import jax
  import tensorflow_datasets as tfds
  from jax.experimental import multihost_utils

  from input_pipeline import record_views
  from input_pipeline.builders import base, class_list, shards
  from input_pipeline.sources import audit, class_counts, fingerprints, records

# The files of a data set are in $SEG_DATA_DIR/NAME, unless `source` is given.
SOURCE_VARIABLE = 'SEG_DATA_DIR'


@dataclasses.dataclass(frozen=True, eq=False)
class Split:
  """A split of a prepared data set.

  Attributes:
    name: name of data set and split, for messages: 'shapes/scenes train'.
    version: version of the records, which differs for every state of a folder.
    classes: name of each class id.
    palette: RGB color of each class id, 0 to 255.
    label_kinds: kinds of label that the records have: 'label', 'tags'.
    records: encoded records by index (see `sources/records.py`).
    index: names, sizes and hashes of the images.
    id_rule: relation of the ids to the paths of the images.
    stored_class_pixels: pixels of each class in each image, beside the records;
      None if they are not stored.
  """

  name: str
  version: str
  classes: tuple[str, ...]
  palette: tuple[tuple[int, int, int], ...]
  label_kinds: tuple[str, ...]
  records: 'Sequence[records.Record]'
  index: 'fingerprints.ImageIndex'
  id_rule: image_ids.IdRule = image_ids.OFFICIAL
  stored_class_pixels: 'class_counts.StoredClassPixels | None' = None

  def __len__(self) -> int:
    return len(self.records)

  def select(self, indices: np.ndarray) -> 'Split':
    """Returns the split of the images at the given indices, in that order."""
    if np.array_equal(indices, np.arange(len(self))):
      return self
    name = f'{self.name} ({len(indices)} of {len(self)} images)'
    stored = self.stored_class_pixels
    return dataclasses.replace(
      self,
      name=name,
      records=record_views.Selection(self.records, indices),
      index=self.index.select(indices),
      stored_class_pixels=stored and stored.select(indices),
    )

  def ids(self) -> list[str]:
    """Returns the official name of each image."""
    return self.index.names()

  def require_labels(self, kind: str, purpose: str) -> None:
    """Checks that the records have a kind of label.

    Args:
      kind: kind of label: 'label' or 'tags'.
      purpose: name of the part that needs the labels, for the message.

    Raises:
      UserError: the records lack the labels.
    """
    if kind not in self.label_kinds:
      raise errors.UserError(
        f'{self.name} has no {kind}, which {purpose} needs: choose another '
        'data set'
      )

  def class_pixels(self) -> Int64[np.ndarray, 'N C']:
    """Returns the number of pixels of each class in each image."""
    if self.stored_class_pixels:
      return self.stored_class_pixels.read()
    return class_counts.count_class_pixels(self.records, len(self.classes))

  def sizes(self) -> list[tuple[int, int]]:
    """Returns (height, width) of each image in pixels."""
    return [(height, width) for height, width in self.index.sizes.tolist()]


def default_data_dir() -> str:
  """Returns the folder of records: $TFDS_DATA_DIR or ~/tensorflow_datasets."""
  return str(
    pathlib.Path(
      os.environ.get('TFDS_DATA_DIR', '~/tensorflow_datasets')
    ).expanduser()
  )


def dataset_builder(options: DataOptions, data_dir: str = '') -> 'base.Builder':
  """Creates the TFDS builder of a data set, prepared or not.

  Args:
    options: name and location of the data set.
    data_dir: folder of records; '' for `default_data_dir`.

  Raises:
    UserError: the config is unknown, or the files are missing.
  """
  name = options.name.partition('/')[0]
  module, cls, config = _class_of(options)
  kwargs = {'data_dir': data_dir or default_data_dir()}
  if config:
    kwargs['config'] = config
  if name == 'shapes':
    return cls(**kwargs)
  source = _source(options)
  if name in folder_options.FOLDERS:
    fields = folder_options.make_folder_options(module, options, source)
    return cls(fields, **kwargs)
  return cls(source=source, **kwargs)


def _class_of(options: DataOptions) -> tuple[Any, 'type[base.Builder]', str]:
  """Returns module, class and config of a builder; the config may be ''.

  Raises:
    UserError: the config is unknown.
  """
  name, _, config = options.name.partition('/')
  module_name, class_name = data_options.BUILDERS[name]
  module = importlib.import_module(f'input_pipeline.builders.{module_name}')
  cls = getattr(module, class_name)
  config = config or cls.DEFAULT_BUILDER_CONFIG_NAME or ''
  if config not in (cls.builder_configs or ('',)):
    expected = f'{name}/ with one of {", ".join(cls.builder_configs)}'
    raise errors.UserError(
      f'name: expected {expected if cls.builder_configs else name}, got '
      f'{options.name!r}'
    )
  return module, cls, config


def known_dataset_num_classes(options: DataOptions) -> int | None:
  """Returns the number of classes of a data set without opening its images.

  Returns:
    The number; None if the classes are defined by files other than a class
    list, or by a list that is missing.

  >>> known_dataset_num_classes(DataOptions('cityscapes'))
  19

  Raises:
    UserError: the config is unknown, or the class list is wrong.
  """
  name = options.name.partition('/')[0]
  _, cls, config = _class_of(options)
  if name == 'image_mask_folder':
    path = pathlib.Path(_source(options)).expanduser() / options.classes
    ignored = class_list.parse_ignored_mask_value(options.ignore)
    if not path.is_file():
      return None
    return len(class_list.read_class_list(path, ignored).names)
  if name in ('imagenet', 'image_folder', 'image_tag_folder'):
    return None
  if name == 'imagenet_s':
    return cls.builder_configs[config].num_classes + 1  # With 'other'.
  data_set = cls(
    data_dir=default_data_dir(), **({'config': config} if config else {})
  )
  return len(data_set.schema().classes)


def prepare_dataset(options: DataOptions, data_dir: str = '') -> 'base.Builder':
  """Prepares the records of a data set, unless they exist.

  Process 0 prepares while the others wait. The audit of the files is printed.

  Args:
    options: name and location of the data set.
    data_dir: folder of records; '' for `default_data_dir`.

  Returns:
    The builder of the prepared data set.

  Raises:
    UserError: a file is missing or bad.
  """
  data_set, problem = None, None
  if jax.process_index() == 0:
    try:
      data_set = prepare_dataset_locally(options, data_dir)
    except errors.UserError as error:
      problem = error
  if jax.process_count() > 1:
    # All hosts must raise: a host that went on would wait for host 0 forever.
    good = multihost_utils.broadcast_one_to_all(np.int32(problem is None))
    if not good and problem is None:
      problem = errors.UserError(f'host 0 could not prepare {options.name}')
  if problem is not None:
    raise problem
  if data_set is None:
    with _without_tfds_logs():
      data_set = dataset_builder(options, data_dir)
  return data_set


def prepare_dataset_locally(
  options: DataOptions,
  data_dir: str = '',
  report_existing: bool = False,
  jobs: int = 1,
) -> 'base.Builder':
  """Prepares the records of a data set, unless they exist, on this machine.

  The audit of the files is printed. Neither jax nor other hosts are needed.

  Args:
    options: name and location of the data set.
    data_dir: folder of records; '' for `default_data_dir`.
    report_existing: whether to print a line if the records exist.
    jobs: greatest number of processes; a script that asks for several must not
      prepare when it is imported.

  Returns:
    The builder of the prepared data set.

  Raises:
    UserError: a file is missing or bad.
  """
  with _without_tfds_logs():
    data_set = dataset_builder(options, data_dir)
    data_set.jobs = jobs
    try:
      _prepare_and_report(data_set, options, report_existing)
    except errors.UserError:
      if not dataset_builder(options, data_dir).is_prepared():
        raise
      # Another process has prepared it in the meantime.
    # A builder reads its splits when it is created: one that another process
    # has prepared since needs a new builder.
    return (
      data_set if data_set.info.splits else dataset_builder(options, data_dir)
    )


@contextlib.contextmanager
def _without_tfds_logs() -> Iterator[None]:
  """Silences the log messages of TFDS, one for each of its steps."""
  verbosity = logging.get_verbosity()
  logging.set_verbosity(logging.ERROR)
  try:
    yield
  finally:
    logging.set_verbosity(verbosity)


def _prepare_and_report(
  data_set: 'base.Builder', options: DataOptions, report_existing: bool
) -> None:
  """Prepares a data set unless its records exist, and prints its audit."""
  report = pathlib.Path(data_set.data_dir) / base.REPORT
  existed = data_set.is_prepared()
  if not existed:
    with files.explaining_os_errors(data_set.name, data_set.data_dir):
      data_set.download_and_prepare()
  elif report_existing:
    print(
      f'{options.name} was prepared before, its files are not read again; '
      f'their audit is in {report}'
    )
  audit.print_stored_report(
    report,
    whole=not existed,
    lists_skipped=data_set.on_bad_example == 'skip',
  )


def check_dataset_available(options: DataOptions, data_dir: str = '') -> None:
  """Checks that a data set is prepared, or that its files are available.

  Args:
    options: name and location of the data set.
    data_dir: folder of records; '' for `default_data_dir`.

  Raises:
    MissingInput: neither records nor files of the data set exist.
  """
  name, _, config = options.name.partition('/')
  layout = official_files.LAYOUTS.get(name, {}).get(config)
  folder = files.parse_file_path(data_dir or default_data_dir(), 'data_dir')
  if layout and not (folder / name).exists():
    # Without TFDS, whose import takes long.
    official_files.require_official_source(name, layout, _source(options))
    return
  with _without_tfds_logs():
    data_set = dataset_builder(options, data_dir)
    if not data_set.is_prepared():
      data_set.check_available()


def concatenate_splits(splits: Sequence[Split]) -> Split:
  """Concatenates the images of several splits, without their labels.

  The result has the classes of the first split. The labels are dropped because
  a class id means another class in each data set.
  """
  first, *others = splits
  if not others:
    return first
  return dataclasses.replace(
    first,
    name=' and '.join(split.name for split in splits),
    version=' and '.join(split.version for split in splits),
    label_kinds=(),
    records=record_views.Concatenation([split.records for split in splits]),
    index=fingerprints.ImageIndex.join([split.index for split in splits]),
    stored_class_pixels=None,
  )


def open_dataset_split(
  options: DataOptions, split: str, data_dir: str = ''
) -> Split:
  """Opens a split; prepares the data set if its records do not exist.

  Args:
    options: name and location of the data set.
    split: name of the split: 'train'.
    data_dir: folder of records; '' for `default_data_dir`.

  Raises:
    UserError: the data set cannot be prepared, or has no such split.
  """
  data_set = prepare_dataset(options, data_dir)
  info = data_set.info
  if split not in info.splits:
    if options.without_mask == split:
      raise errors.UserError(
        f'without_mask={split}: expected images without a mask in '
        f'{options.source}, got a mask for each: leave unlabeled=same out'
      )
    raise errors.UserError(
      f'split: expected one of {", ".join(info.splits)} of {options.name}, got '
      f'{split!r}'
    )
  features = info.features
  encoded = {
    name: tfds.decode.SkipDecoding()
    for name in ('image', 'label')
    if name in features
  }
  metadata: Any = info.metadata
  missing = metadata.get('lacks', {}).get(split, ())
  classes = tuple(metadata['classes'])
  kinds = tuple(
    kind
    for kind in ('label', 'tags')
    if kind in features and kind not in missing
  )
  source = data_set.as_data_source(split, decoders=encoded)
  folder = pathlib.Path(data_set.data_dir)
  stored = None
  if 'label' in kinds:
    path = shards.class_pixels_path(folder, split)
    stored = class_counts.StoredClassPixels(path, source, len(classes))
  return Split(
    name=f'{options.name} {split}',
    version=info.full_name,
    classes=classes,
    palette=tuple(tuple(color) for color in metadata['palette']),
    label_kinds=kinds,
    records=source,
    index=fingerprints.ImageIndex.read(shards.shard_index_path(folder, split)),
    id_rule=folder_options.folder_id_rule(options, _source(options)),
    stored_class_pixels=stored,
  )


def read_split_counts(
  options: DataOptions, split: str, data_dir: str = ''
) -> 'class_counts.ClassCounts':
  """Reads the counts of a split of a prepared data set."""
  with _without_tfds_logs():
    folder = pathlib.Path(dataset_builder(options, data_dir).data_dir)
  return class_counts.read_class_counts(folder / base.COUNTS)[split]


def _source(options: DataOptions) -> str:
  """Returns the source, by default $SEG_DATA_DIR/NAME; '' without either."""
  root = os.environ.get(SOURCE_VARIABLE)
  if options.source or not root:
    return options.source
  return str(pathlib.Path(root) / options.name.partition('/')[0])
