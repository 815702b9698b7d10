"""Records what every `:tiny` experiment computes, to compare two versions.

  python benchmarks/tiny_runs.py record before.json [--only=ddep] [--jobs=2]
  python benchmarks/tiny_runs.py compare before.json after.json

`record` runs every experiment of `RUNS` from its command line and writes, for
each stage, the lines of metrics.jsonl, the path, shape and SHA-256 digest of
every parameter of the last checkpoint, and the metrics of results.json.
`compare` exits with 1 and lists the differences unless both files are equal to
the bit. Runs that are already in the output file are not repeated.
"""

import argparse
import concurrent.futures
import hashlib
import json
import os
import pathlib
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from typing import Any

import flax.traverse_util
import image_folders
import numpy as np

from segcore.weights import checkpoint_reader

ROOT = pathlib.Path(__file__).resolve().parent.parent

# Method and config; FOLDER stands for a folder of drawn images with masks.
RUNS = (
  ('ddep', 'ddep_shapes.py:tiny'),
  ('ddep', 'ddep_shapes.py:network=transunet,init=dep,tiny'),
  ('ddep', 'ddep_pascal.py:tiny'),
  ('ddep', 'ddep_pascal.py:network=unet,conditional,gamma_range=0.9-0.95,tiny'),
  ('ddep', 'ddep_ade20k.py:tiny'),
  ('ddep', 'ddep_cityscapes.py:init=dep,tiny'),
  ('ddep', 'ddep_camvid.py:init=ddep,tiny'),
  ('ddep', 'ddep_folder.py:source=FOLDER,ignore=255,val_fraction=0.4,tiny'),
  ('u2pl', 'u2pl_shapes.py:tiny'),
  ('u2pl', 'u2pl_shapes.py:system=u2pl,tiny'),
  ('u2pl', 'u2pl_shapes.py:system=classmix,pd=on,tiny'),
  ('u2pl', 'u2pl_shapes.py:system=sup_only,tiny'),
  ('u2pl', 'u2pl_voc.py:tiny'),
  ('u2pl', 'u2pl_voc.py:network=transunet,system=mt,tiny'),
  ('u2pl', 'u2pl_cityscapes.py:tiny'),
  ('u2pl', 'u2pl_camvid.py:tiny'),
  ('u2pl', 'u2pl_adapt.py:tiny'),
  ('u2pl', 'u2pl_adapt_shapes.py:tiny'),
  ('u2pl', 'u2pl_adapt_shapes.py:system=daformer,fd=on,tiny'),
  ('u2pl', 'u2pl_adapt_shapes.py:system=source_only,tiny'),
  (
    'u2pl',
    'u2pl_folder.py:source=FOLDER,ignore=255,val_fraction=0.4,labels=4,tiny',
  ),
  ('pass_luss', 'pass_shapes.py:tiny'),
  ('pass_luss', 'pass_shapes.py:branch=pixpro,p2p=contrastive,tiny'),
  ('pass_luss', 'pass_shapes.py:cluster=image,tiny'),
  ('pass_luss', 'pass_imagenet_s50.py:tiny'),
  ('pass_luss', 'pass_imagenet_s300.py:tiny'),
  ('pass_luss', 'pass_imagenet_s919.py:tiny'),
)

DISCS = image_folders.Discs(
  size=(121, 140), rows=(30, 90), columns=(30, 100), radius=27, ring=(30, 2)
)


def record(method: str, config: str, scratch: pathlib.Path) -> dict[str, Any]:
  """Runs one experiment; returns what its stages computed.

  Args:
    method: the package whose command line runs it.
    config: file name and options.
    scratch: an empty folder for everything that the run writes.

  Returns:
    By stage: `metrics`, `params` and `results`; or `error` and the last lines
    printed, if the command failed.
  """
  if 'FOLDER' in config:
    image_folders.write_discs(scratch / 'images', 20, DISCS)
    config = config.replace('FOLDER', str(scratch / 'images'))
  command = [
    *(sys.executable, '-m', f'{method}.main'),
    f'--config={ROOT}/configs/{config}',
    f'--config.data_dir={scratch}/records',
    f'--workdir={scratch}/run',
  ]
  done = subprocess.run(
    command,
    cwd=ROOT,
    env={**os.environ, 'PYTHONPATH': str(ROOT)},
    stdout=subprocess.PIPE,
    stderr=subprocess.STDOUT,
    text=True,
  )
  if done.returncode:
    return {'error': done.returncode, 'output': done.stdout[-2000:]}
  stages = sorted(path for path in (scratch / 'run').iterdir() if path.is_dir())
  return {stage.name: describe_stage(stage) for stage in stages}


def describe_stage(stage: pathlib.Path) -> dict[str, Any]:
  """Returns the metrics, parameters and results that a stage has written."""
  description: dict[str, Any] = {}
  if (stage / 'metrics.jsonl').exists():
    lines = (stage / 'metrics.jsonl').read_text().splitlines()
    description['metrics'] = [json.loads(line) for line in lines]
  if (stage / 'checkpoints').exists():
    state = checkpoint_reader.read_checkpoint_fields(
      stage / 'checkpoints', ('params', 'batch_stats')
    )
    leaves = flax.traverse_util.flatten_dict(state, sep='/')
    description['params'] = {
      path: [list(np.shape(leaf)), str(leaf.dtype), digest(np.asarray(leaf))]
      for path, leaf in sorted(leaves.items())
    }
  if (stage / 'results.json').exists():
    results = json.loads((stage / 'results.json').read_text())
    description['results'] = {
      name: split['metrics'] for name, split in results['splits'].items()
    }
  return description


def digest(array: np.ndarray) -> str:
  """Returns the SHA-256 digest of an array's bytes, in hexadecimal digits."""
  return hashlib.sha256(np.ascontiguousarray(array).tobytes()).hexdigest()[:16]


def differences(before: Any, after: Any, path: str = '') -> Iterator[str]:
  """Yields a line for each value that is not equal, named by its path."""
  if isinstance(before, dict) and isinstance(after, dict):
    for name in sorted({*before, *after}):
      if name not in before or name not in after:
        yield f'{path}/{name}: only {"before" if name in before else "after"}'
      else:
        yield from differences(before[name], after[name], f'{path}/{name}')
  elif (
    isinstance(before, list)
    and isinstance(after, list)
    and len(before) == len(after)
  ):
    for i, (old, new) in enumerate(zip(before, after, strict=True)):
      yield from differences(old, new, f'{path}[{i}]')
  # As text, so that NaN equals NaN.
  elif json.dumps(before) != json.dumps(after):
    yield f'{path}: {json.dumps(before)[:80]} != {json.dumps(after)[:80]}'


def record_all(out: pathlib.Path, only: str, jobs: int) -> int:
  """Records the runs whose config contains `only`; returns how many failed."""
  recorded = json.loads(out.read_text()) if out.exists() else {}

  def run(method: str, config: str) -> None:
    with tempfile.TemporaryDirectory() as scratch:
      recorded[config] = record(method, config, pathlib.Path(scratch))
    # Whole or not at all: other tools may read it while runs go on.
    temporary = out.with_suffix('.tmp')
    temporary.write_text(json.dumps(recorded, indent=1, sort_keys=True))
    temporary.replace(out)
    state = 'failed' if 'error' in recorded[config] else 'ok'
    print(f'{len(recorded)}/{len(RUNS)} {config}: {state}', flush=True)

  wanted = [(m, c) for m, c in RUNS if only in c and c not in recorded]
  with concurrent.futures.ThreadPoolExecutor(jobs) as pool:
    list(pool.map(lambda pair: run(*pair), wanted))
  return sum('error' in stages for stages in recorded.values())


def main() -> int:
  """Records or compares; returns the exit status."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('command', choices=('record', 'compare'))
  parser.add_argument('files', nargs='+', type=pathlib.Path)
  parser.add_argument('--only', default='', help='part of a config name')
  parser.add_argument('--jobs', type=int, default=1, help='runs at once')
  options = parser.parse_args()
  if options.command == 'record':
    return bool(record_all(options.files[0], options.only, options.jobs))
  before, after = (json.loads(path.read_text()) for path in options.files)
  shared = {c for c in before if c in after and options.only in c}
  lines = [
    line for c in sorted(shared) for line in differences(before[c], after[c], c)
  ]
  print('\n'.join(lines[:40]))
  print(f'{len(shared)} runs compared, {len(lines)} differences')
  return bool(lines) or not shared


if __name__ == '__main__':
  sys.exit(main())
