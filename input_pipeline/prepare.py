"""Checks the files of a data set and prepares its records.

  python -m input_pipeline.prepare shapes/scenes
  python -m input_pipeline.prepare voc2012 --source=~/downloads
  python -m input_pipeline.prepare imagenet --source=/data --shard=0/4
  python -m input_pipeline.prepare image_mask_folder --source=~/roads \
      --images=images --masks=masks --classes=classes.txt --ignore=255 --check
  python -m input_pipeline.prepare --from=coco --annotations=instances.json \
      --source=~/roads --check

Prints a report about the data, and draws it as a picture. With --check, no
record is written. With --from, masks and a class list are first written from
the annotations of COCO, LabelMe or CVAT. When interrupted by SIGINT or SIGTERM
it exits with status 75, and the same command continues. User errors are lines
of which the first begins with 'error: ', and exit status 2.
"""

import argparse
import contextlib
import pathlib
import re
import signal
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from absl import logging
from etils import epy

from input_pipeline import (
  crop_scale,
  datasets,
  folder_options,
  report,
  splits,
  transforms,
)
from input_pipeline.builders import class_list
from input_pipeline.builders import shards as shards_lib
from input_pipeline.importers import conversion
from input_pipeline.sources import (
  audit,
  class_counts,
  fingerprints,
  image_files,
  mask_reader,
  pairing,
  records,
)
from runtime import errors, exit_status, files, signals, threads

with epy.lazy_imports():
  from input_pipeline.builders import base

PICTURE = 'report.png'

_IMPORT_FLAGS = ('tool', 'annotations', 'other_shapes', 'without_shapes')


def main(argv: Sequence[str] | None = None) -> int:
  """Runs the command line; returns the exit status."""
  arguments = vars(_parser().parse_args(argv))
  imported = {name: arguments.pop(name) for name in _IMPORT_FLAGS}
  check = arguments.pop('check')
  data_dir = arguments.pop('data_dir')
  shard = arguments.pop('shard')
  jobs = arguments.pop('jobs')
  # TFDS logs each of its steps.
  logging.set_verbosity(logging.ERROR)
  try:
    if jobs < 1:
      raise errors.UserError(f'jobs: expected 1 or more, got {jobs}')
    if imported['tool']:
      arguments = _import(imported, arguments)
    options = datasets.DataOptions(**arguments)
    subset = shards_lib.ShardSubset.parse(shard)
    if check and subset.count > 1:
      raise errors.UserError(
        f'--shard={shard} contradicts --check, which reads all files: remove '
        'one of them'
      )
    with _interrupted_by_sigterm():
      if check:
        _check(options, data_dir)
      elif subset.count == 1 or _write(options, data_dir, subset, jobs):
        _prepare(options, data_dir, jobs)
  except errors.UserError as error:
    errors.print_user_error(error)
    return exit_status.USER_ERROR
  except KeyboardInterrupt:
    state = 'finished shards are kept, the same command continues'
    if check:
      state = 'nothing was written'
    print(f'interrupted: {state}', file=sys.stderr)
    return exit_status.PREEMPTED
  return 0


def _import(
  imported: Mapping[str, str], arguments: Mapping[str, Any]
) -> dict[str, Any]:
  """Writes masks and class list from annotations.

  Args:
    imported: arguments of the command line about the annotations.
    arguments: arguments about the data set.

  Returns:
    The arguments of the data set with those masks.
  """
  arguments = {
    **arguments,
    'name': arguments['name'] or conversion.DATA_SET,
    **{
      name: arguments[name] or default
      for name, default in conversion.DEFAULTS.items()
    },
  }
  if arguments['name'] != conversion.DATA_SET:
    raise errors.UserError(
      f'--from: expected no name, or {conversion.DATA_SET}, got '
      f'{arguments["name"]}'
    )
  ignore = class_list.parse_ignored_mask_value(arguments['ignore'])
  if isinstance(ignore, tuple):
    raise errors.UserError(
      'ignore: expected a value with --from, as masks of values are written, '
      f'got the color {arguments["ignore"]}'
    )
  result = conversion.convert_annotations(
    conversion.ImportOptions(**imported),
    conversion.Folder(
      *(arguments[name] for name in ('source', *conversion.DEFAULTS)),
      ignore,
      pairing.Endings(arguments['image_suffix'], arguments['mask_suffix']),
    ),
  )
  for line in result.lines:
    print(line)
  return {**arguments, 'ignore': str(result.ignore)}


@contextlib.contextmanager
def _interrupted_by_sigterm() -> Iterator[None]:
  """Handles SIGTERM, which schedulers send, like Ctrl-C."""

  def interrupt(*_):
    raise KeyboardInterrupt

  with signals.handling_signals([signal.SIGTERM], interrupt):
    yield


def _write(
  options: datasets.DataOptions,
  data_dir: str,
  subset: shards_lib.ShardSubset,
  jobs: int,
) -> bool:
  """Writes a subset of the shards; returns whether all of them exist now."""
  data_set = datasets.dataset_builder(options, data_dir)
  if data_set.is_prepared():
    return True
  writer = data_set.shard_writer()
  with files.explaining_os_errors(data_set.name, data_set.data_dir):
    writer.write(subset, jobs)
  if missing := writer.missing():
    print(
      f'{len(writer) - missing} of {len(writer)} shards are written; the '
      'process that writes the last one finishes the data set'
    )
  return not missing


def _prepare(options: datasets.DataOptions, data_dir: str, jobs: int) -> None:
  """Prepares the records, and draws the picture of the report."""
  data_set = datasets.prepare_dataset_locally(
    options, data_dir, report_existing=True, jobs=jobs
  )
  folder = pathlib.Path(data_set.data_dir)
  indices = {
    split: fingerprints.ImageIndex.read(
      shards_lib.shard_index_path(folder, split)
    )
    for split in data_set.info.splits
  }
  _warn_of_shared_images(indices)
  counts = class_counts.read_class_counts(folder / base.COUNTS)
  _print_crop(options, counts, indices)
  split = _split_to_draw(data_set, indices)
  opened = datasets.open_dataset_split(options, split, data_dir)
  decode = transforms.Decode(len(opened.classes), keep=('label', 'tags'))
  samples = []
  for i in splits.evenly_spaced_image_indices(len(opened), report.NUM_SAMPLES):
    example = decode(opened.records[i])
    samples.append(
      records.Sample(
        example['id'].decode(),
        b'',
        example['image'],
        example.get('label'),
        example['tags'].nonzero()[0].tolist() if 'tags' in example else (),
      )
    )
  schema = records.Schema(opened.classes, opened.palette)
  _draw(folder / PICTURE, options.name, counts, schema, samples)
  print(f'records are in {folder}')


def _check(options: datasets.DataOptions, data_dir: str) -> None:
  """Checks the files and draws the picture, without writing records."""
  data_set = datasets.dataset_builder(options, data_dir)
  result, indices = data_set.check()
  print(result.report())
  _warn_of_shared_images(indices)
  sources = data_set.sources()[_split_to_draw(data_set, indices)]
  read = audit.catch_bad_files(data_set.read_sample)
  samples = [
    read(sources[i])
    for i in splits.evenly_spaced_image_indices(
      len(sources), report.NUM_SAMPLES
    )
  ]
  samples = [s for s in samples if isinstance(s, records.Sample)]
  _print_crop(options, result.counts, indices)
  name = _report_name(options, data_set)
  path = pathlib.Path(data_set.data_dir_root) / 'reports' / f'{name}.png'
  _draw(path, options.name, result.counts, data_set.schema(), samples)
  print('this was a check: no record was written')


def _report_name(
  options: datasets.DataOptions, data_set: 'base.Builder'
) -> str:
  """Returns a name of the picture, another for every state of a folder."""
  if not options.name.startswith(folder_options.FOLDERS):
    return options.name.replace('/', '-')
  folder = pathlib.Path(options.source).expanduser().resolve().name
  name = f'{options.name}-{folder}-{data_set.builder_config.name}'
  return re.sub(r'[^\w.-]', '_', name)


def _warn_of_shared_images(
  indices: Mapping[str, fingerprints.ImageIndex],
) -> None:
  for line in fingerprints.describe_shared_images(indices):
    print(f'warning: {line}')


def _print_crop(
  options: datasets.DataOptions,
  counts: Mapping[str, class_counts.ClassCounts],
  indices: Mapping[str, fingerprints.ImageIndex],
) -> None:
  """Prints the crops that the configs of folders choose for the data."""
  if options.name != 'image_mask_folder' or 'train' not in indices:
    return
  crop, source = crop_scale.FittedInceptionCrop().fit(
    indices['train'].sizes, counts['train'].objects
  )
  print(f'crops of training: {crop_scale.describe_crop(crop)}, for {source}')


def _split_to_draw(
  data_set: 'base.Builder', indices: Mapping[str, fingerprints.ImageIndex]
) -> str:
  """Returns the first split with labels, else the first."""
  missing = data_set.missing_labels()
  labeled = [
    split for split in indices if 'label' not in missing.get(split, ())
  ]
  return (labeled or list(indices))[0]


def _draw(
  path: pathlib.Path,
  name: str,
  counts: Mapping[str, class_counts.ClassCounts],
  schema: records.Schema,
  samples: Sequence[records.Sample],
) -> None:
  if not path.exists() or path.name != PICTURE:
    with (
      files.explaining_os_errors(name, path),
      files.atomic_path(path) as partial,
    ):
      report.draw_dataset_report(partial, name, counts, schema, samples)
  print(f'the picture is in {path}')


def _parser() -> argparse.ArgumentParser:
  parser = argparse.ArgumentParser(
    prog='python -m input_pipeline.prepare',
    description='Checks the files of a data set and prepares its records.',
    allow_abbrev=False,
  )
  parser.add_argument(
    'name',
    nargs='?',
    default='',
    help='a data set of docs/datasets.md; with --from it may be left out',
  )
  parser.add_argument(
    '--source',
    default='',
    help='folder of its files or archives, or one archive',
  )
  parser.add_argument('--data_dir', default='', help='folder of records')
  parser.add_argument(
    '--shard',
    default='0/1',
    help='i/n: write the shards of process i, from 0, of n processes on '
    'machines that share data_dir',
  )
  parser.add_argument(
    '--jobs',
    default=threads.count_usable_cpus(),
    type=int,
    help='greatest number of processes that prepare, by default one per '
    'processor; each writes a thousand images or more',
  )
  _add_folder_arguments(parser)
  _add_import_arguments(parser)
  parser.add_argument(
    '--check', action='store_true', help='check the files, prepare nothing'
  )
  return parser


def _add_folder_arguments(parser: argparse.ArgumentParser) -> None:
  """Adds the arguments about a user's own folder of images."""
  parser.add_argument(
    '--images',
    default='',
    help='folder of the images in the source; {split} matches each split',
  )
  parser.add_argument(
    '--masks', default='', help='folder of the masks in the source, likewise'
  )
  parser.add_argument(
    '--image_suffix',
    default='',
    help='end of the names of all images beside which masks have the same '
    'name: _leftImg8bit.png',
  )
  parser.add_argument(
    '--mask_suffix',
    default='',
    help='end of the names of all masks: _mask.png, _gtFine_labelIds.png',
  )
  parser.add_argument(
    '--classes',
    default='',
    help='file in the source with a class per line: NAME, NAME R,G,B or '
    'NAME #rrggbb',
  )
  parser.add_argument('--tags', default='', help='table or folder of tags')
  parser.add_argument(
    '--ignore',
    default='',
    help='value or color of pixels without a class: 255 or 255,255,255',
  )
  parser.add_argument(
    '--without_mask',
    default='error',
    # In either spelling.
    type=lambda value: value.replace('unlabelled', 'unlabeled'),
    choices=pairing.WITHOUT_MASK,
    help='refuse images that have no mask, or make them a split of this name',
  )
  _add_reading_arguments(parser)
  parser.add_argument(
    '--val_fraction',
    default=0.0,
    type=float,
    help='fraction of the images that becomes the split val',
  )
  parser.add_argument(
    '--split_seed', default=0, type=int, help='selects the images of val'
  )
  parser.add_argument(
    '--on_bad_example',
    default='error',
    choices=audit.ON_BAD_EXAMPLE,
    help='folders: refuse the data set for one bad file, or skip the file',
  )


def _add_reading_arguments(parser: argparse.ArgumentParser) -> None:
  """Adds the arguments about the pixels of a folder's images and masks."""
  parser.add_argument(
    '--mask_codes',
    default='auto',
    choices=mask_reader.CODES,
    help='what palette and gray masks count by where the class list has colors',
  )
  parser.add_argument(
    '--follow_exif',
    action='store_true',
    help='turn images as their EXIF tag says and viewers do',
  )
  parser.add_argument(
    '--image_depth',
    default=16,
    type=int,
    help='bits of the values in images of 16 bits, e.g. 12',
  )
  parser.add_argument(
    '--max_megapixels',
    default=image_files.MAX_MEGAPIXELS,
    type=int,
    help='refuse larger images',
  )


def _add_import_arguments(parser: argparse.ArgumentParser) -> None:
  """Adds the arguments about annotations of labeling tools."""
  parser.add_argument(
    '--from',
    dest='tool',
    default='',
    choices=[*conversion.READERS],
    help='write masks and class list from annotations of this tool first; '
    'images, masks and classes are then images, masks and classes.txt in the '
    'source unless given',
  )
  parser.add_argument(
    '--annotations',
    default='',
    help='with --from: JSON file of COCO, XML file of CVAT, or folder of the '
    'JSON files of LabelMe (by default that of the images)',
  )
  parser.add_argument(
    '--other_shapes',
    default='error',
    choices=conversion.OTHER_SHAPES,
    help='with --from: refuse boxes, lines and points, or leave them out',
  )
  parser.add_argument(
    '--without_shapes',
    default='background',
    choices=conversion.WITHOUT_SHAPES,
    help='with --from: an image in which nothing is annotated is all '
    'background, or has no mask',
  )


if __name__ == '__main__':
  exit_status.exit_with_status(main)
