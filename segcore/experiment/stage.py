"""Execution of stages: once each, resumable, never with mixed settings.

A stage writes to `workdir/NAME`. `settings.json` there holds the settings it
was started with; `DONE.json` marks it as finished and lists its outputs with
their checksums. Running the same command again does what is left; a folder of
other settings is refused.
"""

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax
from jax.experimental import multihost_utils

from runtime import console, errors, files, json_files, options, progress
from segcore.cost import topology as topology_lib
from segcore.train import workspace as workspace_lib

_MAX_DIFFERENCES = 5

# (compile too, devices to compile for) -> lines.
DryRun = Callable[[bool, topology_lib.Topology | None], Iterable[str]]


@dataclasses.dataclass(frozen=True)
class Stage:
  """One step of an experiment, ready to be executed.

  Attributes:
    name: name of the stage and of its folder.
    settings: all settings that decide the result, and none that only decide
      speed or place.
    run: function that runs the stage and returns the files and folders that it
      has written.
    needs: names of the stages whose results this stage reads.
    dry_run: function that reports in lines what the stage would compute and
      cost, without data; its arguments are whether to compile, too, and the
      devices to compile for.
  """

  name: str
  settings: Any
  run: Callable[[workspace_lib.Workspace], Sequence[files.Path]]
  needs: tuple[str, ...] = ()
  dry_run: DryRun | None = None


def run_stages(
  stages: Sequence[Stage],
  workdir: files.Path,
  only: Sequence[str] = (),
) -> None:
  """Runs the stages that are not finished, in order.

  Args:
    stages: stages of the experiment, each after those that it needs.
    workdir: folder of the experiment.
    only: names of the stages to run; all stages if empty.

  Raises:
    UserError: an unknown name, a needed stage that is not finished, or a folder
      that belongs to other settings.
  """
  chosen = _choose(stages, only)
  settings_by_name = check_stage_settings(stages, workdir)
  preemption = workspace_lib.Preemption()
  for stage in chosen:
    settings = settings_by_name[stage.name]
    progress.record_activity(f'the start of {stage.name}')
    directory = workdir / stage.name
    if is_stage_finished(directory):
      console.print_line(f'{stage.name} is finished already: {directory}')
      continue
    for name in stage.needs:
      require_finished_stage(workdir / name, stage.name)
    json_files.write_json(directory / 'settings.json', settings)
    workspace = workspace_lib.Workspace(
      directory,
      {name: workdir / name for name in stage.needs},
      options.options_digest(settings),
      preemption,
    )
    if preemption.reached():
      raise workspace_lib.Preempted(f'{workdir} is ready to start {stage.name}')
    try:
      outputs = stage.run(workspace)
    except errors.UserError:
      _remove_unused_settings(directory)
      raise
    _finish(workspace, stage.name, outputs)


def dry_run_stages(
  stages: Sequence[Stage],
  only: Sequence[str] = (),
  compiles: bool = False,
  topology: topology_lib.Topology | None = None,
) -> None:
  """Reports what each stage would compute and cost; runs none, reads no data.

  Args:
    stages: stages of the experiment, each after those that it needs.
    only: names of the stages to report; all stages if empty.
    compiles: whether the figures of the compiler are reported, too, which takes
      minutes.
    topology: devices to compile for; None for those of this process.

  Raises:
    UserError: an unknown name, a stage before one it needs, or devices among
      which a batch cannot be divided.
  """
  settings_by_stage(stages)
  # Build all reports before compiling the first: refusals come at once.
  reports = [
    (
      stage.name,
      stage.dry_run(compiles, topology)
      if stage.dry_run
      else ('no cost is estimated for this stage',),
    )
    for stage in _choose(stages, only)
  ]
  for name, lines in reports:
    console.print_line(f'\n{name}')
    for line in lines:
      console.print_line(f'  {line}'.rstrip())


def _choose(stages: Sequence[Stage], only: Sequence[str]) -> list[Stage]:
  """Returns the named stages in their order; all of them if none is named."""
  names = [stage.name for stage in stages]
  for name in only:
    if name not in names:
      raise errors.UserError(
        f'--stage: expected one of {", ".join(names)}, got {name}'
      )
  return [stage for stage in stages if not only or stage.name in only]


def is_stage_finished(directory: files.Path) -> bool:
  """Returns whether the stage in a folder is finished."""
  return (directory / 'DONE.json').exists()


def check_stage_settings(
  stages: Sequence[Stage], workdir: files.Path
) -> dict[str, dict[str, Any]]:
  """Checks that a work folder belongs to these stages; returns their settings.

  Args:
    stages: stages of the experiment, each after those that it needs.
    workdir: folder of the experiment.

  Raises:
    UserError: the folder belongs to other settings.
  """
  settings_by_name = settings_by_stage(stages)
  for name, settings in settings_by_name.items():
    _refuse_others(workdir / name, settings)
  return settings_by_name


def settings_by_stage(stages: Sequence[Stage]) -> dict[str, dict[str, Any]]:
  """Collects the settings that decide the result of each stage, by its name.

  Stages with equal settings have equal results, in whatever experiment.

  Raises:
    UserError: a stage comes before one that it needs.
  """
  settings: dict[str, dict[str, Any]] = {}
  for stage in stages:
    for name in stage.needs:
      if name not in settings:
        raise errors.UserError(
          f'{stage.name} needs {name}, which must come before it: the stages '
          f'are {", ".join(s.name for s in stages)}'
        )
    before = {
      name: options.options_digest(settings[name]) for name in stage.needs
    }
    settings[stage.name] = options.options_to_dict(
      {'settings': stage.settings, 'needs': before}
    )
  return settings


def _refuse_others(directory: files.Path, settings: Any) -> None:
  path = directory / 'settings.json'
  if not path.exists():
    return
  lines = options.option_differences(json_files.read_json(path), settings)
  if lines:
    more = len(lines) - _MAX_DIFFERENCES
    raise errors.UserError(
      f'{directory} was made with other settings ('
      + '; '.join(lines[:_MAX_DIFFERENCES])
      + (f'; and {more} more' if more > 0 else '')
      + '): choose another --workdir'
    )


def _remove_unused_settings(directory: files.Path) -> None:
  """Removes the settings of a stage that was refused before it began."""
  settings = directory / 'settings.json'
  if jax.process_index() == 0 and [*directory.iterdir()] == [settings]:
    settings.unlink()


def _finish(
  workspace: workspace_lib.Workspace, name: str, outputs: Sequence[files.Path]
) -> None:
  if jax.process_count() > 1:
    multihost_utils.sync_global_devices(f'{name} finished')
  made = [output for output in outputs if output.exists()]
  missing = [
    str(output)
    for output in outputs
    # A bucket has no empty folders.
    if output not in made and (files.is_local_path(output) or output.suffix)
  ]
  if missing:
    raise FileNotFoundError(f'{name} did not make {", ".join(missing)}')
  if jax.process_index() == 0:
    hashes = {
      str(file.relative_to(workspace.directory)): _checksum(file)
      for output in made
      for file in files.walk_files(output)
    }
    json_files.write_json(
      workspace.directory / 'DONE.json',
      {'stage': name, 'digest': workspace.digest, 'outputs': hashes},
    )
  if jax.process_count() > 1:
    multihost_utils.sync_global_devices(f'{name} marked')


def require_finished_stage(directory: files.Path, needed_by: str) -> None:
  """Checks that a stage is finished and that its files are undamaged.

  Args:
    directory: folder of the stage.
    needed_by: name of the stage that reads its results, for the message.

  Raises:
    UserError: the stage is not finished, or a file is missing or damaged.
  """
  done = directory / 'DONE.json'
  if not done.exists():
    raise errors.UserError(
      f'{needed_by} needs {directory.name}, which is not finished in '
      f'{directory.parent}: run --stage={directory.name} first'
    )
  for name, expected in json_files.read_json(done)['outputs'].items():
    file = directory / name
    if not file.is_file() or _checksum(file) != expected:
      raise errors.UserError(
        f'{file} is missing or changed since {directory.name} was finished: '
        f'restore it, or remove {directory} to run the stage again'
      )


def _checksum(file: files.Path) -> str:
  progress.record_activity(f'checksum of {file.name}')
  return files.file_checksum(file)
