"""Runs all benchmarks, one after the other, and prints a table of them.

  python benchmarks/run_all.py [--only=pass_] [--out=FOLDER]

Comparisons with torch and Faiss need them in this environment; without them,
this code alone is timed. `--only` selects benchmarks by a part of their names.
The results of each, its output and the table, `summary.md`, go to the folder.
The exit status is 1 if one of them fails.
"""

import datetime
import importlib.metadata
import json
import os
import pathlib
import platform
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from typing import Any

import command_line

FOLDER = pathlib.Path(__file__).resolve().parent
# Benchmarks with a summary, by name, and their flags.
MEASURED = {
  'input': (),
  'prepare': (),
  'u2pl_loss': (),
  'pass_evaluate': (),
  'pass_kmeans': (),
  'pass_sinkhorn': (),
  'depthwise': (),
  'semi_steps': ('--threads=2',),
  'train_step': ('--threads=1',),
  'predict': ('--threads=1',),
}
# Those that pass or fail, or print a table of their own.
CHECKED = {'kill_resume': (), 'scaling': ('--rows=small',), 'soak': ()}
VERSIONS = ('jax', 'flax', 'numpy', 'torch', 'faiss-cpu')
TITLE = '| benchmark | measured | compared with | share of its time (range) |'


def run(name: str, flags: Sequence[str], out: pathlib.Path) -> list[str]:
  """Runs a benchmark, whose output is shown; returns its rows of the table."""
  print(f'\n{name}', flush=True)
  results = out / f'{name}.json'
  command = [sys.executable, str(FOLDER / f'{name}.py'), *flags]
  if name in MEASURED:
    command.append(f'--out={results}')
  # The allocator's arenas would hide whether memory grows.
  env = {**os.environ, 'MALLOC_ARENA_MAX': '2'} if name == 'soak' else None
  status = subprocess.run(command, cwd=FOLDER.parent, env=env).returncode
  if status:
    return [f'| {name} | FAILED (exit status {status}) | | |']
  if name not in MEASURED:
    return [f'| {name} | passed | | |']
  return [row(line) for line in json.loads(results.read_text())['summary']]


def row(line: dict[str, Any]) -> str:
  """Formats a line of a summary as a row of the table."""
  share = ''
  if line['share'] is not None:
    share = f'{line["share"]:.2f}'
    if line['least_and_most']:
      share += f' ({command_line.format_range(line, ".2f")})'
  cells = line['name'], line['value'], line['other'], share
  return f'| {" | ".join(cells)} |'


def describe_machine() -> str:
  """Describes processor, cores, versions, commit and date in one line."""
  cpus = pathlib.Path('/proc/cpuinfo')
  models = [
    line.partition(':')[2].strip()
    for line in (cpus.read_text().splitlines() if cpus.exists() else ())
    if line.startswith('model name')
  ]
  installed = []
  for package in VERSIONS:
    try:
      version = importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
      continue
    installed.append(f'{package} {version}')
  commit = subprocess.run(
    ['git', 'rev-parse', '--short=12', 'HEAD'],
    cwd=FOLDER,
    capture_output=True,
    text=True,
  ).stdout.strip()
  return ', '.join(
    [
      f'{models[0] if models else platform.machine()}',
      f'{len(os.sched_getaffinity(0))} cores',
      f'Python {platform.python_version()}',
      *installed,
      f'commit {commit or "unknown"}',
      f'{datetime.date.today()}',
    ]
  )


def main(argv: Sequence[str]) -> int:
  """Runs the benchmarks and prints the table; returns 1 if one fails."""
  arguments = command_line.parse(argv, __doc__, only='')
  out = pathlib.Path(arguments.out or tempfile.mkdtemp(prefix='benchmarks'))
  out.mkdir(parents=True, exist_ok=True)
  rows = []
  for name, flags in {**MEASURED, **CHECKED}.items():
    if arguments.only in name:
      rows += run(name, flags, out)
  table = '\n'.join([describe_machine(), '', TITLE, '|---|---|---|---|', *rows])
  (out / 'summary.md').write_text(table + '\n')
  print(f'\n{table}\n\nresults: {out}')
  return int(any('FAILED' in each for each in rows))


if __name__ == '__main__':
  sys.exit(main(sys.argv[1:]))
