"""Tabulates FLOPs and collectives of programs for 8, 256 and more devices.

  python benchmarks/scaling.py --rows=small       # simulated devices
  python benchmarks/scaling.py --rows=published   # v4, v5e; needs libtpu

Each training step is compiled in a separate process and not run. `small`
compiles the networks of the `tiny` configs for 8 and 256 simulated devices,
with the same number of images per device; `published` the papers' networks and
batches for TPUs. The tables are those of docs/scaling.md.
"""

import argparse
import importlib
import json
import pathlib
import subprocess
import sys

from segcore.cost import communication, throughput, topology
from segcore.experiment import dry_run

ROOT = pathlib.Path(__file__).parent.parent

# Name, module, config, stage, images per device.
SMALL = (
  ('DDeP, classify', 'ddep.main', 'ddep_shapes:tiny', 'classify', 2),
  ('DDeP, denoise', 'ddep.main', 'ddep_shapes:tiny', 'denoise', 2),
  ('DDeP, finetune', 'ddep.main', 'ddep_shapes:tiny', 'finetune', 2),
  ('U2PL', 'u2pl.main', 'u2pl_shapes:tiny', 'train', 2),
  ('PASS, represent', 'pass_luss.main', 'pass_shapes:tiny', 'represent', 2),
  ('PASS, attend', 'pass_luss.main', 'pass_shapes:tiny', 'attend', 2),
  ('PASS, finetune', 'pass_luss.main', 'pass_shapes:tiny', 'finetune', 2),
)
# Name, module, config, stage, topologies whose devices divide its batch.
PUBLISHED = (
  (
    'DDeP, denoise',
    'ddep.main',
    'ddep_pascal',
    'denoise',
    ('v4:2x2x1', 'v5e:16x16'),
  ),
  (
    'U2PL',
    'u2pl.main',
    'u2pl_voc',
    'train',
    ('v4:2x2x1', 'v5e:4x4'),
  ),
  (
    'PASS, represent',
    'pass_luss.main',
    'pass_imagenet_s919',
    'represent',
    ('v4:2x2x1', 'v5e:16x16'),
  ),
)
# Factors of the number of devices, at the same batch per device.
_GROWTH = (1, 4, 16, 64, 256, 1024)


def main() -> None:
  """Prints the tables of the command line."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('--rows', choices=('small', 'published'))
  parser.add_argument('--only', default='', help='part of a name')
  parser.add_argument('--one', nargs=5, help='internal: compile one program')
  arguments = parser.parse_args()
  if arguments.one:
    print(json.dumps(measure(*arguments.one)))
  elif arguments.rows == 'published':
    published(arguments.only)
  else:
    small(arguments.only)


def measure(
  module: str, config: str, name: str, devices: str, batch: str
) -> dict:
  """Compiles one program; call it in a fresh process.

  Args:
    module: the method's main.
    config: config file, with options.
    name: name of the stage.
    devices: a topology.
    batch: global batch size; '0' for that of the config.
  """
  target = topology.parse_topology(devices)
  devices_here = target.start_simulated_devices(1)[:1]
  method = importlib.import_module(module)
  file, _, options = config.partition(':')
  experiment = importlib.import_module(f'configs.{file}').get_config(options)
  if int(batch):
    experiment[name].recipe.batch_size = int(batch)
  stages = method.PROGRAM.build(experiment, devices_here)
  plan = dry_run.place_dry_run_on(stages[name].workload(), target)
  cost = dry_run.count_dry_run_cost(plan)
  with topology.without_compilation_cache():
    compiled = dry_run.compile_dry_run_step(plan, plan.remat)
  trained = plan.build(False).update.trained
  return {
    'devices': target.num_devices,
    'batch': plan.batch_size,
    'num_steps': plan.num_steps,
    'nominal': sum(cost.step.values()),
    'xla': compiled.operations,
    'peak': compiled.peak,
    'gradients': 4 * sum(cost.parameters[part] for part in trained),
    'exchanged': [list(collective) for collective in compiled.exchanged],
  }


def measure_in_process(*arguments: str) -> dict:
  """Calls `measure` in a new process."""
  completed = subprocess.run(
    [sys.executable, __file__, '--one', *arguments],
    cwd=ROOT,
    capture_output=True,
    text=True,
  )
  if completed.returncode:
    raise SystemExit(f'{" ".join(arguments)}: {completed.stderr[-2000:]}')
  return json.loads(completed.stdout.splitlines()[-1])


def format_collectives(measured: dict) -> str:
  """Formats the collectives of a program: 'all-reduce 12 (3.4 MB), …'."""
  exchanged = [
    communication.Collective(*collective)
    for collective in measured['exchanged']
  ]
  return ', '.join(
    f'{kind} {len(sizes)} ({sum(sizes) / 1e6:.2f} MB)'
    for kind, sizes in communication.collective_bytes_by_kind(exchanged).items()
  )


def small(only: str) -> None:
  """Prints the table of 8 and 256 simulated devices."""
  print('| training | devices | MFLOPs a device | exchanged | of gradients |')
  print('|---|---|---|---|---|')
  for name, module, config, stage, images in SMALL:
    if only not in name:
      continue
    for count in (8, 256):
      measured = measure_in_process(
        module, config, stage, f'cpu:{count}', str(images * count)
      )
      reduced = sum(s for k, s, _ in measured['exchanged'] if k == 'all-reduce')
      print(
        f'| {name} | {count} | {measured["xla"] / 1e6:,.2f} | '
        f'{format_collectives(measured)} | '
        f'{reduced / measured["gradients"]:.2f} |',
        flush=True,
      )


def published(only: str) -> None:
  """Prints the table of the papers' networks on TPUs, and their scaling."""
  for name, module, config, stage, topologies in PUBLISHED:
    if only not in name:
      continue
    for devices in topologies:
      measured = measure_in_process(module, config, stage, devices, '0')
      count, chip = measured['devices'], topology.parse_topology(devices).chip
      exchanged = [
        communication.Collective(*collective)
        for collective in measured['exchanged']
      ]
      compute = throughput.arithmetic_seconds(
        measured['nominal'], chip.peak_flops, count, dry_run.EFFICIENCY
      )
      times = communication.weak_scaling_seconds(
        compute, exchanged, chip, count, _GROWTH
      )
      exchange = communication.collective_seconds(exchanged, chip, count, count)
      cells = [
        name,
        devices,
        f'{measured["batch"]:,}',
        f'{measured["peak"] / 1e9:.2f} of {chip.memory / 1e9:.1f}',
        f'{measured["nominal"] / count / 1e12:.3f}',
        f'{measured["xla"] / 1e12:.3f}',
        format_collectives(measured),
        f'{compute * 1e3:.1f} + {exchange * 1e3:.2f}',
        *(f'{compute / t:.1%}' if t else '-' for t in times),
      ]
      print(f'| {" | ".join(cells)} |', flush=True)


if __name__ == '__main__':
  main()
