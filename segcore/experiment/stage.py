"""Stages of an experiment: run once, resumed when interrupted, never mixed up.

A stage lives in `workdir/NAME`. `settings.json` there says what it was started
with, `DONE.json` that it is finished and what it made. Running the same command
again does what is left; with other settings it is refused.
"""

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax
from jax.experimental import multihost_utils

from runtime import console, errors, files, json_files, options, progress
from segcore.cost import topology as topology_lib
from segcore.train import workspace as workspace_lib

_MOST_DIFFERENCES = 5


@dataclasses.dataclass(frozen=True)
class Stage:
  """One step of an experiment.

  Attributes:
    name: also the name of its folder.
    settings: everything that decides its result; not how fast, nor where.
    run: does it, and returns the files and folders it made.
    needs: names of the stages whose results it starts from.
    plan: says in lines, as they become known, what it would compute and what
      that costs; reads no data. If True is given, it asks the compiler too; if
      a topology is given, the compiler for these devices.
  """

  name: str
  settings: Any
  run: Callable[[workspace_lib.Workspace], Sequence[files.Path]]
  needs: tuple[str, ...] = ()
  plan: Callable[[bool, topology_lib.Topology | None], Iterable[str]] | None = (
    None
  )


def run_stages(
  stages: Sequence[Stage],
  workdir: files.Path,
  only: Sequence[str] = (),
) -> None:
  """Runs the stages that are not finished, in order.

  Args:
    stages: in an order in which each comes after those it needs.
    workdir: folder of the experiment.
    only: names to run; all of them by default.

  Raises:
    UserError: an unknown name, a needed stage that is not finished, or a folder
      that belongs to other settings.
  """
  chosen = _choose(stages, only)
  planned = check(stages, workdir)
  preemption = workspace_lib.Preemption()
  for stage in chosen:
    settings = planned[stage.name]
    progress.record_activity(f'the start of {stage.name}')
    directory = workdir / stage.name
    if is_finished(directory):
      console.log(f'{stage.name} is finished already: {directory}')
      continue
    for name in stage.needs:
      require_finished(workdir / name, stage.name)
    json_files.write(directory / 'settings.json', settings)
    place = workspace_lib.Workspace(
      directory,
      {name: workdir / name for name in stage.needs},
      options.digest(settings),
      preemption,
    )
    if preemption.reached():
      raise workspace_lib.Preempted(f'{workdir} is ready to start {stage.name}')
    try:
      outputs = stage.run(place)
    except errors.UserError:
      _forget_unbegun(directory)
      raise
    _finish(place, stage.name, outputs)


def dry_run_stages(
  stages: Sequence[Stage],
  only: Sequence[str] = (),
  compiles: bool = False,
  topology: topology_lib.Topology | None = None,
) -> None:
  """Says what each stage would compute and cost; runs none, reads no data.

  Args:
    stages: as for `run_stages`.
    only: as for `run_stages`.
    compiles: ask the compiler too, which takes its time.
    topology: devices to compile for, instead of those at hand.

  Raises:
    UserError: an unknown name, a stage before one it needs, or devices among
      which a batch cannot be divided.
  """
  all_settings(stages)
  # All are described before the first is compiled: what is refused, is at once.
  planned = [
    (
      stage.name,
      stage.plan(compiles, topology)
      if stage.plan
      else ('says no more beforehand',),
    )
    for stage in _choose(stages, only)
  ]
  for name, lines in planned:
    console.log(f'\n{name}')
    for line in lines:
      console.log(f'  {line}'.rstrip())


def _choose(stages: Sequence[Stage], only: Sequence[str]) -> list[Stage]:
  """The stages named, in their order; all of them if none is."""
  names = [stage.name for stage in stages]
  for name in only:
    if name not in names:
      raise errors.UserError(
        f'--stage: found {name}, expected one of {", ".join(names)}'
      )
  return [stage for stage in stages if not only or stage.name in only]


def is_finished(directory: files.Path) -> bool:
  """Whether the stage of this folder has nothing left to do."""
  return (directory / 'DONE.json').exists()


def check(
  stages: Sequence[Stage], workdir: files.Path
) -> dict[str, dict[str, Any]]:
  """All settings, if what is in the folder was made with them.

  Raises:
    UserError: the folder belongs to other settings.
  """
  planned = all_settings(stages)
  for name, settings in planned.items():
    _refuse_others(workdir / name, settings)
  return planned


def all_settings(stages: Sequence[Stage]) -> dict[str, dict[str, Any]]:
  """All that decides the result of each stage, by its name.

  Stages of equal settings make the same, in whatever experiment they stand.

  Raises:
    UserError: a stage comes before one it needs.
  """
  found: dict[str, dict[str, Any]] = {}
  for stage in stages:
    for name in stage.needs:
      if name not in found:
        raise errors.UserError(
          f'{stage.name} needs {name}, which must come before it: the stages '
          f'are {", ".join(s.name for s in stages)}'
        )
    before = {name: options.digest(found[name]) for name in stage.needs}
    found[stage.name] = options.to_dict(
      {'settings': stage.settings, 'needs': before}
    )
  return found


def _refuse_others(directory: files.Path, settings: Any) -> None:
  path = directory / 'settings.json'
  if not path.exists():
    return
  found = json_files.read(path)
  lines = options.differences(found, settings)
  if lines:
    more = len(lines) - _MOST_DIFFERENCES
    raise errors.UserError(
      f'{directory} was made with other settings ('
      + '; '.join(lines[:_MOST_DIFFERENCES])
      + (f'; and {more} more' if more > 0 else '')
      + '): choose another --workdir'
    )


def _forget_unbegun(directory: files.Path) -> None:
  """Lets other settings in where nothing was made with the refused ones."""
  settings = directory / 'settings.json'
  if jax.process_index() == 0 and [*directory.iterdir()] == [settings]:
    settings.unlink()


def _finish(
  place: workspace_lib.Workspace, name: str, outputs: Sequence[files.Path]
) -> None:
  if jax.process_count() > 1:
    multihost_utils.sync_global_devices(f'{name} finished')
  made = [output for output in outputs if output.exists()]
  missing = [
    str(output)
    for output in outputs
    # A bucket has no empty folders.
    if output not in made and (files.is_local(output) or output.suffix)
  ]
  if missing:
    raise FileNotFoundError(f'{name} did not make {", ".join(missing)}')
  if jax.process_index() == 0:
    hashes = {
      str(file.relative_to(place.directory)): _fingerprint(file)
      for output in made
      for file in files.walk(output)
    }
    json_files.write(
      place.directory / 'DONE.json',
      {'stage': name, 'digest': place.digest, 'outputs': hashes},
    )
  if jax.process_count() > 1:
    multihost_utils.sync_global_devices(f'{name} marked')


def require_finished(directory: files.Path, needed_by: str) -> None:
  """Raises UserError unless the stage is finished and its files are whole."""
  done = directory / 'DONE.json'
  if not done.exists():
    raise errors.UserError(
      f'{needed_by} needs {directory.name}, which is not finished in '
      f'{directory.parent}: run --stage={directory.name} first'
    )
  for name, expected in json_files.read(done)['outputs'].items():
    file = directory / name
    if not file.is_file() or _fingerprint(file) != expected:
      raise errors.UserError(
        f'{file} is missing or changed since {directory.name} was finished: '
        f'restore it, or remove {directory} to run the stage again'
      )


def _fingerprint(file: files.Path) -> str:
  progress.record_activity(f'the fingerprint of {file.name}')
  return files.checksum(file)
