"""Tables and plots of the results of a study.

A row of the table is a combination of values of all options but the last; a
column is a value of the last option. A cell of the table has a result per seed.
"""

import csv
import dataclasses
import io
import itertools
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from etils import epy

with epy.lazy_imports():
  import matplotlib
  import matplotlib.figure
  import scipy.stats

# Level of confidence intervals.
CONFIDENCE = 0.95


@dataclasses.dataclass(frozen=True)
class CellResult:
  """The result of one run of a study.

  Attributes:
    row: values of all options but the last: 'init=ddep'.
    column: value of the last option: '50'.
    seed: seed of the run; runs of equal seed are paired.
    results: metrics by split: {'test': {'miou': 0.35}}.
    curve: the reported metric by training step: entries with 'step' and
      '<split>/<metric>'.
    swept: values of the swept options, joined by commas.
  """

  row: str
  column: str
  seed: int
  results: Mapping[str, Mapping[str, float | None]]
  curve: Sequence[Mapping[str, Any]] = ()
  swept: str = ''

  def value(self, name: str) -> float:
    """Returns the metric '<split>/<metric>', NaN if it is missing."""
    split, _, metric = name.partition('/')
    value = self.results.get(split, {}).get(metric)
    return float('nan') if value is None else float(value)


@dataclasses.dataclass(frozen=True)
class Difference:
  """Paired difference of two rows in one column.

  Attributes:
    mean: mean of the differences over seeds.
    low: lower end of the confidence interval (Student's t, two-sided).
    high: upper end of the interval; both ends are NaN for a single pair.
    count: number of pairs.
  """

  mean: float
  low: float
  high: float
  count: int


def paired_seed_difference(
  ours: Mapping[int, float], theirs: Mapping[int, float]
) -> Difference:
  """Computes the mean difference over common seeds, with a confidence interval.

  Args:
    ours: metric of one row by seed.
    theirs: metric of the other row by seed, which is subtracted.

  >>> paired_seed_difference({0: 3.0, 1: 5.0}, {0: 1.0, 1: 1.0, 2: 9.0}).mean
  3.0
  """
  seeds = sorted(set(ours) & set(theirs))
  differences = np.array([ours[seed] - theirs[seed] for seed in seeds])
  count = len(seeds)
  if not count:
    return Difference(float('nan'), float('nan'), float('nan'), 0)
  mean = float(differences.mean())
  if count == 1:
    return Difference(mean, float('nan'), float('nan'), 1)
  error = differences.std(ddof=1) / np.sqrt(count)
  margin = float(scipy.stats.t.ppf((1 + CONFIDENCE) / 2, count - 1) * error)
  return Difference(mean, mean - margin, mean + margin, count)


def choose_swept_values(
  cells: Sequence[CellResult], select: str
) -> dict[tuple[str, str], str]:
  """Chooses the swept values with the best metric for each cell of the table.

  Args:
    cells: results of the sweep, without failed runs.
    select: metric to compare, '<split>/<metric>'; NaN is never chosen.

  Returns:
    The values, joined by commas, by (row, column).
  """
  best: dict[tuple[str, str], tuple[float, str]] = {}
  for cell in cells:
    value = cell.value(select)
    key = (cell.row, cell.column)
    if not np.isnan(value) and value > best.get(key, (-np.inf, ''))[0]:
      best[key] = (value, cell.swept)
  return {key: swept for key, (_, swept) in best.items()}


def metric_by_seed(
  cells: Sequence[CellResult], row: str, column: str, name: str
) -> dict[int, float]:
  """Returns the metric of a cell of the table by seed, in percent.

  Args:
    cells: results of all runs.
    row: row of the cell.
    column: column of the cell.
    name: name of the metric: 'test/miou'.
  """
  return {
    cell.seed: 100 * cell.value(name)
    for cell in cells
    if (cell.row, cell.column) == (row, column)
    and not np.isnan(cell.value(name))
  }


def mean_and_std_over_seeds(values: Sequence[float]) -> tuple[float, float]:
  """Computes mean and sample standard deviation; the latter may be NaN.

  Args:
    values: a value per seed; of a single one, the deviation is NaN.
  """
  array = np.asarray(values, np.float64)
  if not array.size:
    return float('nan'), float('nan')
  std = float(array.std(ddof=1)) if array.size > 1 else float('nan')
  return float(array.mean()), std


def study_markdown_tables(
  cells: Sequence[CellResult],
  name: str,
  axis: str,
  baseline: str = '',
  also: Sequence[str] = (),
) -> str:
  """Formats tables of mean ± standard deviation (number of seeds), in percent.

  The tables are of the reported metric, of the same metric on the training
  images, of further metrics, and of paired differences.

  Args:
    cells: results of all runs.
    name: name of the reported metric: 'test/miou'.
    axis: name of the last option.
    baseline: row that the others are compared with; '' for no comparison.
    also: names of further metrics.
  """
  rows, columns = _rows(cells), _columns(cells)

  def table(name: str, rows: Sequence[str], format_cell) -> list[str]:
    head = f'| {name}, % | ' + ' | '.join(f'{axis}={c}' for c in columns) + ' |'
    lines = [head, '|---|' + '---|' * len(columns)]
    for row in rows:
      lines.append(
        f'| {row} | {" | ".join(format_cell(row, c) for c in columns)} |'
      )
    return lines

  def difference(row: str, column: str) -> str:
    ours, theirs = (
      metric_by_seed(cells, r, column, name) for r in (row, baseline)
    )
    return _format_difference(paired_seed_difference(ours, theirs))

  lines = ['Mean ± standard deviation (number of seeds):']
  train = f'train/{name.partition("/")[2]}'
  for metric in dict.fromkeys((name, train, *also)):
    if any(not np.isnan(cell.value(metric)) for cell in cells):
      lines += [
        '',
        *table(
          metric,
          rows,
          lambda r, c, m=metric: _format_values(metric_by_seed(cells, r, c, m)),
        ),
      ]
  others = [row for row in rows if row != baseline]
  if baseline and others:
    lines += [
      '',
      f'Difference to {baseline}, paired by seed, with its '
      f'{CONFIDENCE:.0%} interval (Student t; number of pairs):',
      '',
      *table(name, others, difference),
    ]
  return '\n'.join(lines) + '\n'


def study_csv_table(
  cells: Sequence[CellResult], name: str, axis: str, also: Sequence[str] = ()
) -> str:
  """Formats a CSV line per cell of the table and metric, in percent.

  Args:
    cells: results of all runs.
    name: name of the reported metric: 'test/miou'.
    axis: name of the last option.
    also: names of further metrics.
  """
  text = io.StringIO()
  writer = csv.writer(text, lineterminator='\n')
  writer.writerow(['row', axis, 'swept', 'metric', 'mean', 'std', 'n'])
  keys = itertools.product(_rows(cells), _columns(cells))
  for (row, column), metric in itertools.product(keys, (name, *also)):
    values = metric_by_seed(cells, row, column, metric)
    mean, std = mean_and_std_over_seeds(list(values.values()))
    swept = {
      cell.swept for cell in cells if (cell.row, cell.column) == (row, column)
    }
    writer.writerow(
      [row, column, ' '.join(sorted(swept)), metric, mean, std, len(values)]
    )
  return text.getvalue()


def write_study_report(
  folder: pathlib.Path,
  cells: Sequence[CellResult],
  name: str,
  axis: str,
  baseline: str = '',
  also: Sequence[str] = (),
) -> list[pathlib.Path]:
  """Writes table.md, table.csv, plot.png and, if there are curves, curves.png.

  Args:
    folder: folder of the files.
    cells: results of all runs.
    name: name of the reported metric: 'test/miou'.
    axis: name of the last option.
    baseline: row that the others are compared with; '' for no comparison.
    also: names of further metrics.

  Returns:
    The paths of the files.
  """
  texts = {
    'table.md': study_markdown_tables(cells, name, axis, baseline, also),
    'table.csv': study_csv_table(cells, name, axis, also),
  }
  for file, text in texts.items():
    (folder / file).write_text(text)
  figures = {'plot.png': plot_study_metric(cells, name, axis)}
  if any(cell.curve for cell in cells):
    figures['curves.png'] = plot_study_curves(cells, name, axis)
  for file, figure in figures.items():
    figure.savefig(folder / file, dpi=120, bbox_inches='tight')
  return [folder / file for file in (*texts, *figures)]


def plot_study_metric(
  cells: Sequence[CellResult], name: str, axis: str
) -> 'matplotlib.figure.Figure':
  """Plots the metric over the values of the last option, a line per row.

  Args:
    cells: results of all runs.
    name: name of the metric: 'test/miou'.
    axis: name of the last option.
  """
  figure = matplotlib.figure.Figure(figsize=(6.4, 4.4), layout='constrained')
  axes = figure.subplots()
  columns = _columns(cells)
  positions, numeric = _positions(columns)
  for i, row in enumerate(_rows(cells)):
    values = [
      list(metric_by_seed(cells, row, c, name).values()) for c in columns
    ]
    stats = [mean_and_std_over_seeds(v) for v in values]
    means = np.array([mean for mean, _ in stats])
    stds = np.nan_to_num([std for _, std in stats])
    axes.errorbar(
      positions,
      means,
      stds,
      color=_color(i),
      marker='o',
      capsize=3,
      label=row,
    )
  if numeric:
    axes.set_xscale('log')
    axes.minorticks_off()
  axes.set_xticks(positions, columns)
  axes.set_xlabel(axis)
  axes.set_ylabel(f'{_metric_label(name)}, %')
  counts = {
    len(metric_by_seed(cells, row, column, name))
    for row in _rows(cells)
    for column in columns
  } - {0}
  seeds = '-'.join(map(str, sorted({min(counts, default=0), *counts})))
  axes.set_title(f'mean and standard deviation over {seeds} seeds', fontsize=10)
  axes.grid(alpha=0.3)
  axes.legend(frameon=False)
  return figure


def plot_study_curves(
  cells: Sequence[CellResult], name: str, axis: str
) -> 'matplotlib.figure.Figure':
  """Plots the metric over training steps, the mean over seeds.

  There is a panel per value of the last option, a solid line per row for the
  reported split, and a dashed line for the training images.

  Args:
    cells: results of all runs, with curves.
    name: name of the metric: 'test/miou'.
    axis: name of the last option.
  """
  columns = [c for c in _columns(cells) if any(x.curve for x in cells)]
  figure = matplotlib.figure.Figure(
    figsize=(3.6 * len(columns) + 0.6, 3.8), layout='constrained'
  )
  panels = figure.subplots(1, len(columns), sharey=True, squeeze=False)[0]
  train = f'train/{name.partition("/")[2]}'
  for axes, column in zip(panels, columns, strict=True):
    for i, row in enumerate(_rows(cells)):
      for key, style in ((name, '-'), (train, '--')):
        steps, means = _mean_curve(cells, row, column, key)
        # All panels have the same lines; the legend takes those of the first.
        label = f'{row}, {key.partition("/")[0]}'
        axes.plot(steps, means, style, color=_color(i), label=label)
    axes.set_title(f'{axis}={column}', fontsize=10)
    axes.set_xlabel('step')
    axes.grid(alpha=0.3)
  panels[0].set_ylabel(f'{_metric_label(name.partition("/")[2])}, %')
  figure.legend(
    *panels[0].get_legend_handles_labels(),
    loc='outside lower center',
    ncols=4,
    frameon=False,
    fontsize=8,
  )
  return figure


def _mean_curve(
  cells: Sequence[CellResult], row: str, column: str, key: str
) -> tuple[list[int], list[float]]:
  points: dict[int, list[float]] = {}
  for cell in cells:
    if (cell.row, cell.column) == (row, column):
      for line in cell.curve:
        if line.get(key) is not None:
          points.setdefault(line['step'], []).append(100 * line[key])
  steps = sorted(points)
  return steps, [float(np.mean(points[step])) for step in steps]


def _rows(cells: Sequence[CellResult]) -> list[str]:
  return list(dict.fromkeys(cell.row for cell in cells))


def _columns(cells: Sequence[CellResult]) -> list[str]:
  return list(dict.fromkeys(cell.column for cell in cells))


def _positions(columns: Sequence[str]) -> tuple[list[float], bool]:
  """Returns positions of columns on the axis, and whether these are values.

  Columns that are positive numbers stand at their values, others at 0, 1, ….
  """
  try:
    values = [float(column) for column in columns]
  except ValueError:
    return [float(i) for i in range(len(columns))], False
  if min(values) <= 0:
    return [float(i) for i in range(len(columns))], False
  return values, True


def _format_values(values: Mapping[int, float]) -> str:
  if not values:
    return '-'
  mean, std = mean_and_std_over_seeds(list(values.values()))
  deviation = '' if np.isnan(std) else f' ± {std:.1f}'
  return f'{mean:.1f}{deviation} ({len(values)})'


def _format_difference(difference: Difference) -> str:
  if not difference.count:
    return '-'
  if np.isnan(difference.low):
    return f'{difference.mean:+.1f} (1)'
  return (
    f'{difference.mean:+.1f} [{difference.low:+.1f}, {difference.high:+.1f}] '
    f'({difference.count})'
  )


def _metric_label(name: str) -> str:
  return name.replace('miou', 'mIoU').replace('/', ' ')


def _color(i: int) -> str:
  return f'C{i % 10}'
