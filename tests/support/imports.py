"""Reads the imports of a source tree and checks them against the layout.

The checks are those of `check`; none of them imports the code it reads.
"""

import ast
import dataclasses
import pathlib
import time
from collections.abc import Iterable, Iterator, Mapping

# What each top-level package may import of ours.
ALLOWED = {
  'configs': {'configs'},
  'ddep': {'ddep', 'segcore', 'input_pipeline', 'runtime'},
  'u2pl': {'u2pl', 'segcore', 'input_pipeline', 'runtime'},
  'pass_luss': {'pass_luss', 'segcore', 'input_pipeline', 'runtime'},
  'segcore': {'segcore', 'input_pipeline', 'runtime'},
  'input_pipeline': {'input_pipeline', 'runtime'},
  'launch': {'launch', 'runtime'},
  'runtime': {'runtime'},
}

# What some parts may import of their own top-level package.
ALLOWED_WITHIN = {
  'segcore.ops': {'segcore.ops', 'segcore.models', 'segcore.types'},
  'segcore.models': {'segcore.ops', 'segcore.models', 'segcore.types'},
  'input_pipeline.batch': set(),
  'input_pipeline.sources': {'input_pipeline.sources', 'input_pipeline.batch'},
  'input_pipeline.builders': {
    'input_pipeline.builders',
    'input_pipeline.sources',
    'input_pipeline.batch',
  },
}

# Packages whose subpackages must not import each other in a cycle.
LAYERED = ('segcore', 'input_pipeline')

# Ours, but not to be imported by any package.
OUTSIDE = ('tests', 'benchmarks', 'examples')


@dataclasses.dataclass(frozen=True)
class Import:
  """One import statement.

  Attributes:
    source: dotted name of the module that imports.
    target: dotted name of the imported module.
    place: file and line, 'segcore/train/loop.py:12'.
  """

  source: str
  target: str
  place: str


def check(root: pathlib.Path) -> list[str]:
  """Returns the violations of the import rules, one a line, file first.

  Args:
    root: folder of the top-level packages.
  """
  packages = [name for name in (*ALLOWED, *OUTSIDE) if (root / name).is_dir()]
  imports = list(read(root, packages))
  ours = [i for i in imports if _top(i.target) in (*ALLOWED, *OUTSIDE)]
  packaged = [i for i in ours if _top(i.source) in ALLOWED]
  lines = [
    *_tensorflow(imports),
    *_between_packages(packaged),
    *_within_packages(packaged),
  ]
  for package in ALLOWED:
    own = [i for i in packaged if _top(i.source) == _top(i.target) == package]
    lines += _cycles(own, f'modules of {package}', depth=None)
    if package in LAYERED:
      lines += _cycles(own, f'subpackages of {package}', depth=2)
  return lines


def read(root: pathlib.Path, packages: Iterable[str]) -> Iterator[Import]:
  """Yields every import in the packages, wherever in a module it stands."""
  files = {
    _module_name(root, path): path
    for package in packages
    for path in sorted((root / package).rglob('*.py'))
  }
  for name, path in files.items():
    tree = _parse(path)
    is_package = path.name == '__init__.py'
    for node in ast.walk(tree):
      for target in _targets(node, name, is_package, files):
        place = f'{path.relative_to(root).as_posix()}:{node.lineno}'
        yield Import(name, target, place)


def _module_name(root: pathlib.Path, path: pathlib.Path) -> str:
  parts = path.relative_to(root).with_suffix('').parts
  return '.'.join(parts[:-1] if parts[-1] == '__init__' else parts)


def _targets(
  node: ast.AST, importer: str, is_package: bool, modules: Mapping[str, object]
) -> list[str]:
  """Returns the modules that a node imports; a name counts as its module."""
  if isinstance(node, ast.Import):
    return [alias.name for alias in node.names]
  if not isinstance(node, ast.ImportFrom):
    return []
  base = node.module or ''
  if node.level:
    above = importer.split('.')
    above = above[: len(above) - node.level + is_package]
    base = '.'.join([*above, *([base] if base else [])])
  names = [f'{base}.{alias.name}' for alias in node.names]
  return [name if name in modules else base for name in names]


def _top(module: str) -> str:
  return module.partition('.')[0]


def _is_in(module: str, package: str) -> bool:
  return f'{module}.'.startswith(f'{package}.')


def _tensorflow(imports: Iterable[Import]) -> Iterator[str]:
  for i in imports:
    if _top(i.source) != 'tests' and _top(i.target) == 'tensorflow':
      yield f'{i.place}: {i.source} imports {i.target}: expected only tests to'


def _between_packages(imports: Iterable[Import]) -> Iterator[str]:
  for i in imports:
    allowed = ALLOWED[_top(i.source)]
    if _top(i.target) not in allowed:
      yield (
        f'{i.place}: {i.source} imports {i.target}: {_top(i.source)} may '
        f'import only {", ".join(sorted(allowed))}'
      )


def _within_packages(imports: Iterable[Import]) -> Iterator[str]:
  for i in imports:
    for part, allowed in ALLOWED_WITHIN.items():
      if not _is_in(i.source, part) or _top(i.target) != _top(part):
        continue
      if not any(_is_in(i.target, name) for name in allowed):
        expected = ', '.join(sorted(allowed)) or 'no module of it'
        yield (
          f'{i.place}: {i.source} imports {i.target}: of {_top(part)}, {part} '
          f'may import only {expected}'
        )


def _cycles(
  imports: Iterable[Import], what: str, depth: int | None
) -> Iterator[str]:
  """Yields a line for each import between members of the same cycle.

  Args:
    imports: of one top-level package.
    what: names the nodes in messages.
    depth: leading components of a module's name that make a node; None makes
      every module a node of its own.
  """
  edges: dict[tuple[str, str], list[Import]] = {}
  for i in imports:
    source, target = (
      '.'.join(name.split('.')[:depth]) for name in (i.source, i.target)
    )
    if source != target:
      edges.setdefault((source, target), []).append(i)
  reachable = _closure(edges)
  for (source, target), statements in sorted(edges.items()):
    if source in reachable[target]:
      for i in statements:
        yield (
          f'{i.place}: {i.source} imports {i.target}, which imports it back, '
          f'directly or not: {what} must not import each other in a cycle'
        )


def _closure(edges: Iterable[tuple[str, str]]) -> dict[str, set[str]]:
  """Returns the nodes that can be reached from each node by edges."""
  direct: dict[str, set[str]] = {}
  for source, target in edges:
    direct.setdefault(source, set()).add(target)
    direct.setdefault(target, set())
  reachable = {}
  for node in direct:
    visited, pending = set(), [*direct[node]]
    while pending:
      other = pending.pop()
      if other not in visited:
        visited.add(other)
        pending += direct[other]
    reachable[node] = visited
  return reachable


def _parse(path):
  """Parses a file.

  Python 3.11 counts the depth of its parser for all threads together, and
  raises SystemError where another thread parses at the same time.
  """
  for _ in range(20):
    try:
      return ast.parse(path.read_text('utf-8'), str(path))
    except SystemError:
      time.sleep(0.05)
  return ast.parse(path.read_text('utf-8'), str(path))
