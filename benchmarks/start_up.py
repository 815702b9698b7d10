"""Compares the start of each command line with importing jax.

  python benchmarks/start_up.py [--rounds=5] [--out=FILE.json]

Each command ends before it opens data: it prints its help, or refuses an
option, a field, or missing files. User and system CPU time is measured, of the
commands and of `python -c "import jax"` in turns. Compiled modules are kept in
a temporary folder, as after the first use of an installed package.
"""

import os
import resource
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence

import command_line

IMPORT_JAX = ('-c', 'import jax')
_PASCAL = '--config=configs/ddep_pascal.py'
_MISSPELT = '--config.netwrok.dtype=bfloat16'
COMMANDS = {
  'ddep.main --help': ('-m', 'ddep.main', '--help'),
  'u2pl.main --help': ('-m', 'u2pl.main', '--help'),
  'pass_luss.main --help': ('-m', 'pass_luss.main', '--help'),
  'pass_luss.evaluate --help': ('-m', 'pass_luss.evaluate', '--help'),
  'input_pipeline.prepare --help': ('-m', 'input_pipeline.prepare', '--help'),
  'segcore.study --help': ('-m', 'segcore.study', '--help'),
  'launch --help': ('-m', 'launch', '--help'),
  'ddep.main, unknown flag': ('-m', 'ddep.main', '--confg=x'),
  'ddep.main, misspelt option': ('-m', 'ddep.main', f'{_PASCAL}:fractoin=1'),
  **{
    f'{program}, {case}': ('-m', program, f'--config=configs/{name}.py', *flags)
    for program, name in (
      ('ddep.main', 'ddep_pascal'),
      ('u2pl.main', 'u2pl_voc'),
      ('pass_luss.main', 'pass_imagenet_s50'),
    )
    for case, flags in (('misspelt field', (_MISSPELT,)), ('missing files', ()))
  },
  'input_pipeline.prepare, missing files': (
    *('-m', 'input_pipeline.prepare', 'camvid'),
    '--source=/nowhere',
  ),
}


def cpu_seconds(arguments: Sequence[str], environment: Mapping) -> float:
  """Measures user and system CPU time of Python with the given arguments."""
  before = resource.getrusage(resource.RUSAGE_CHILDREN)
  done = subprocess.run(
    [sys.executable, *arguments],
    env=environment,
    stdout=subprocess.DEVNULL,
    stderr=subprocess.PIPE,
    text=True,
  )
  # A user error has the status 2.
  if done.returncode not in (0, 2) or 'Traceback' in done.stderr:
    raise RuntimeError(f'{" ".join(arguments)}: {done.stderr}')
  after = resource.getrusage(resource.RUSAGE_CHILDREN)
  return sum(
    getattr(after, name) - getattr(before, name)
    for name in ('ru_utime', 'ru_stime')
  )


def main(argv: Sequence[str]) -> None:
  """Runs the comparison and prints it."""
  arguments = command_line.parse(argv, __doc__, rounds=5)
  with tempfile.TemporaryDirectory() as folder:
    environment = {
      **{k: v for k, v in os.environ.items() if k != 'PYTHONDONTWRITEBYTECODE'},
      'PYTHONPYCACHEPREFIX': folder,
      'SEG_DATA_DIR': f'{folder}/data',
      'TFDS_DATA_DIR': f'{folder}/records',
    }
    ratios: dict[str, list[float]] = {name: [] for name in COMMANDS}
    jax_seconds = []
    # The first round compiles the modules.
    for number in range(arguments.rounds + 1):
      for name, command in COMMANDS.items():
        seconds = cpu_seconds(IMPORT_JAX, environment)
        ratio = cpu_seconds(command, environment) / seconds
        if number:
          jax_seconds.append(seconds)
          ratios[name].append(ratio)
  of_jax = statistics.median(jax_seconds)
  print(f'import jax: {of_jax:.2f} s')
  results = {}
  lines = []
  for name, values in ratios.items():
    results[name] = {
      'ratio': statistics.median(values),
      'least_and_most': (min(values), max(values)),
    }
    lines.append(
      command_line.Line(
        name,
        f'{of_jax * results[name]["ratio"]:.2f} s of CPU time',
        'importing jax',
        results[name]['ratio'],
        results[name]['least_and_most'],
      )
    )
    shown = command_line.format_range(results[name], '.2f')
    print(f'{name:38} {results[name]["ratio"]:.2f} ({shown})')
  command_line.write_results(arguments.out, results, lines)


if __name__ == '__main__':
  main(sys.argv[1:])
