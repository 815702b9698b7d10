"""The runs of a study: shared stages, the sweep, the table, the report."""

import collections
import dataclasses
import functools
import os
import pathlib
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from runtime import console, errors, json_files, metrics_file
from segcore.study import jobs as jobs_lib
from segcore.study import report
from segcore.study import spec as spec_lib


@dataclasses.dataclass
class Runner:
  """Runs the cells of a study that are not finished yet.

  Attributes:
    study: study whose cells are run.
    workdir: folder of all runs and the report.
    workers: workers that run the processes.
  """

  study: spec_lib.Study
  workdir: pathlib.Path
  workers: jobs_lib.Workers
  _seconds: list[float] = dataclasses.field(default_factory=list)
  _left: int = 0

  def run(
    self, cells: Sequence[spec_lib.Cell], purpose: str
  ) -> list[report.CellResult]:
    """Runs cells; returns their results in order, without failed ones.

    Args:
      cells: cells to run.
      purpose: name of these runs in messages: 'study'.

    Raises:
      UserError: a config is wrong, or a result was made with another config.
      Preempted: the study was asked to stop.
    """
    plans = [spec_lib.plan_study_cell(self.study, cell) for cell in cells]
    todo = [plan for plan in plans if not self._is_finished(plan)]
    console.print_line(
      f'{purpose}: {len(plans)} runs, of which {len(plans) - len(todo)} are '
      'finished'
    )
    self._left = len(todo)
    if todo:
      self.workers.run(self._jobs(plans, todo))
    results = [
      self._read(plan.cell)
      for plan in plans
      if self._result_path(plan.cell).exists()
    ]
    for result in results:
      self._require_metrics(result)
    return results

  def _jobs(
    self,
    plans: Sequence[spec_lib.CellPlan],
    todo: Sequence[spec_lib.CellPlan],
  ) -> list[jobs_lib.Job]:
    """Builds the jobs: shared stages first, each once, then the cells."""
    counts = collections.Counter(
      shared for plan in plans for shared in plan.shared_names.values()
    )
    # (stage, name of the shared folder) of each cell's shared stages.
    shared_stages = {
      plan.cell.name: [
        (name, shared)
        for name, shared in plan.shared_names.items()
        if counts[shared] > 1 or self._shared_path(shared).exists()
      ]
      for plan in plans
    }
    for cell, stages in shared_stages.items():
      for name, shared in stages:
        self._share(self.workdir / 'cells' / cell / name, shared)
    stage_jobs: dict[str, jobs_lib.Job] = {}
    cell_jobs = []
    for plan in todo:
      folder = self.workdir / 'cells' / plan.cell.name
      stages = shared_stages[plan.cell.name]
      for i, (name, shared) in enumerate(stages):
        if shared not in stage_jobs:
          # Run in a folder of its own, which has links to shared stages alone.
          run_folder = self.workdir / 'shared' / 'runs' / shared
          stage_jobs[shared] = jobs_lib.Job(
            shared,
            (*self._command(plan, run_folder), f'--stage={name}'),
            self.workdir / 'shared' / f'{shared}.log',
            tuple(earlier for _, earlier in stages[:i]),
            functools.partial(self._link, run_folder, stages[: i + 1]),
          )
      cell_jobs.append(
        jobs_lib.Job(
          plan.cell.name,
          self._command(plan, folder),
          self.workdir / 'cells' / f'{plan.cell.name}.log',
          tuple(shared for _, shared in stages),
          functools.partial(self._link, folder, stages),
          functools.partial(self._finish, plan),
        )
      )
    return [*stage_jobs.values(), *cell_jobs]

  def _command(
    self, plan: spec_lib.CellPlan, folder: pathlib.Path
  ) -> tuple[str, ...]:
    return (
      sys.executable,
      '-m',
      plan.program,
      *plan.cell.arguments(self.study),
      f'--workdir={folder}',
    )

  def _share(self, stage_folder: pathlib.Path, shared: str) -> None:
    """Moves a stage that one cell ran alone to the shared stages."""
    target = self._shared_path(shared)
    is_own = stage_folder.is_dir() and not stage_folder.is_symlink()
    if is_own and not target.exists():
      stage_folder.rename(target)
      stage_folder.symlink_to(os.path.relpath(target, stage_folder.parent))

  def _link(
    self, folder: pathlib.Path, stages: Sequence[tuple[str, str]]
  ) -> None:
    """Links shared stages into the folder of a run."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, shared in stages:
      target = self._shared_path(shared)
      target.mkdir(parents=True, exist_ok=True)
      link = folder / name
      if not os.path.lexists(link):
        link.symlink_to(os.path.relpath(target, folder))

  def _shared_path(self, shared: str) -> pathlib.Path:
    return self.workdir / 'shared' / shared

  def _result_path(self, cell: spec_lib.Cell) -> pathlib.Path:
    return self.workdir / 'cells' / f'{cell.name}.json'

  def _is_finished(self, plan: spec_lib.CellPlan) -> bool:
    path = self._result_path(plan.cell)
    if not path.exists():
      return False
    if json_files.read_json(path)['digests'] != dict(plan.digests):
      raise errors.UserError(
        f'{path} was made with other settings than the config has now: choose '
        'another --workdir'
      )
    return True

  def _finish(self, plan: spec_lib.CellPlan, seconds: float) -> None:
    """Writes the result of a cell, and logs the progress of the study."""
    folder = self.workdir / 'cells' / plan.cell.name
    content = {
      'row': plan.cell.row,
      'column': plan.cell.column,
      'seed': plan.cell.seed,
      'swept': plan.cell.swept,
      'options': dict(plan.cell.options),
      'program': plan.program,
      'digests': dict(plan.digests),
      'seconds': round(seconds, 1),
      'results': _collect_results(folder, list(plan.digests)),
      'curve': self._collect_curve(folder, list(plan.digests)),
    }
    json_files.write_json(self._result_path(plan.cell), content)
    self._seconds.append(seconds)
    self._left -= 1
    result = self._read(plan.cell)
    self._require_metrics(result)
    mean = sum(self._seconds) / len(self._seconds)
    eta = mean * self._left / len(self.workers.environments)
    names = sorted({name for _, name in self.study.requested_metrics()})
    console.print_line(
      f'{plan.cell.name}  '
      + '  '.join(f'{n} {100 * result.value(n):.1f} %' for n in names)
      + f'  {console.format_duration(seconds)}  {self._left} left'
      + (f'  ETA {console.format_duration(eta)}' if self._left else '')
    )

  def _require_metrics(self, result: report.CellResult) -> None:
    """Raises UserError unless a result has the requested metrics."""
    available = [
      f'{split}/{metric}'
      for split, metrics in result.results.items()
      for metric in metrics
    ]
    for flag, name in self.study.requested_metrics():
      if name not in available:
        raise errors.UserError(
          f'--{flag}: expected one of {", ".join(available)}, got {name}'
        )

  def _collect_curve(
    self, folder: pathlib.Path, stages: Sequence[str]
  ) -> list[dict[str, Any]]:
    """Returns the reported metric of each split by training step."""
    metric = self.study.report.partition('/')[2]
    points = []
    for name in stages:
      path = folder / name / 'metrics.jsonl'
      for line in metrics_file.read_metrics_file(path) if path.exists() else []:
        values = {k: v for k, v in line.items() if k.endswith(f'/{metric}')}
        if values:
          points.append({'step': line['step'], **values})
    return points

  def _read(self, cell: spec_lib.Cell) -> report.CellResult:
    content = json_files.read_json(self._result_path(cell))
    return report.CellResult(
      **{
        field.name: content[field.name]
        for field in dataclasses.fields(report.CellResult)
      }
    )


def _collect_results(
  folder: pathlib.Path, stages: Sequence[str]
) -> dict[str, Mapping[str, float | None]]:
  """Returns the metrics of a run by split.

  Splits of stages before the last one are named '<stage>.<split>'.

  Raises:
    UserError: the last stage has no results.
  """
  results = {}
  for name in stages:
    is_last = name == stages[-1]
    path = folder / name / 'results.json'
    if path.exists():
      results |= {
        split if is_last else f'{name}.{split}': content['metrics']
        for split, content in json_files.read_json(path)['splits'].items()
      }
    elif is_last:
      raise errors.UserError(
        f'the last stage, {name}, wrote no {path}: expected an evaluation'
      )
  return results


def run_study(
  study: spec_lib.Study, workdir: pathlib.Path, workers: jobs_lib.Workers
) -> list[report.CellResult]:
  """Runs the sweep and the cells that are not finished; writes the report.

  Args:
    study: study to run.
    workdir: folder of all runs and the report.
    workers: workers that run the processes.

  Returns:
    The results of the cells of the table, without failed runs.

  Raises:
    UserError: a config is wrong, or the results lack a requested metric.
    Preempted: the study was asked to stop.
  """
  study = spec_lib.resolve_study_metrics(study)
  console.print_line(f'reported: {study.report}')
  runner = Runner(study, workdir, workers)
  for name in ('cells', 'shared'):
    (workdir / name).mkdir(parents=True, exist_ok=True)
  chosen = _run_sweep(runner) if study.sweep else {}
  results = runner.run(study.final_cells(chosen), 'study')
  if results:
    paths = report.write_study_report(
      workdir,
      results,
      study.report,
      study.vary[-1].name,
      study.baseline,
      study.also,
    )
    print((workdir / 'table.md').read_text())
    console.print_line('written: ' + ', '.join(map(str, paths)))
    console.print_line(
      f'panels: {workdir}/cells/*/evaluate/pictures; curves: tensorboard '
      f'--logdir={workdir}/cells'
    )
  return results


def _run_sweep(runner: Runner) -> dict[tuple[str, str], str]:
  """Runs the sweep and writes sweep.json.

  Returns:
    The chosen values, joined by commas, by (row, column).
  """
  study = runner.study
  names = ' and '.join(axis.name for axis in study.sweep)
  cells = study.sweep_cells()
  results = runner.run(cells, f'sweep of {names}')
  chosen = report.choose_swept_values(results, study.select)
  missing = {(cell.row, cell.column) for cell in cells} - set(chosen)
  for row, column in sorted(missing):
    console.print_line(
      f'{row},{column}: no run of the sweep has a {study.select}'
    )
  chosen_by_name = {f'{row},{column}': v for (row, column), v in chosen.items()}
  json_files.write_json(
    runner.workdir / 'sweep.json',
    {
      'chosen': chosen_by_name,
      'tried': [
        {
          'row': result.row,
          'column': result.column,
          **study.swept_options(result.swept),
          study.select: 100 * result.value(study.select),
        }
        for result in results
      ],
    },
  )
  for name, values in chosen_by_name.items():
    for axis, value in zip(study.sweep, values.split(','), strict=True):
      at_end = value in (axis.values[0], axis.values[-1])
      console.print_line(
        f'{name}: {axis.name}={value}'
        + (
          ', an end of the values tried: a wider sweep may do better'
          if at_end
          else ''
        )
      )
  return chosen
