"""Reports of prepared data sets, which a run prints once."""

import pathlib

from input_pipeline.sources import audit

# Reports that this process has printed: a run opens a data set several times.
_PRINTED: set[pathlib.Path] = set()


def print_audit_report(path: pathlib.Path, is_new: bool, whole: bool) -> None:
  """Prints the report of a data set, unless it was printed before.

  Args:
    path: path of the report, which may be missing.
    is_new: whether the data set was prepared just now.
    whole: whether all of it is printed; else its warnings.
  """
  if not path.exists() or (path in _PRINTED and not is_new):
    return
  _PRINTED.add(path)
  text = path.read_text()
  print(text if whole else audit.select_warnings(text), end='', flush=True)
