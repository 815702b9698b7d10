import csv
import io

import numpy as np
import PIL.Image
import pytest

from segcore.study import report


def cell(row, column, seed, test, train=0.9, swept='', val=None, curve=()):
  results = {
    'test': {'miou': test},
    'train': {'miou': train},
    'val': {'miou': val},
  }
  return report.CellResult(row, column, seed, results, curve, swept)


CELLS = [
  cell('init=none', '50', 0, 0.20),
  cell('init=none', '50', 1, 0.24),
  cell('init=none', '100', 0, 0.30),
  cell('init=ddep', '50', 0, 0.26),
  cell('init=ddep', '50', 1, 0.28),
  cell('init=ddep', '100', 0, 0.33),
]


def test_paired_difference_equals_values_by_hand():
  # Differences 1, 2, 3, 6: mean 3, variance 14 / 3, t(3 degrees) = 3.18245.
  ours = {0: 11.0, 1: 22.0, 2: 33.0, 3: 46.0, 9: 0.0}
  theirs = {0: 10.0, 1: 20.0, 2: 30.0, 3: 40.0, 8: 5.0}
  difference = report.paired_seed_difference(ours, theirs)
  margin = 3.18244631 * np.sqrt(14 / 3 / 4)
  assert difference.count == 4
  assert difference.mean == pytest.approx(3.0)
  assert difference.low == pytest.approx(3.0 - margin)
  assert difference.high == pytest.approx(3.0 + margin)


def test_one_pair_has_no_interval():
  one = report.paired_seed_difference({3: 2.0}, {3: 5.0})
  assert (one.mean, one.count) == (-3.0, 1)
  assert np.isnan(one.low)
  none = report.paired_seed_difference({1: 2.0}, {2: 2.0})
  assert none.count == 0
  assert np.isnan(none.mean)


def test_sweep_chooses_the_largest_selected_metric():
  cells = [
    cell('a', '50', 0, 0.9, val=0.2, swept='1e-4'),
    cell('a', '50', 0, 0.1, val=0.4, swept='1e-3'),
    cell('a', '50', 0, 0.5, val=None, swept='1e-2'),
    cell('b', '50', 0, 0.5, val=None, swept='1e-2'),
  ]
  assert report.choose_swept_values(cells, 'val/miou') == {('a', '50'): '1e-3'}


def test_markdown_has_means_deviations_and_differences():
  text = report.study_markdown_tables(CELLS, 'test/miou', 'labels', 'init=none')
  lines = text.splitlines()
  assert '| test/miou, % | labels=50 | labels=100 |' in lines
  # Of 20 and 24 the standard deviation is sqrt(8) = 2.8, of 26 and 28 1.4.
  assert '| init=none | 22.0 ± 2.8 (2) | 30.0 (1) |' in lines
  assert '| init=ddep | 27.0 ± 1.4 (2) | 33.0 (1) |' in lines
  assert '| train/miou, % | labels=50 | labels=100 |' in lines
  # Differences 6 and 4: t(1 degree) = 12.706, standard error 1.
  assert '| init=ddep | +5.0 [-7.7, +17.7] (2) | +3.0 (1) |' in lines
  assert sum('init=none |' in line for line in lines) == 2


def test_missing_results_are_dashes():
  cells = [*CELLS, cell('init=dep', '50', 0, float('nan'))]
  text = report.study_markdown_tables(cells, 'test/miou', 'labels')
  assert '| init=dep | - | - |' in text.splitlines()
  assert 'Difference' not in text


def test_csv_has_the_same_numbers():
  text = report.study_csv_table(CELLS, 'test/miou', 'labels')
  rows = list(csv.DictReader(io.StringIO(text)))
  assert [(r['row'], r['labels'], r['n']) for r in rows] == [
    *[('init=none', '50', '2'), ('init=none', '100', '1')],
    *[('init=ddep', '50', '2'), ('init=ddep', '100', '1')],
  ]
  assert float(rows[0]['mean']) == pytest.approx(22.0)
  assert float(rows[0]['std']) == pytest.approx(np.sqrt(8))


def plotted_data(figure):
  """Returns label, x and y of each line of the first axes."""
  return [
    (container.get_label(), *container.lines[0].get_data())
    for container in figure.axes[0].containers
  ]


def test_plot_shows_the_means():
  none, ddep = plotted_data(
    report.plot_study_metric(CELLS, 'test/miou', 'labels')
  )
  assert none[0] == 'init=none'
  assert none[1].tolist() == [50, 100]
  np.testing.assert_allclose(none[2], [22.0, 30.0])
  np.testing.assert_allclose(ddep[2], [27.0, 33.0])


def test_plot_of_an_option_of_words():
  cells = [cell('a', word, 0, 0.5) for word in ('small', 'large')]
  ((_, x, y),) = plotted_data(
    report.plot_study_metric(cells, 'test/miou', 'size')
  )
  assert x.tolist() == [0, 1]
  assert y.tolist() == [50, 50]


def test_curves_are_means_over_seeds():
  def curve(*values):
    return [
      {'step': 10 * (i + 1), 'test/miou': v, 'train/miou': 2 * v}
      for i, v in enumerate(values)
    ]

  cells = [
    cell('a', '50', 0, 0.5, curve=curve(0.1, 0.3)),
    cell('a', '50', 1, 0.5, curve=curve(0.2, 0.4)),
  ]
  (axes,) = report.plot_study_curves(cells, 'test/miou', 'labels').axes
  lines = {line.get_label(): line.get_data() for line in axes.lines}
  np.testing.assert_array_equal(lines['a, test'][0], [10, 20])
  np.testing.assert_allclose(lines['a, test'][1], [15, 35])
  np.testing.assert_allclose(lines['a, train'][1], [30, 70])


def test_all_files_are_written(tmp_path):
  cells = [cell('a', '50', 0, 0.5, curve=[{'step': 5, 'test/miou': 0.1}])]
  paths = report.write_study_report(tmp_path, cells, 'test/miou', 'labels')
  names = [path.name for path in paths]
  assert names == ['table.md', 'table.csv', 'plot.png', 'curves.png']
  for path in paths[2:]:
    with PIL.Image.open(path) as image:
      assert np.asarray(image).std() > 0
