"""Compares the training steps of the semi-supervised systems with sup_only's.

  python benchmarks/semi_steps.py [--systems cps cct …] [--side=128]
      [--batch=8] [--network=efficientnet+unet] [--threads=2] [--rounds=3]
      [--out=FILE.json]

The steps are those of `configs/u2pl_folder.py`, all terms of the losses
included: as many unlabeled images as labeled ones, of which sup_only has the
latter alone. Images are random, and so are parameters; the first blocks of the
encoder are frozen, as with public weights. In each round every system runs one
step, so that other work on the machine slows all of them.
"""

import statistics
import sys
from collections.abc import Sequence
from typing import Any

import command_line
import jax

from configs import pretrained, u2pl_folder, u2pl_losses
from segcore.experiment import dry_run, step_timing
from u2pl import main as u2pl_main

BASELINE = 'sup_only'
SYSTEMS = [name for name in u2pl_losses.SYSTEMS if name != BASELINE]


def build_workload(
  system: str, network: str, side: int, batch: int
) -> dry_run.Workload:
  """Builds the training of a system on images of one's own.

  Args:
    system: option `system`.
    network: option `network`.
    side: side of the crops in pixels.
    batch: number of labeled images of a step.
  """
  encoder = 'random'
  if network.startswith('efficientnet+'):
    encoder = f'package:{pretrained.PACKAGE}'  # Not read: nothing is trained.
  config = u2pl_folder.get_config(
    f'source=images,system={system},network={network},encoder={encoder},'
    f'size={side}x{side}'
  )
  config.train.recipe.batch_size = batch
  stages = u2pl_main.PROGRAM.build(config, jax.devices()[:1])
  return stages['train'].workload()


def measure(
  systems: Sequence[str], rounds: int, **sizes: Any
) -> dict[str, dict[str, Any]]:
  """Measures seconds and operations of a step of each system.

  Args:
    systems: systems beside `BASELINE`.
    rounds: number of steps of each.
    **sizes: arguments of `build_workload`.

  Returns:
    By system: `operations`, the same relative to the baseline, and `seconds` of
    every round.
  """
  steps = {}
  for name in (BASELINE, *systems):
    workload = build_workload(name, **sizes)
    steps[name] = step_timing.CompiledStep(
      workload.build(workload.remat),
      workload.mesh,
      workload.batch_spec,
      workload.first_step,
    )
    print(f'compiled: {name}', flush=True)
  seconds = command_line.alternate(
    {name: step.run for name, step in steps.items()}, rounds
  )
  base = steps[BASELINE].operations
  return {
    name: {
      'operations': step.operations,
      'relative_operations': step.operations / base,
      'seconds': seconds[name],
    }
    for name, step in steps.items()
  }


def main(argv: Sequence[str]) -> None:
  """Runs the comparison and prints it as a table."""
  arguments = command_line.parse_on_cores(
    argv,
    __doc__,
    systems=SYSTEMS,
    network='efficientnet+unet',
    side=128,
    batch=8,
    rounds=3,
  )
  results = measure(
    arguments.systems,
    arguments.rounds,
    network=arguments.network,
    side=arguments.side,
    batch=arguments.batch,
  )
  lines = [
    command_line.Line.of_rounds(
      f'step of {name}',
      f'{statistics.median(result["seconds"]):.2f} s',
      BASELINE,
      result['seconds'],
      results[BASELINE]['seconds'],
    )
    for name, result in results.items()
  ]
  print('| system | seconds, relative | range | FLOPs, relative |')
  print('|---|---|---|---|')
  for line, (name, result) in zip(lines, results.items(), strict=True):
    least, most = line.least_and_most
    print(
      f'| `{name}` | {line.share:.1f} | {least:.1f} to {most:.1f} | '
      f'{result["relative_operations"]:.1f} |'
    )
  written = {'threads': arguments.threads, 'systems': results}
  command_line.write_results(arguments.out, written, lines)


if __name__ == '__main__':
  main(sys.argv[1:])
