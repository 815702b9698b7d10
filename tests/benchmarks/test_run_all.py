"""The table of all benchmarks."""

from tests.support import runs


def test_rows_of_a_benchmark(monkeypatch):
  monkeypatch.syspath_prepend(str(runs.ROOT / 'benchmarks'))
  import command_line
  import run_all

  line = command_line.Line.of_rounds(
    'k-means', '2.1 s', 'faiss', [2.0, 2.2, 3.0], [4.0, 4.0, 4.0]
  )
  assert (
    run_all.row(line._asdict())
    == '| k-means | 2.1 s | faiss | 0.55 (0.50 to 0.75) |'
  )
  alone = command_line.Line('k-means', '2.1 s')
  assert run_all.row(alone._asdict()) == '| k-means | 2.1 s |  |  |'
  assert command_line.inverse((2.0, 4.0)) == (0.25, 0.5)
