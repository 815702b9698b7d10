"""Prepares a data set from the files its site hands out, and checks them.

  python -m input_pipeline.prepare shapes/scenes
  python -m input_pipeline.prepare voc2012 --source=~/downloads
  python -m input_pipeline.prepare imagenet --source=/data --shard=0/4
  python -m input_pipeline.prepare image_mask_folder --source=~/roads \
      --images=images --masks=masks --classes=classes.txt --ignore=255 --check

Ends with a page about the data, as text and as a picture. With --check nothing
is prepared. It can be interrupted by SIGINT or SIGTERM (exit status 75) and run
again. Exits with status 2 and one line that begins with 'error: ' if something
is to be mended.
"""

import argparse
import contextlib
import pathlib
import signal
import sys
from collections.abc import Iterator, Mapping, Sequence

from absl import logging

from input_pipeline import datasets, report, splits, transforms
from input_pipeline.builders import base
from input_pipeline.builders import shards as shards_lib
from input_pipeline.sources import audit, class_counts, fingerprints, records
from runtime import errors, exit_status, files

PICTURE = 'report.png'
INTERRUPTED = 75


def main(argv: Sequence[str] | None = None) -> int:
  """Runs the command line; returns the exit status."""
  arguments = vars(_parser().parse_args(argv))
  check = arguments.pop('check')
  data_dir = arguments.pop('data_dir')
  shard = arguments.pop('shard')
  # TFDS tells of each of its steps.
  logging.set_verbosity(logging.ERROR)
  try:
    options = datasets.DataOptions(**arguments)
    part = shards_lib.Part.parse(shard)
    if check and part.count > 1:
      raise errors.UserError(
        f'--shard={shard} contradicts --check, which looks at all files: leave '
        'out one of them'
      )
    with _interrupted_by_sigterm():
      if check:
        _check(options, data_dir)
      elif part.count == 1 or _write(options, data_dir, part):
        _prepare(options, data_dir)
  except errors.UserError as error:
    print(f'error: {error}', file=sys.stderr)
    return 2
  except KeyboardInterrupt:
    rest = 'finished shards are kept, the same command goes on'
    if check:
      rest = 'nothing was written'
    print(f'interrupted: {rest}', file=sys.stderr)
    return INTERRUPTED
  return 0


@contextlib.contextmanager
def _interrupted_by_sigterm() -> Iterator[None]:
  """Treats what schedulers send as Ctrl-C."""

  def interrupt(*_):
    raise KeyboardInterrupt

  before = signal.signal(signal.SIGTERM, interrupt)
  try:
    yield
  finally:
    signal.signal(signal.SIGTERM, before)


def _write(
  options: datasets.DataOptions, data_dir: str, part: shards_lib.Part
) -> bool:
  """Makes the shards of this part; whether all of them are there now."""
  made = datasets.builder(options, data_dir)
  if made.is_prepared():
    return True
  shards = made.shards()
  with files.explaining_os_errors(made.name, made.data_dir):
    shards.write(part)
  if missing := shards.missing():
    print(
      f'{len(shards) - missing} of {len(shards)} shards are made; the process '
      'that makes the last one finishes the data set'
    )
  return not missing


def _prepare(options: datasets.DataOptions, data_dir: str) -> None:
  """Prepares, and draws the page."""
  made = datasets.prepare(options, data_dir, tell_known=True)
  folder = pathlib.Path(made.data_dir)
  indices = {
    split: fingerprints.ImageIndex.read(shards_lib.index_path(folder, split))
    for split in made.info.splits
  }
  _tell_shared(indices)
  counts = class_counts.read(folder / base.COUNTS)
  split = _shown_split(made, indices)
  opened = datasets.open_split(options, split, data_dir)
  decode = transforms.Decode(len(opened.classes), keep=('label', 'tags'))
  samples = []
  for i in splits.evenly_spaced(len(opened), report.NUM_SAMPLES):
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
  contents = records.Contents(opened.classes, opened.palette)
  _draw(folder / PICTURE, options.name, counts, contents, samples)
  print(f'records are in {folder}')


def _check(options: datasets.DataOptions, data_dir: str) -> None:
  """Audits the files and leaves it at that."""
  made = datasets.builder(options, data_dir)
  found, indices = made.check()
  print(found.report())
  _tell_shared(indices)
  sources = made.sources()[_shown_split(made, indices)]
  read = audit.catching(made.sample)
  samples = [
    read(sources[i])
    for i in splits.evenly_spaced(len(sources), report.NUM_SAMPLES)
  ]
  samples = [s for s in samples if isinstance(s, records.Sample)]
  name = f'{options.name.replace("/", "-")}.png'
  path = pathlib.Path(made.data_dir_root) / 'reports' / name
  _draw(path, options.name, found.counts, made.contents(), samples)
  print('this was a check: no record was written')


def _tell_shared(indices: Mapping[str, fingerprints.ImageIndex]) -> None:
  for line in fingerprints.shared(indices):
    print(f'warning: {line}')


def _shown_split(
  made: base.Builder, indices: Mapping[str, fingerprints.ImageIndex]
) -> str:
  """The first split with labels; else the first."""
  lacks = made.lacks()
  labeled = [split for split in indices if 'label' not in lacks.get(split, ())]
  return (labeled or list(indices))[0]


def _draw(
  path: pathlib.Path,
  name: str,
  counts: Mapping[str, class_counts.ClassCounts],
  contents: records.Contents,
  samples: Sequence[records.Sample],
) -> None:
  if not path.exists() or path.name != PICTURE:
    with (
      files.explaining_os_errors(name, path),
      files.atomic_path(path) as partial,
    ):
      report.draw(partial, name, counts, contents, samples)
  print(f'the page is in {path}')


def _parser() -> argparse.ArgumentParser:
  parser = argparse.ArgumentParser(
    prog='python -m input_pipeline.prepare',
    description='Prepares a data set, after an audit of its files.',
    allow_abbrev=False,
  )
  parser.add_argument('name', help='a data set of docs/datasets.md')
  parser.add_argument(
    '--source', default='', help='folder of its files or archives, or one'
  )
  parser.add_argument('--data_dir', default='', help='where records are kept')
  parser.add_argument(
    '--shard',
    default='0/1',
    help='i/n: make the i-th of n parts, from 0; one process each, on any '
    'machines that share data_dir',
  )
  parser.add_argument(
    '--images',
    default='',
    help='folder of the images in the source; {split} stands for each split',
  )
  parser.add_argument(
    '--masks', default='', help='folder of the masks in the source, likewise'
  )
  parser.add_argument(
    '--classes',
    default='',
    help='file in the source, a class a line: NAME, NAME R,G,B or NAME #rrggbb',
  )
  parser.add_argument(
    '--ignore',
    default='',
    help='value or color of pixels without a class: 255 or 255,255,255',
  )
  parser.add_argument(
    '--without_mask',
    default='error',
    choices=audit.WITHOUT_MASK,
    help='refuse images that have no mask, or make them a split of this name',
  )
  parser.add_argument(
    '--val_fraction',
    default=0.0,
    type=float,
    help='part of the images that becomes the split val',
  )
  parser.add_argument('--split_seed', default=0, type=int, help='chooses which')
  parser.add_argument(
    '--on_bad_example',
    default='error',
    choices=audit.ON_BAD_EXAMPLE,
    help='folders: refuse all for one bad file, or leave it out',
  )
  parser.add_argument(
    '--check', action='store_true', help='audit only, prepare nothing'
  )
  return parser


if __name__ == '__main__':
  exit_status.run(main)
