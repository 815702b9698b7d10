"""Flags, cores and results of the benchmarks that compare two versions."""

import argparse
import json
import os
import pathlib
from collections.abc import Sequence
from typing import Any

Default = int | float | str | list[int] | tuple[str, ...]


def parse(
  argv: Sequence[str], doc: str, **defaults: Default
) -> argparse.Namespace:
  """Parses the flags of a benchmark.

  Args:
    argv: the flags.
    doc: docstring of its file, of which the first line describes it.
    **defaults: default of each flag, and thereby its type. A list is for one or
      more values; a tuple lists the allowed words, of which the first is the
      default.

  Returns:
    The values of these flags and `out`, the file for `write_results`.
  """
  parser = argparse.ArgumentParser(description=doc.partition('\n')[0])
  for name, default in defaults.items():
    kind: dict[str, Any] = {'type': type(default), 'default': default}
    if isinstance(default, list):
      kind |= {'type': type(default[0]), 'nargs': '+'}
    elif isinstance(default, tuple):
      kind = {'choices': default, 'default': default[0]}
    parser.add_argument(f'--{name}', **kind)
  parser.add_argument('--out', default='')
  return parser.parse_args(argv)


def parse_on_cores(
  argv: Sequence[str], doc: str, **defaults: Default
) -> argparse.Namespace:
  """Parses flags as `parse` does, and restricts the process to `--threads`.

  Called before jax starts its threads, whose number is that of its cores.

  Returns:
    The values; `threads` is the number of cores that the process got.
  """
  arguments = parse(argv, doc, threads=os.cpu_count() or 1, **defaults)
  cores = sorted(os.sched_getaffinity(0))[: arguments.threads]
  os.sched_setaffinity(0, cores)
  arguments.threads = len(cores)
  return arguments


def write_results(path: str, results: dict[str, Any]) -> None:
  """Writes the results as JSON, if there is a path."""
  if path:
    pathlib.Path(path).write_text(json.dumps(results, indent=1))


def format_decoding_share(result: dict[str, Any]) -> str:
  """Formats images a second as a share of that of bare decoding by cv2."""
  return (
    f'{result["share_of_bare_decoding"]:.0%} of bare cv2 decoding '
    f'({format_range(result, ".0%")})'
  )


def format_range(result: dict[str, Any], form: str) -> str:
  """Formats the least and the most of several rounds, as '1.2 to 1.4'.

  Args:
    result: summary of a comparison with `least_and_most`.
    form: format of both numbers.
  """
  return ' to '.join(format(x, form) for x in result['least_and_most'])
