"""Folders of stages in a work folder, by the settings that they were made with.

A folder of equal settings is gone on with. Of other settings there are four
kinds: only the spelling of a path differs, or the place of files with the same
content, which is no setting; a report, which gets a folder of its own beside
the first; a longer training, which continues the shorter one if that is asked
for; and all others, which are refused.
"""

import dataclasses
import re
from collections.abc import Callable, Mapping
from typing import Any

from runtime import console, errors, files, json_files, options

SETTINGS_FILE = 'settings.json'
DONE_FILE = 'DONE.json'
# In the work folder: the config that its stages were made with.
CONFIG_FILE = 'config.json'

_MAX_DIFFERENCES = 5
# Characters of the settings in the name of a report's folder, at most.
_MAX_NAME = 80


@dataclasses.dataclass(frozen=True)
class Extension:
  """A training that may continue a shorter one.

  Attributes:
    field: path of the number of steps in the settings.
    requested: whether the user asks for it.
    refuse: function from the folder of the stage and the steps of the shorter
      training to what forbids to continue it, '' if nothing does.
  """

  field: str
  requested: bool
  refuse: Callable[[files.Path, int], str]


@dataclasses.dataclass(frozen=True)
class Placement:
  """The folder of a stage and the settings that stand there.

  Attributes:
    directory: folder of the stage.
    settings: everything that decides its result, as nested dicts; locations of
      files are spelled as when the folder was made.
    extends: number of steps of the training that is continued, or None.
    set_aside: name for a folder that holds the report of that shorter training,
      '' if there is none.
  """

  directory: files.Path
  settings: Mapping[str, Any]
  extends: int | None = None
  set_aside: str = ''

  @property
  def is_finished(self) -> bool:
    """Returns whether the stage is finished with these settings."""
    is_other = self.extends is not None or self.set_aside
    return not is_other and (self.directory / DONE_FILE).exists()

  def prepare(self) -> None:
    """Makes the folder ready to be worked on; by host 0.

    In an order in which an interruption does no harm.
    """
    if self.set_aside and self.directory.exists():
      aside = self.directory.parent / self.set_aside
      while aside.exists():
        aside = aside.with_name(f'{aside.name}_')
      self.directory.rename(aside)
    if self.extends is not None and (self.directory / DONE_FILE).exists():
      (self.directory / DONE_FILE).unlink()
    json_files.write_json(self.directory / SETTINGS_FILE, self.settings)


def place_stage(
  directory: files.Path,
  settings: Mapping[str, Any],
  *,
  locations: frozenset[str] = frozenset(),
  has_same_content: Callable[[files.Path], bool] = lambda directory: False,
  is_report: bool = False,
  extension: Extension | None = None,
  extended: Mapping[str, int] | None = None,
) -> Placement:
  """Finds the folder of a stage.

  Args:
    directory: usual folder of the stage.
    settings: settings of the stage.
    locations: paths of those settings that are locations of files.
    has_same_content: whether the files are those that a folder was made with;
      called only if their locations differ.
    is_report: whether no other stage reads the results.
    extension: rule by which the training may be continued; None if the stage
      does not train.
    extended: number of steps of each needed stage that is to be continued, by
      name.

  Raises:
    UserError: the folder belongs to other settings.
  """
  saved_path = directory / SETTINGS_FILE
  if not saved_path.exists():
    return Placement(directory, settings)
  saved = json_files.read_json(saved_path)
  differing = options.differing_options(saved, settings)
  if not differing:
    return Placement(directory, settings)
  others = {path: v for path, v in differing.items() if path not in locations}
  if not others:
    if has_same_content(directory):
      return Placement(directory, saved)
    raise _refusal(directory, differing, 'which hold other files')
  renewed = {f'needs.{name}' for name in extended or {}} & {*others}
  if renewed:
    steps = max(extended[path.partition('.')[2]] for path in renewed)
    if is_report:
      aside = f'{directory.name}-{steps}_steps'
      return Placement(directory, settings, set_aside=aside)
    raise errors.UserError(
      f'{directory} started from {", ".join(sorted(extended))} after '
      f'{steps:,} steps: extend it in a copy of the work folder without '
      f'{directory.name}'
    )
  if extension and [*others] == [extension.field]:
    old, new = others[extension.field]
    same = others == differing or has_same_content(directory)
    if same and old < new:
      return _extend(directory, settings, extension, old, new)
  if is_report and not any(path.startswith('needs.') for path in others):
    return _place_report(directory, settings, differing)
  raise _refusal(directory, differing)


def _extend(
  directory: files.Path,
  settings: Mapping[str, Any],
  extension: Extension,
  old: int,
  new: int,
) -> Placement:
  """Returns the placement of a training that continues a shorter one.

  Raises:
    UserError: that was not asked for, or cannot be done.
  """
  what = f'{directory}: expected {old:,} steps as it was made with, got {new:,}'
  reason = extension.refuse(directory, old)
  if reason:
    raise errors.UserError(f'{what}: {reason}')
  if not extension.requested:
    raise errors.UserError(
      f'{what}: to continue it, add --config.operation.extend=True'
    )
  return Placement(directory, settings, extends=old)


def _place_report(
  directory: files.Path,
  settings: Mapping[str, Any],
  differing: Mapping[str, tuple[Any, Any]],
) -> Placement:
  """Returns the folder of a report by other settings than the first one's."""
  if not (directory / DONE_FILE).exists():
    return Placement(directory, settings)  # Nothing is reported there yet.
  for other in sorted(directory.parent.glob(f'{directory.name}-*')):
    path = other / SETTINGS_FILE
    if path.exists() and json_files.read_json(path) == settings:
      return Placement(other, settings)
  text = ','.join(
    f'{path.removeprefix("settings.")}={new}'
    for path, (_, new) in differing.items()
  )
  name = re.sub(r'[^\w.,=-]+', '_', text)
  if len(name) > _MAX_NAME:
    name = options.options_digest(settings)
  other = directory.parent / f'{directory.name}-{name}'
  console.print_line(
    f'{directory} has other settings '
    f'({_describe_differences(differing)}): the results go to {other}'
  )
  return Placement(other, settings)


def _refusal(
  directory: files.Path,
  differing: Mapping[str, tuple[Any, Any]],
  which: str = '',
) -> errors.UserError:
  """Builds the error about a folder of other settings."""
  return errors.UserError(
    f'{directory} was made with other settings '
    f'({_describe_differences(differing)}{which and ", " + which}): choose '
    'another --workdir'
  )


def _describe_differences(differing: Mapping[str, tuple[Any, Any]]) -> str:
  lines = [f'{path}: {old} -> {new}' for path, (old, new) in differing.items()]
  more = len(lines) - _MAX_DIFFERENCES
  return '; '.join(lines[:_MAX_DIFFERENCES]) + (
    f'; and {more} more' if more > 0 else ''
  )
