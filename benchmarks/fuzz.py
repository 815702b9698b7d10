"""Feeds damaged and odd inputs and configs to the programs, in seeded ways.

  python benchmarks/fuzz.py [--inputs=2000] [--configs=500] [--seed=0]
      [--out=results.json]

Each input is a small data set, in a folder or in archives, with one mutation of
the bytes or names of images, masks, lists or archives (`fuzz_inputs`); it is
checked as by `input_pipeline.prepare --check`. Each config is one of the
project's with mutated names, types or values (`fuzz_configs`); its stages are
built as by the command line.

Whatever is given, the programs must end well or with a message of one line
that names what is wrong: no traceback, and no silent change of the number of
pixels or images of a class.
"""

import argparse
import collections
import json
import pathlib
import tempfile
import time
from collections.abc import Callable
from typing import Any

import fuzz_configs
import fuzz_inputs

# Outcomes that are faults.
FAULTS = ('traceback', 'silent change', 'bad message')
_MAX_SHOWN = 20


def run(
  name: str, run_one: Callable[[int], tuple[str, str]], seeds: range
) -> dict[str, Any]:
  """Runs a mutation for each seed.

  Args:
    name: name of the kind, for the console.
    run_one: function from a seed to an outcome and a description.
    seeds: seeds of the mutations.

  Returns:
    The number of each outcome, the rate, and the faults.
  """
  counts: dict[str, int] = collections.Counter()
  faults, start = [], time.perf_counter()
  for seed in seeds:
    outcome, text = run_one(seed)
    counts[outcome] += 1
    if outcome in FAULTS:
      faults.append({'seed': seed, 'outcome': outcome, 'what': text})
      print(f'{name} {seed}: {outcome}: {text}'[:600])
  return {
    'counts': dict(counts),
    'faults': faults,
    'per second': len(seeds) / (time.perf_counter() - start),
  }


def main() -> None:
  """Runs the command line."""
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument('--inputs', type=int, default=2000)
  parser.add_argument('--configs', type=int, default=500)
  parser.add_argument('--seed', type=int, default=0)
  parser.add_argument('--out', type=pathlib.Path)
  arguments = parser.parse_args()
  results = {'seed': arguments.seed}
  with tempfile.TemporaryDirectory() as folder:
    inputs = fuzz_inputs.Inputs(pathlib.Path(folder))
    seeds = range(arguments.seed, arguments.seed + arguments.inputs)
    results['inputs'] = run('input', inputs.run, seeds)
  seeds = range(arguments.seed, arguments.seed + arguments.configs)
  results['configs'] = run('config', fuzz_configs.run, seeds)
  shown = {
    name: {**part, 'faults': part['faults'][:_MAX_SHOWN]}
    for name, part in results.items()
    if name != 'seed'
  }
  print(json.dumps(shown, indent=1))
  if arguments.out:
    arguments.out.write_text(json.dumps(results, indent=1))


if __name__ == '__main__':
  main()
