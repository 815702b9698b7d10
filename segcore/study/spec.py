"""Studies and their cells: which runs there are, and how each is started."""

import dataclasses
import fnmatch
import importlib
import itertools
import pathlib
import re
from collections.abc import Mapping, Sequence

from runtime import errors, options
from segcore.experiment import command, config_file, stage


@dataclasses.dataclass(frozen=True)
class Axis:
  """An option and its values.

  Attributes:
    name: name of a config option ('labels'), or path of a field
      ('finetune.recipe.num_steps').
    values: the values, as written on a command line.
  """

  name: str
  values: tuple[str, ...]

  @classmethod
  def parse(cls, text: str) -> 'Axis':
    """Parses an axis written 'name=value,value'.

    >>> Axis.parse('labels=50,100')
    Axis(name='labels', values=('50', '100'))

    Raises:
      UserError: the text has another form, or a value twice.
    """
    name, _, joined = text.partition('=')
    values = tuple(joined.split(','))
    if not (name and all(values)) or len(set(values)) < len(values):
      raise errors.UserError(
        f'expected NAME=VALUE,VALUE,… of different values, got {text!r}'
      )
    return cls(name, values)


@dataclasses.dataclass(frozen=True)
class Study:
  """An experiment with the options that are varied and the metrics compared.

  Attributes:
    config: config file with the options that all cells share.
    fields: further flags of all cells: '--config.a.b=c'.
    vary: axes of the table; the last one has the columns.
    seeds: seeds with which each cell of the table is run.
    sweep: hyperparameters chosen together, with the first seed, for each cell
      of the table.
    sweep_at: value of the last axis at which a row is swept; '' for a sweep at
      each value.
    select: '<split>/<metric>' by which the sweep chooses; '' for the mIoU of
      `val`, or else of `held_out`.
    report: '<split>/<metric>' of the table, '' for the mIoU of `test`, or else
      of the first split reported; '<stage>.<split>/<metric>' for a
      stage before the last one.
    baseline: row that the others are compared with: 'init=supervised'.
    also: further metrics of the table.
  """

  config: str
  fields: tuple[str, ...]
  vary: tuple[Axis, ...]
  seeds: tuple[int, ...]
  sweep: tuple[Axis, ...] = ()
  sweep_at: str = ''
  select: str = ''
  report: str = ''
  baseline: str = ''
  also: tuple[str, ...] = ()

  def __post_init__(self):
    names = [axis.name for axis in (*self.vary, *self.sweep)] + ['seed']
    if len(set(names)) < len(names):
      raise errors.UserError(
        f'--vary, --sweep: expected each name once, got {", ".join(names)} '
        '(seed is varied by --seeds)'
      )
    if self.sweep_at and not (
      self.sweep and self.sweep_at in self.vary[-1].values
    ):
      raise errors.UserError(
        '--sweep_at: expected a --sweep, and one of '
        f'{", ".join(self.vary[-1].values)}, got {self.sweep_at}'
      )
    for flag, name in self.requested_metrics():
      if name and '/' not in name:
        raise errors.UserError(
          f'--{flag}: expected SPLIT/METRIC such as val/miou, got {name!r}'
        )
    rows = {self.row(point) for point in self.points()}
    if self.baseline and self.baseline not in rows:
      raise errors.UserError(
        f'--baseline: expected one of {", ".join(sorted(rows))}, got '
        f'{self.baseline}'
      )

  def requested_metrics(self) -> list[tuple[str, str]]:
    """Returns (flag, name) of each metric that the flags request."""
    metrics = [('report', self.report)]
    metrics += [('also', name) for name in self.also]
    return [('select', self.select), *metrics] if self.sweep else metrics

  def points(self) -> list[dict[str, str]]:
    """Returns the cells of the table, each as values by option."""
    axes = [[(a.name, value) for value in a.values] for a in self.vary]
    return [dict(point) for point in itertools.product(*axes)]

  def row(self, point: Mapping[str, str]) -> str:
    """Returns the name of the row of a cell of the table."""
    names = [f'{axis.name}={point[axis.name]}' for axis in self.vary[:-1]]
    if not names:  # The only row.
      return pathlib.Path(self.config.partition(':')[0]).stem
    return ','.join(names)

  def sweep_cells(self) -> list['Cell']:
    """Returns the runs of the sweep."""
    if not self.sweep:
      return []
    points = [
      point
      for point in self.points()
      if not self.sweep_at or self._column(point) == self.sweep_at
    ]
    combinations = itertools.product(*(axis.values for axis in self.sweep))
    return [
      self._cell(point, self.seeds[0], ','.join(values))
      for point, values in itertools.product(points, combinations)
    ]

  def final_cells(self, chosen: Mapping[tuple[str, str], str]) -> list['Cell']:
    """Returns the runs of the table.

    Args:
      chosen: chosen values of the sweep by (row, column), joined by commas;
        cells without chosen values are left out.
    """
    cells = []
    for seed, point in itertools.product(self.seeds, self.points()):
      key = self.row(point), self.sweep_at or self._column(point)
      if self.sweep and key not in chosen:
        continue
      cells.append(self._cell(point, seed, chosen.get(key, '')))
    return cells

  def swept_options(self, values: str) -> dict[str, str]:
    """Returns the swept options by name, from values joined by commas."""
    if not self.sweep:
      return {}
    names = [axis.name for axis in self.sweep]
    return dict(zip(names, values.split(','), strict=True))

  def _column(self, point: Mapping[str, str]) -> str:
    return point[self.vary[-1].name]

  def _cell(self, point: Mapping[str, str], seed: int, swept: str) -> 'Cell':
    cell_options = {**point, 'seed': str(seed), **self.swept_options(swept)}
    return Cell(
      self.row(point),
      self._column(point),
      seed,
      swept,
      tuple(cell_options.items()),
    )


@dataclasses.dataclass(frozen=True)
class Cell:
  """One run of a study.

  Attributes:
    row: row of the table.
    column: column of the table.
    seed: seed of the run.
    swept: values of the swept options, joined by commas.
    options: (name, value) of all options of the run.
  """

  row: str
  column: str
  seed: int
  swept: str
  options: tuple[tuple[str, str], ...]

  @property
  def name(self) -> str:
    """Returns the name of the folder and files of the run.

    >>> Cell('init=dep', '50', 0, '', (('init', 'dep'), ('seed', '0'))).name
    'init=dep,seed=0'
    """
    text = ','.join(f'{name}={value}' for name, value in self.options)
    return re.sub(r'[^\w.,=-]', '_', text)

  def arguments(self, study: Study) -> list[str]:
    """Returns the flags of the experiment's command line."""
    file, _, shared = study.config.partition(':')
    in_config = [f'{n}={v}' for n, v in self.options if '.' not in n]
    fields = [f'--config.{n}={v}' for n, v in self.options if '.' in n]
    config_options = ','.join(filter(None, [shared, *in_config]))
    return [f'--config={file}:{config_options}', *study.fields, *fields]


@dataclasses.dataclass(frozen=True)
class CellPlan:
  """The program and the stages of a cell, known from its config alone.

  Attributes:
    cell: the cell.
    program: module whose command line runs the cell.
    digests: digest of the settings of each stage, in order.
    reported: metrics of each stage as '<split>/<metric>', with '*' for any
      metric; None for a stage whose metrics are not known before it runs.
  """

  cell: Cell
  program: str
  digests: Mapping[str, str]
  reported: Mapping[str, tuple[str, ...] | None]

  @property
  def shared_names(self) -> dict[str, str]:
    """Returns the name of each stage's folder among the shared stages."""
    return {name: f'{name}-{d[:8]}' for name, d in self.digests.items()}


def plan_study_cell(study: Study, cell: Cell) -> CellPlan:
  """Builds the stages of a cell, without opening data.

  Raises:
    UserError: the config does not have these options.
  """
  arguments = cell.arguments(study)
  config = command.parse_command(['study', *arguments]).config
  # This process has one device; the number of devices changes no digest.
  config.operation.fsdp = 1
  program = config_file.program_of_config(config)
  stages = importlib.import_module(program).PROGRAM.build_stages(config)
  settings = stage.settings_by_stage(stages)
  return CellPlan(
    cell,
    program,
    {name: options.options_digest(values) for name, values in settings.items()},
    {each.name: each.reported for each in stages},
  )


# Splits that the metrics are of where no flag says, in this order.
_DEFAULT_SPLITS = {'report': ('test',), 'select': ('val', 'held_out')}


def resolve_study_metrics(study: Study) -> Study:
  """Checks the metrics of the flags before any run, and chooses missing ones.

  Raises:
    UserError: a metric is not among those that a run reports.
  """
  first, *_ = study.sweep_cells() or study.final_cells({})
  reported = plan_study_cell(study, first).reported
  last = [*reported][-1]
  names = reported[last]
  if names is not None:
    for flag, splits in _DEFAULT_SPLITS.items():
      if not getattr(study, flag) and (flag == 'report' or study.sweep):
        study = dataclasses.replace(
          study, **{flag: _choose_metric(flag, splits, names)}
        )
  # Where nothing is known before a run, these are checked after it.
  study = dataclasses.replace(
    study,
    report=study.report or 'test/miou',
    select=study.select or 'val/miou',
  )
  known = [
    name if stage == last else f'{stage}.{name}'
    for stage, names in reported.items()
    for name in names or ()
  ]
  for flag, name in study.requested_metrics():
    stage = name.partition('/')[0].rpartition('.')[0] or last
    is_known = any(fnmatch.fnmatchcase(name, pattern) for pattern in known)
    if not is_known and reported.get(stage) is not None:
      raise errors.UserError(
        f'--{flag}: expected one of {", ".join(known)}, got {name}'
      )
  return study


def _choose_metric(
  flag: str, splits: Sequence[str], names: Sequence[str]
) -> str:
  """Returns the mIoU of the first split that is reported.

  Raises:
    UserError: a sweep would have to choose by the split of the report.
  """
  available = [name.partition('/')[0] for name in names]
  for split in splits:
    if split in available:
      return f'{split}/miou'
  if flag == 'select':
    raise errors.UserError(
      f'--select: expected one of {", ".join(names)}, as no run reports '
      f'{" or ".join(splits)}'
    )
  return f'{available[0]}/miou'
