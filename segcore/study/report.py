"""What a study found: tables and pictures of its cells. Pure but for writing.

A row of the table is a combination of all options but the last, a column a
value of the last one. A cell of the table has one result a seed.
"""

import csv
import dataclasses
import io
import itertools
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
import matplotlib.figure
import numpy as np
import scipy.stats

matplotlib.use('agg')  # No window.

# Of a confidence interval.
CONFIDENCE = 0.95


@dataclasses.dataclass(frozen=True)
class Finished:
  """A trained and evaluated cell.

  Attributes:
    row: values of all options but the last: 'init=ddep'.
    column: value of the last option: '50'.
    seed: of the run; runs of equal seed are paired.
    results: metrics by split: {'test': {'miou': 0.35}}.
    curve: the reported and the training metric along the way: lines with
      'step' and '<split>/<metric>'.
    swept: values of the swept options, joined by commas.
  """

  row: str
  column: str
  seed: int
  results: Mapping[str, Mapping[str, float | None]]
  curve: Sequence[Mapping[str, Any]] = ()
  swept: str = ''

  def value(self, name: str) -> float:
    """The result '<split>/<metric>'; NaN if it is not there."""
    split, _, metric = name.partition('/')
    value = self.results.get(split, {}).get(metric)
    return float('nan') if value is None else float(value)


@dataclasses.dataclass(frozen=True)
class Difference:
  """Paired difference of two rows at one column.

  Attributes:
    mean: of the differences, seed by seed.
    low: end of the confidence interval (Student's t, two-sided).
    high: its other end; both NaN for a single pair.
    count: number of pairs.
  """

  mean: float
  low: float
  high: float
  count: int


def paired_difference(
  ours: Mapping[int, float], theirs: Mapping[int, float]
) -> Difference:
  """Mean of ours - theirs over the seeds both have, with its interval.

  >>> paired_difference({0: 3.0, 1: 5.0}, {0: 1.0, 1: 1.0, 2: 9.0}).mean
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
  reach = float(scipy.stats.t.ppf((1 + CONFIDENCE) / 2, count - 1) * error)
  return Difference(mean, mean - reach, mean + reach, count)


def choose_swept(
  cells: Sequence[Finished], select: str
) -> dict[tuple[str, str], str]:
  """The swept value with the best selected metric, for each row and column.

  Values that did not finish are missing among the cells; NaN never wins.
  """
  best: dict[tuple[str, str], tuple[float, str]] = {}
  for cell in cells:
    value = cell.value(select)
    key = (cell.row, cell.column)
    if not np.isnan(value) and value > best.get(key, (-np.inf, ''))[0]:
      best[key] = (value, cell.swept)
  return {key: swept for key, (_, swept) in best.items()}


def by_seed(
  cells: Sequence[Finished], row: str, column: str, name: str
) -> dict[int, float]:
  """The results of a cell of the table, in percent, by seed."""
  return {
    cell.seed: 100 * cell.value(name)
    for cell in cells
    if (cell.row, cell.column) == (row, column)
    and not np.isnan(cell.value(name))
  }


def mean_and_std(values: Sequence[float]) -> tuple[float, float]:
  """Mean and sample standard deviation; the latter NaN for one value."""
  array = np.asarray(values, np.float64)
  if not array.size:
    return float('nan'), float('nan')
  std = float(array.std(ddof=1)) if array.size > 1 else float('nan')
  return float(array.mean()), std


def markdown(
  cells: Sequence[Finished],
  name: str,
  axis: str,
  baseline: str = '',
  also: Sequence[str] = (),
) -> str:
  """Tables of mean ± standard deviation (number of seeds), in percent.

  The reported metric; the same on the images that were trained on; further
  ones; paired differences.

  Args:
    cells: all that are finished.
    name: of the reported metric: 'test/miou'.
    axis: name of the last option.
    baseline: a row that the others are compared with.
    also: names of further metrics.
  """
  rows, columns = _rows(cells), _columns(cells)

  def table(name: str, rows: Sequence[str], show) -> list[str]:
    head = f'| {name}, % | ' + ' | '.join(f'{axis}={c}' for c in columns) + ' |'
    lines = [head, '|---|' + '---|' * len(columns)]
    for row in rows:
      lines.append(f'| {row} | {" | ".join(show(row, c) for c in columns)} |')
    return lines

  def difference(row: str, column: str) -> str:
    ours, theirs = (by_seed(cells, r, column, name) for r in (row, baseline))
    return _shown_difference(paired_difference(ours, theirs))

  lines = ['Mean ± standard deviation (number of seeds):']
  train = f'train/{name.partition("/")[2]}'
  for metric in dict.fromkeys((name, train, *also)):
    if any(not np.isnan(cell.value(metric)) for cell in cells):
      lines += [
        '',
        *table(
          metric, rows, lambda r, c, m=metric: _shown(by_seed(cells, r, c, m))
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


def table_csv(
  cells: Sequence[Finished], name: str, axis: str, also: Sequence[str] = ()
) -> str:
  """A line for each cell of the table and metric; mean and std in percent."""
  text = io.StringIO()
  writer = csv.writer(text, lineterminator='\n')
  writer.writerow(['row', axis, 'swept', 'metric', 'mean', 'std', 'n'])
  places = itertools.product(_rows(cells), _columns(cells))
  for (row, column), metric in itertools.product(places, (name, *also)):
    found = by_seed(cells, row, column, metric)
    mean, std = mean_and_std(list(found.values()))
    swept = {
      cell.swept for cell in cells if (cell.row, cell.column) == (row, column)
    }
    writer.writerow(
      [row, column, ' '.join(sorted(swept)), metric, mean, std, len(found)]
    )
  return text.getvalue()


def write(
  folder: pathlib.Path,
  cells: Sequence[Finished],
  name: str,
  axis: str,
  baseline: str = '',
  also: Sequence[str] = (),
) -> list[pathlib.Path]:
  """Writes table.md, table.csv, plot.png and, with curves, curves.png."""
  made = {
    'table.md': markdown(cells, name, axis, baseline, also),
    'table.csv': table_csv(cells, name, axis, also),
  }
  for file, text in made.items():
    (folder / file).write_text(text)
  figures = {'plot.png': plot(cells, name, axis)}
  if any(cell.curve for cell in cells):
    figures['curves.png'] = plot_curves(cells, name, axis)
  for file, figure in figures.items():
    figure.savefig(folder / file, dpi=120, bbox_inches='tight')
  return [folder / file for file in (*made, *figures)]


def plot(
  cells: Sequence[Finished], name: str, axis: str
) -> matplotlib.figure.Figure:
  """Label efficiency: the metric over the last option, a line a row."""
  figure = matplotlib.figure.Figure(figsize=(6.4, 4.4), layout='constrained')
  axes = figure.subplots()
  columns = _columns(cells)
  places, numeric = _places(columns)
  for i, row in enumerate(_rows(cells)):
    found = [list(by_seed(cells, row, c, name).values()) for c in columns]
    stats = [mean_and_std(values) for values in found]
    means = np.array([mean for mean, _ in stats])
    stds = np.nan_to_num([std for _, std in stats])
    axes.errorbar(
      *(places, means, stds),
      color=_color(i),
      marker='o',
      capsize=3,
      label=row,
    )
  if numeric:
    axes.set_xscale('log')
    axes.minorticks_off()
  axes.set_xticks(places, columns)
  axes.set_xlabel(axis)
  axes.set_ylabel(f'{_spelt(name)}, %')
  counts = {
    len(by_seed(cells, row, column, name))
    for row in _rows(cells)
    for column in columns
  } - {0}
  seeds = '-'.join(map(str, sorted({min(counts, default=0), *counts})))
  axes.set_title(f'mean and standard deviation over {seeds} seeds', fontsize=10)
  axes.grid(alpha=0.3)
  axes.legend(frameon=False)
  return figure


def plot_curves(
  cells: Sequence[Finished], name: str, axis: str
) -> matplotlib.figure.Figure:
  """The metric over the steps, train beside the reported split, mean of seeds.

  One panel a value of the last option.
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
        # Each kind of line once in the legend, which stands in one panel.
        label = f'{row}, {key.partition("/")[0]}'
        axes.plot(steps, means, style, color=_color(i), label=label)
    axes.set_title(f'{axis}={column}', fontsize=10)
    axes.set_xlabel('step')
    axes.grid(alpha=0.3)
  panels[0].set_ylabel(f'{_spelt(name.partition("/")[2])}, %')
  figure.legend(
    *panels[0].get_legend_handles_labels(),
    loc='outside lower center',
    ncols=4,
    frameon=False,
    fontsize=8,
  )
  return figure


def _mean_curve(
  cells: Sequence[Finished], row: str, column: str, key: str
) -> tuple[list[int], list[float]]:
  points: dict[int, list[float]] = {}
  for cell in cells:
    if (cell.row, cell.column) == (row, column):
      for line in cell.curve:
        if line.get(key) is not None:
          points.setdefault(line['step'], []).append(100 * line[key])
  steps = sorted(points)
  return steps, [float(np.mean(points[step])) for step in steps]


def _rows(cells: Sequence[Finished]) -> list[str]:
  return list(dict.fromkeys(cell.row for cell in cells))


def _columns(cells: Sequence[Finished]) -> list[str]:
  return list(dict.fromkeys(cell.column for cell in cells))


def _places(columns: Sequence[str]) -> tuple[list[float], bool]:
  """Where columns stand on the axis: at their values if those are numbers."""
  try:
    values = [float(column) for column in columns]
  except ValueError:
    return [float(i) for i in range(len(columns))], False
  if min(values) <= 0:
    return [float(i) for i in range(len(columns))], False
  return values, True


def _shown(found: Mapping[int, float]) -> str:
  if not found:
    return '-'
  mean, std = mean_and_std(list(found.values()))
  spread = '' if np.isnan(std) else f' ± {std:.1f}'
  return f'{mean:.1f}{spread} ({len(found)})'


def _shown_difference(difference: Difference) -> str:
  if not difference.count:
    return '-'
  if np.isnan(difference.low):
    return f'{difference.mean:+.1f} (1)'
  return (
    f'{difference.mean:+.1f} [{difference.low:+.1f}, {difference.high:+.1f}] '
    f'({difference.count})'
  )


def _spelt(name: str) -> str:
  """A metric as papers spell it."""
  return name.replace('miou', 'mIoU').replace('/', ' ')


def _color(i: int) -> str:
  return f'C{i % 10}'
