"""Files, classes and functions are short enough to be read at once."""

import ast
import pathlib

import pytest

ROOT = pathlib.Path(__file__).parents[1]
# Largest number of lines.
MAX_LINES = {'file': 500, 'class': 250, 'function': 60}
FOLDERS = (
  *('runtime', 'input_pipeline', 'segcore', 'ddep', 'u2pl', 'pass_luss'),
  *('configs', 'launch', 'benchmarks', 'examples', 'tests'),
)


def list_long_parts(path):
  """Lists the file, and its classes and functions, that are too long."""
  text = path.read_text()
  parts = [('file', path.name, text.count('\n'))]
  for node in ast.walk(ast.parse(text)):
    if isinstance(node, ast.ClassDef | ast.FunctionDef):
      kind = 'class' if isinstance(node, ast.ClassDef) else 'function'
      parts.append((kind, node.name, node.end_lineno - node.lineno + 1))
  return [
    f'{path}: {kind} {name} has {lines} lines, expected {MAX_LINES[kind]}'
    for kind, name, lines in parts
    if lines > MAX_LINES[kind]
  ]


@pytest.mark.parametrize('folder', FOLDERS)
def test_no_part_is_too_long(folder):
  files = sorted((ROOT / folder).rglob('*.py'))
  assert files
  long = [line for path in files for line in list_long_parts(path)]
  assert not long, '\n'.join(long)


def test_long_parts_are_seen(tmp_path):
  path = tmp_path / 'a.py'
  body = '\n'.join(['  x = 1'] * 60)
  path.write_text(f'def short():\n  pass\n\n\ndef long():\n{body}\n')
  (line,) = list_long_parts(path)
  assert line.endswith('a.py: function long has 61 lines, expected 60')
