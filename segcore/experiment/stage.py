"""Execution of stages: once each, resumable, never with mixed settings.

A stage writes to `workdir/NAME`. `settings.json` there holds the settings it
was started with; `DONE.json` marks it as finished and lists its outputs with
their checksums. Running the same command again does what is left; a folder of
other settings is refused (see `placement`), and so is one that another process
is working on.
"""

import contextlib
import dataclasses
from collections.abc import (
  Callable,
  Container,
  Iterable,
  Iterator,
  Mapping,
  Sequence,
)
from typing import Any

import jax
from jax.experimental import multihost_utils

from runtime import (
  console,
  errors,
  files,
  json_files,
  options,
  process_lock,
  progress,
)
from segcore.cost import topology as topology_lib
from segcore.distributed import host_settings
from segcore.experiment import placement as placement_lib
from segcore.train import workspace as workspace_lib

# Digests of the files that a stage reads, in its folder.
CONTENT_FILE = 'data.json'
# Versions of the libraries that a stage was started with, in its folder.
LIBRARIES_FILE = 'libraries.json'

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
    has_same_content: function that returns whether the files that the stage
      reads are those that a folder was made with, wherever they lie.
    is_report: whether no other stage reads the results: those of other settings
      get a folder of their own.
    reported: metrics that it writes to results.json, as '<split>/<metric>',
      with '*' for any metric; None if they are not known before it runs.
    extension: continuation of a shorter training; None if the stage trains not.
  """

  name: str
  settings: Any
  run: Callable[[workspace_lib.Workspace], Sequence[files.Path]]
  needs: tuple[str, ...] = ()
  dry_run: DryRun | None = None
  has_same_content: Callable[[files.Path], bool] = lambda directory: False
  is_report: bool = False
  extension: placement_lib.Extension | None = None
  reported: tuple[str, ...] | None = None


def run_stages(
  stages: Sequence[Stage],
  workdir: files.Path,
  only: Sequence[str] = (),
  save_config: Callable[[files.Path, bool], None] = lambda *_: None,
) -> None:
  """Runs the stages that are not finished, in order.

  Args:
    stages: stages of the experiment, each after those that it needs.
    workdir: folder of the experiment.
    only: names of the stages to run; all stages if empty.
    save_config: function that writes the config into the work folder, once
      nothing is refused; it replaces an earlier one if True is given, which is
      the case unless only reports are made.

  Raises:
    UserError: an unknown name, a needed stage that is not finished, or a folder
      that belongs to other settings or that another process is working on.
  """
  chosen = _choose(stages, only)
  placements = place_stages(stages, workdir)
  left = [s for s in chosen if not placements[s.name].is_finished]
  with _claiming([placements[s.name].directory for s in left]):
    save_config(workdir, any(not s.is_report for s in left))
    preemption = workspace_lib.Preemption()
    worked = set()
    for stage in chosen:
      placed = placements[stage.name]
      progress.record_activity(f'the start of {stage.name}')
      if placed.is_finished:
        console.print_line(
          f'{stage.name} is finished already: {placed.directory}'
        )
        continue
      for name in stage.needs:
        if name not in worked:
          _require_all_steps(placements[name], stage.name)
        require_finished_stage(placements[name].directory, stage.name)
      _run_stage(stage, placements, preemption)
      worked.add(stage.name)


@contextlib.contextmanager
def _claiming(directories: Iterable[files.Path]) -> Iterator[None]:
  """Keeps other processes from working on stages, by host 0.

  Raises:
    UserError: one does so already.
  """
  with contextlib.ExitStack() as stack:
    if jax.process_index() == 0:
      for directory in directories:
        # Studies share stages among their work folders by links.
        shared = files.resolve_links(directory)
        path = shared.with_name(f'.{shared.name}.lock')
        stack.enter_context(process_lock.locking(path, str(directory)))
    yield


def _run_stage(
  stage: Stage,
  placements: Mapping[str, placement_lib.Placement],
  preemption: workspace_lib.Preemption,
) -> None:
  """Runs a stage in its folder, and marks it as finished."""
  placed = placements[stage.name]
  _prepare(placed)
  workspace = workspace_lib.Workspace(
    placed.directory,
    {name: placements[name].directory for name in stage.needs},
    options.options_digest(placed.settings),
    preemption,
  )
  if preemption.reached():
    raise workspace_lib.Preempted(
      f'{placed.directory.parent} is ready to start {stage.name}'
    )
  try:
    outputs = stage.run(workspace)
  except errors.UserError:
    _remove_unused_settings(placed.directory)
    raise
  _finish(workspace, stage.name, outputs)


def _require_all_steps(placed: placement_lib.Placement, needed_by: str) -> None:
  """Raises UserError if a needed training has to be continued first."""
  if placed.extends is not None:
    name = placed.directory.name
    raise errors.UserError(
      f'{needed_by} needs {name} with all its steps: run --stage={name} first'
    )


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
  return (directory / placement_lib.DONE_FILE).exists()


def place_stages(
  stages: Sequence[Stage], workdir: files.Path, compares_content: bool = True
) -> dict[str, placement_lib.Placement]:
  """Returns the folder and the settings of each stage, by name.

  Args:
    stages: stages of the experiment, each after those that it needs.
    workdir: folder of the experiment.
    compares_content: whether files that lie elsewhere than before are opened
      and compared; else they are taken for the same.

  Raises:
    UserError: a folder belongs to other settings, or a stage comes before one
      it needs.
  """
  placements: dict[str, placement_lib.Placement] = {}
  for stage in stages:
    _check_order(stage, placements, stages)
    needed = {name: placements[name] for name in stage.needs}
    same = stage.has_same_content if compares_content else lambda _: True
    placements[stage.name] = placement_lib.place_stage(
      workdir / stage.name,
      _settings(stage, {n: p.settings for n, p in needed.items()}),
      locations=frozenset(
        options.location_option_paths({'settings': stage.settings})
      ),
      has_same_content=same,
      is_report=stage.is_report,
      extension=stage.extension,
      extended={
        name: placed.extends
        for name, placed in needed.items()
        if placed.extends is not None
      },
    )
  return placements


def settings_by_stage(stages: Sequence[Stage]) -> dict[str, dict[str, Any]]:
  """Collects the settings that decide the result of each stage, by its name.

  Stages with equal settings have equal results, in whatever experiment.

  Raises:
    UserError: a stage comes before one that it needs.
  """
  settings: dict[str, dict[str, Any]] = {}
  for stage in stages:
    _check_order(stage, settings, stages)
    settings[stage.name] = _settings(stage, settings)
  return settings


def _check_order(
  stage: Stage, before: Container[str], stages: Sequence[Stage]
) -> None:
  """Raises UserError unless what a stage needs comes before it."""
  for name in stage.needs:
    if name not in before:
      raise errors.UserError(
        f'{stage.name} needs {name}, which must come before it: the stages '
        f'are {", ".join(s.name for s in stages)}'
      )


def _settings(stage: Stage, before: Mapping[str, Any]) -> dict[str, Any]:
  """Returns the settings of a stage, with digests of those before it."""
  needs = {name: options.options_digest(before[name]) for name in stage.needs}
  return options.options_to_dict({'settings': stage.settings, 'needs': needs})


def _prepare(placed: placement_lib.Placement) -> None:
  """Prepares the folder of a stage, on host 0, while the others wait."""
  if jax.process_index() == 0:
    placed.prepare()
    _record_libraries(placed.directory)
  if jax.process_count() > 1:
    multihost_utils.sync_global_devices(f'{placed.directory.name} prepared')


def _record_libraries(directory: files.Path) -> None:
  """Records the versions of libraries, or warns of those that have changed."""
  path = directory / LIBRARIES_FILE
  installed = host_settings.library_versions()
  if not path.exists():
    json_files.write_json(path, installed)
    return
  changes = options.option_differences(json_files.read_json(path), installed)
  if changes:
    console.print_line(
      f'warning: {directory} was started with other libraries '
      f'({"; ".join(changes)}): it goes on, but values may differ in rounding; '
      'install the former ones to continue bit by bit'
    )


def _remove_unused_settings(directory: files.Path) -> None:
  """Removes the settings of a stage that was refused before it began.

  Where it was the first one, the config goes too.
  """
  if jax.process_index() != 0:
    return
  names = placement_lib.SETTINGS_FILE, CONTENT_FILE, LIBRARIES_FILE
  own = {directory / name for name in names}
  made = {*directory.iterdir()}
  if made <= own:
    for path in made:
      path.unlink()
    workdir = directory.parent
    config = workdir / placement_lib.CONFIG_FILE
    others = workdir.glob(f'*/{placement_lib.SETTINGS_FILE}')
    if config.exists() and not any(others):
      config.unlink()


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
      workspace.directory / placement_lib.DONE_FILE,
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
  done = directory / placement_lib.DONE_FILE
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
