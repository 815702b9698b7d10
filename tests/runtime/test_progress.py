import io

from runtime import progress


class Terminal(io.StringIO):
  def isatty(self):
    return True


def shown(monkeypatch, stream, seconds):
  """Returns the lines of a bar over ten items of so many seconds each."""
  monkeypatch.setattr('sys.stderr', stream)
  clock = 0.0
  bar = progress.progress_bar(range(10), desc='preparing')
  bar._time = lambda: clock
  bar.start_t = bar.last_print_t = 0.0
  for _ in bar:
    clock += seconds
  return stream.getvalue().split('\r')[1:]


def test_short_work_prints_nothing_to_a_log(monkeypatch):
  assert shown(monkeypatch, io.StringIO(), 1.0) == []


def test_a_log_gets_a_line_per_minute(monkeypatch):
  before = progress.last_activity().time
  lines = shown(monkeypatch, io.StringIO(), 61.0)
  # Others see that this process goes on.
  assert progress.last_activity().what.startswith('preparing ')
  assert progress.last_activity().time > before
  first = 'preparing:  10%|#         | 1/10 [01:01<09:09, 61.00s/image]'
  assert lines[0] == first
  assert [line.split('%')[0][-3:].strip() for line in lines[:10]] == [
    f'{percent}' for percent in range(10, 101, 10)
  ]


def test_a_terminal_gets_a_bar_immediately(monkeypatch):
  lines = shown(monkeypatch, Terminal(), 0.01)
  assert lines[0].startswith('preparing:   0%|')
