"""Error lines of commands that failed."""

import pytest

from launch import shell


@pytest.mark.parametrize(
  ('out', 'err', 'line'),
  [
    ('a\nb\n', '', 'b'),
    ('a', 'warning\nit failed\n', 'it failed'),
    # Hints come after the error.
    ('', 'wait:\nERROR: no such\njob\n$ help', 'ERROR: no such job $ help'),
    ('', '', 'exit status 1'),
  ],
)
def test_error_line_of_a_result(out, err, line):
  assert shell.Result(1, out, err).error_line == line
