"""Flags, cores, rounds and results of the benchmarks that compare versions."""

import argparse
import json
import os
import pathlib
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

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


class Line(NamedTuple):
  """A line of the summary of all benchmarks.

  Attributes:
    name: what was measured.
    value: measurement with its unit, as '0.31 s'.
    other: what it is compared with, as 'faiss'; '' for nothing.
    share: time, or memory, as a share of that of `other`: below 1 is better.
    least_and_most: range of `share` over the rounds; () for one measurement.
  """

  name: str
  value: str
  other: str = ''
  share: float | None = None
  least_and_most: tuple[float, ...] = ()

  @classmethod
  def of_rounds(
    cls,
    name: str,
    value: str,
    other: str,
    own_seconds: Sequence[float],
    other_seconds: Sequence[float],
  ) -> 'Line':
    """Makes a line of the seconds of both sides in the same rounds."""
    shares = [a / b for a, b in zip(own_seconds, other_seconds, strict=True)]
    median = statistics.median(shares)
    return cls(name, value, other, median, (min(shares), max(shares)))


def alternate(
  sides: Mapping[str, Callable[[], object]],
  rounds: int,
  clock: Callable[[], float] = time.perf_counter,
) -> dict[str, list[float]]:
  """Measures the seconds of each side, in turns.

  Args:
    sides: functions by name. The first round, which compiles and allocates
      memory, is not counted.
    rounds: number of counted rounds.
    clock: clock in seconds; `time.process_time` where sides take so little time
      that waiting for a core that is shared would hide it.
  """
  seconds: dict[str, list[float]] = {name: [] for name in sides}
  for number in range(rounds + 1):
    for name, run in sides.items():
      start = clock()
      run()
      if number:
        seconds[name].append(clock() - start)
  return seconds


def write_results(
  path: str, results: dict[str, Any], lines: Sequence[Line] = ()
) -> None:
  """Writes the results as JSON, if there is a path.

  Args:
    path: path of the file; '' for none.
    results: all that was measured.
    lines: lines of the summary that `run_all.py` prints.
  """
  if path:
    summary = [line._asdict() for line in lines]
    content = json.dumps({**results, 'summary': summary}, indent=1)
    pathlib.Path(path).write_text(content)


def inverse(least_and_most: Sequence[float]) -> tuple[float, float]:
  """Returns the range of shares of times from that of a speedup."""
  least, most = least_and_most
  return 1 / most, 1 / least


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
