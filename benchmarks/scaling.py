"""What programs for 8, 256 and more devices compute and exchange.

  python benchmarks/scaling.py --rows=small       # simulated devices
  python benchmarks/scaling.py --rows=published   # v4, v5e; needs libtpu

Each training is compiled, in a process of its own, and not run. `small` has the
networks of the `tiny` configs on 8 and on 256 simulated devices at the same
number of images a device; `published` the papers' networks and batches on TPUs.
The tables are those of docs/scaling.md.
"""

import argparse
import importlib
import json
import pathlib
import subprocess
import sys

from segcore.cost import communication, topology
from segcore.experiment import dry_run

ROOT = pathlib.Path(__file__).parent.parent

# Name, module, config, stage, images a device.
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
    *('DDeP, denoise', 'ddep.main', 'ddep_pascal', 'denoise'),
    ('v4:2x2x1', 'v5e:16x16'),
  ),
  (
    *('U2PL', 'u2pl.main', 'u2pl_voc', 'train'),
    ('v4:2x2x1', 'v5e:4x4'),
  ),
  (
    *('PASS, represent', 'pass_luss.main', 'pass_imagenet_s919'),
    *('represent', ('v4:2x2x1', 'v5e:16x16')),
  ),
)
_GROWING = (1, 4, 16, 64, 256, 1024)


def main() -> None:
  """Prints the tables."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('--rows', choices=('small', 'published'))
  parser.add_argument('--only', default='', help='part of a name')
  parser.add_argument('--one', nargs=5, help='for itself: one program')
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
  """Compiles one program; runs in a process of its own.

  Args:
    module: the method's main.
    config: its config, with options.
    name: of the stage.
    devices: a topology.
    batch: global number of images; '0' for that of the config.
  """
  asked = topology.parse(devices)
  host = asked.start_simulated_devices(1)[:1]
  main_of = importlib.import_module(module)
  file, _, given = config.partition(':')
  found = importlib.import_module(f'configs.{file}').get_config(given)
  if int(batch):
    found[name].recipe.batch_size = int(batch)
  stages = main_of.PROGRAM.build(found, host)
  plan = dry_run.placed_on(stages[name].workload(), asked)
  cost = dry_run.cost(plan)
  with topology.without_compilation_cache():
    said = dry_run.compile_step(plan, plan.remat)
  trained = plan.build(False).update.trained
  return {
    'devices': asked.num_devices,
    'batch': plan.batch_size,
    'num_steps': plan.num_steps,
    'nominal': sum(cost.step.values()),
    'xla': said.operations,
    'peak': said.peak,
    'gradients': 4 * sum(cost.parameters[part] for part in trained),
    'exchanged': [list(each) for each in said.exchanged],
  }


def compiled(*what: str) -> dict:
  """The same, in a new process."""
  done = subprocess.run(
    [sys.executable, __file__, '--one', *what],
    cwd=ROOT,
    capture_output=True,
    text=True,
  )
  if done.returncode:
    raise SystemExit(f'{" ".join(what)}: {done.stderr[-2000:]}')
  return json.loads(done.stdout.splitlines()[-1])


def kinds(found: dict) -> str:
  """'all-reduce 12 (3.4 MB), …' of a program."""
  exchanged = [communication.Collective(*each) for each in found['exchanged']]
  return ', '.join(
    f'{kind} {len(sizes)} ({sum(sizes) / 1e6:.2f} MB)'
    for kind, sizes in dry_run.by_kind(exchanged).items()
  )


def small(only: str) -> None:
  """Eight and 256 simulated devices."""
  print('| training | devices | MFLOPs a device | exchanged | of gradients |')
  print('|---|---|---|---|---|')
  for name, module, config, stage, images in SMALL:
    if only not in name:
      continue
    for count in (8, 256):
      found = compiled(
        module, config, stage, f'cpu:{count}', str(images * count)
      )
      reduced = sum(s for k, s, _ in found['exchanged'] if k == 'all-reduce')
      print(
        f'| {name} | {count} | {found["xla"] / 1e6:,.2f} | {kinds(found)} | '
        f'{reduced / found["gradients"]:.2f} |',
        flush=True,
      )


def published(only: str) -> None:
  """The papers' networks and batches, on TPUs; and how they would grow."""
  for name, module, config, stage, topologies in PUBLISHED:
    if only not in name:
      continue
    for devices in topologies:
      found = compiled(module, config, stage, devices, '0')
      count, chip = found['devices'], topology.parse(devices).chip
      exchanged = [
        communication.Collective(*each) for each in found['exchanged']
      ]
      compute = dry_run.seconds(
        found['nominal'], chip.peak_flops, count, dry_run.EFFICIENCY
      )
      times = dry_run.weak_scaling_seconds(
        compute, exchanged, chip, count, _GROWING
      )
      here = compute + dry_run.exchange_seconds(exchanged, chip, count, count)
      cells = [
        name,
        devices,
        f'{found["batch"]:,}',
        f'{found["peak"] / 1e9:.2f} of {chip.memory / 1e9:.1f}',
        f'{found["nominal"] / count / 1e12:.3f}',
        f'{found["xla"] / 1e12:.3f}',
        kinds(found),
        f'{compute * 1e3:.1f} + {(here - compute) * 1e3:.2f}',
        *(f'{compute / t:.1%}' if t else '-' for t in times),
      ]
      print(f'| {" | ".join(cells)} |', flush=True)


if __name__ == '__main__':
  main()
