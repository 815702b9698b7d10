"""Small data sets with one mutation, and the label counts they must have.

`Inputs(folder).run(seed)` copies one of the data sets of `fuzz_sets`, mutates
it, checks it in this process, and returns an outcome:

  same            the counts of the whole data set
  refused         a message of one line
  reported        other counts, with a line of the report that was not there
  imported        annotations were imported
  traceback       an exception that is no UserError      (a fault)
  silent change   other counts, and nothing says so      (a fault)
  bad message     a message without a file or a field    (a fault)
"""

import contextlib
import io
import pathlib
import random
import shutil
import warnings
from typing import Any, NamedTuple

import fuzz_annotations
import fuzz_mutations
import fuzz_sets
from absl import logging

from input_pipeline import datasets
from input_pipeline.importers import conversion
from input_pipeline.sources import audit
from runtime import errors

# Share of the seeds that mutate annotations to be imported.
_ANNOTATIONS = 0.2


class Counts(NamedTuple):
  """Pixels of each class by name, of no class, and the number of images."""

  pixels: dict[str, int]
  ignored: int
  images: int


class Result(NamedTuple):
  """The result of checking a data set: counts and the lines of its report."""

  counts: Counts
  lines: tuple[str, ...]


class Inputs:
  """Runs mutations in a folder of its own."""

  def __init__(self, folder: pathlib.Path):
    self._folder = folder
    self._whole: dict[int, Result] = {}
    logging.set_verbosity(logging.ERROR)  # TFDS logs each of its steps.
    for i, data_set in enumerate(fuzz_sets.SETS):
      data_set.write(folder / f'{i}')
      self._whole[i] = self._check(data_set, folder / f'{i}')

  def run(self, seed: int) -> tuple[str, str]:
    """Mutates a data set and checks it; returns outcome and description."""
    rng = random.Random(seed)
    if rng.random() < _ANNOTATIONS:
      return self._import(rng)
    text = None
    while text is None:
      place = rng.randrange(len(fuzz_sets.SETS))
      data_set, source = fuzz_sets.SETS[place], self._folder / 'mutated'
      shutil.rmtree(source, ignore_errors=True)
      shutil.copytree(self._folder / f'{place}', source)
      options = dict(data_set.options)
      if data_set.name == 'image_mask_folder' and rng.random() < 0.5:
        options['on_bad_example'] = 'skip'
      text = rng.choice(fuzz_mutations.MUTATIONS)(rng, data_set, source)
    text = f'{data_set.name}: {text}'
    try:
      result = self._check(data_set, source, options)
    except errors.UserError as error:
      return _judge_message(str(error), text)
    except Exception as error:
      return 'traceback', f'{text}: {type(error).__name__}: {error}'
    whole = self._whole[place]
    if _same(result.counts, whole.counts, by_name='classes.txt: ' not in text):
      return 'same', text
    if {*result.lines} - {*whole.lines}:
      return 'reported', text
    return 'silent change', f'{text}: {whole.counts} -> {result.counts}'

  def _import(self, rng: random.Random) -> tuple[str, str]:
    """Imports mutated annotations; any mask will do, as a user would see it."""
    source = self._folder / 'annotated'
    shutil.rmtree(source, ignore_errors=True)
    for i in range(2):
      fuzz_sets.write_photograph(source / f'images/{i}.png', i)
    options, folder, text = fuzz_annotations.write(
      rng, source, fuzz_mutations.mutate_bytes
    )
    try:
      conversion.convert_annotations(options, folder)
    except errors.UserError as error:
      return _judge_message(str(error), text)
    except Exception as error:
      return 'traceback', f'{text}: {type(error).__name__}: {error}'
    return 'imported', text

  def _check(
    self, data_set: fuzz_sets.DataSet, source: pathlib.Path, options: Any = None
  ) -> Result:
    """Checks a data set as `prepare --check` does."""
    options = datasets.DataOptions(
      data_set.name,
      source=str(source),
      **(data_set.options if options is None else options),
    )
    with contextlib.redirect_stderr(io.StringIO()), warnings.catch_warnings():
      warnings.simplefilter('ignore')
      builder = datasets.dataset_builder(options, str(self._folder / 'records'))
      result, _ = builder.check()
    return Result(_counts_of(result), _lines_of(result))


def _same(one: Counts, other: Counts, by_name: bool) -> bool:
  """Returns whether counts are equal; a damaged list may change the names."""
  if by_name:
    return one == other
  return [*one.pixels.values()] == [*other.pixels.values()] and one[
    1:
  ] == other[1:]


def _counts_of(result: audit.Audit) -> Counts:
  pixels = dict.fromkeys(result.classes, 0)
  for counts in result.counts.values():
    for name, value in zip(result.classes, counts.pixels, strict=False):
      pixels[name] += value
  return Counts(
    {name: value for name, value in pixels.items() if value},
    sum(counts.ignored for counts in result.counts.values()),
    sum(counts.num_images for counts in result.counts.values()),
  )


def _lines_of(result: audit.Audit) -> tuple[str, ...]:
  """Returns the warnings and the skipped files of a report."""
  return (*result.warnings, *map(str, result.skipped))


def _judge_message(message: str, text: str) -> tuple[str, str]:
  """Returns whether a refusal can be understood."""
  is_short = all(len(line) < 2000 for line in message.splitlines())
  if not is_short or 'Traceback' in message or ':' not in message:
    return 'bad message', f'{text}: {message}'
  return 'refused', text
