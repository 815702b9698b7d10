"""Damages checkpoints in seeded ways, and times their checksums.

  python benchmarks/checkpoints.py [--corruptions=200] [--megabytes=200]
      [--seed=0] [--rounds=3] [--out=results.json]

Each corruption is made to the later one of two checkpoints: flipped bits inside
array chunks and elsewhere, zeroed blocks, truncated, empty, missing, swapped
and overwritten files, missing folders. Then the state is restored. It must be
the earlier one, or be equal to the later one in every bit, where the damage is
in bytes that are not read. The times are those of a state of the given size:
saving and restoring as a whole, and the part of the checksums.
"""

import argparse
import collections
import json
import logging
import pathlib
import random
import shutil
import tempfile
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from runtime import errors
from segcore.train import checkpoint
from segcore.weights import manifest

EARLIER, LATER = 1, 2


def make_state(megabytes: float, seed: int = 0) -> dict[str, Any]:
  """Draws a state of parameters, their two moments, statistics and a step."""
  rng = np.random.default_rng(seed)
  # A kernel of 3 x 3 x 64 x width, three times.
  width = max(1, int(megabytes * 1e6 / (3 * 3 * 3 * 64 * 4)))
  draw = lambda *shape: jnp.asarray(rng.standard_normal(shape, np.float32))  # noqa: E731
  layers = max(1, width // 512)
  params = {
    f'conv{i}': {
      'kernel': draw(3, 3, 64, width // layers),
      'bias': draw(width // layers),
    }
    for i in range(layers)
  }
  return {
    'params': params,
    'opt_state': {
      'mu': jax.tree.map(lambda x: x * 0.1, params),
      'nu': jax.tree.map(lambda x: x * x, params),
    },
    'batch_stats': {'mean': draw(64).astype(jnp.bfloat16)},
    'step': jnp.asarray(seed, jnp.int32),
    'rng': jax.random.PRNGKey(seed),
  }


def abstract(state: Any) -> Any:
  """Returns shapes, types and shardings of a state."""
  return jax.tree.map(
    lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state
  )


def save(folder: pathlib.Path, states: dict[int, Any]) -> None:
  """Saves a state for each step."""
  with checkpoint.Checkpoints(folder) as checkpoints:
    for step, state in states.items():
      checkpoints.save(step, state)
    checkpoints.wait()


# Corruptions: from a random generator and the files of a checkpoint to a
# description.


def _flip(rng: random.Random, files: list[pathlib.Path]) -> str:
  file = rng.choice([f for f in files if f.stat().st_size])
  data = bytearray(file.read_bytes())
  place = rng.randrange(len(data))
  data[place] ^= 1 << rng.randrange(8)
  file.write_bytes(data)
  return f'bit flipped in {file.name} at {place}'


def _flip_in_chunk(rng: random.Random, files: list[pathlib.Path]) -> str:
  # The largest files hold the arrays.
  largest = sorted(files, key=lambda f: f.stat().st_size)[-3:]
  return _flip(rng, largest)


def _zero(rng: random.Random, files: list[pathlib.Path]) -> str:
  file = rng.choice([f for f in files if f.stat().st_size > 1])
  data = bytearray(file.read_bytes())
  start = rng.randrange(len(data))
  stop = min(len(data), start + rng.choice((8, 64, 512, 4096)))
  data[start:stop] = bytes(stop - start)
  file.write_bytes(data)
  return f'{stop - start} bytes of {file.name} set to zero'


def _truncate(rng: random.Random, files: list[pathlib.Path]) -> str:
  file = rng.choice([f for f in files if f.stat().st_size])
  data = file.read_bytes()
  length = rng.randrange(len(data))
  file.write_bytes(data[:length])
  return f'{file.name} cut to {length} of {len(data)} bytes'


def _empty(rng: random.Random, files: list[pathlib.Path]) -> str:
  file = rng.choice(files)
  file.write_bytes(b'')
  return f'{file.name} emptied'


def _remove(rng: random.Random, files: list[pathlib.Path]) -> str:
  file = rng.choice(files)
  file.unlink()
  return f'{file.name} removed'


def _swap(rng: random.Random, files: list[pathlib.Path]) -> str:
  one, other = rng.sample(files, 2)
  first, second = one.read_bytes(), other.read_bytes()
  one.write_bytes(second)
  other.write_bytes(first)
  return f'{one.name} and {other.name} swapped'


def _overwrite(rng: random.Random, files: list[pathlib.Path]) -> str:
  file = rng.choice(files)
  content = rng.choice((b'{}', b'null', b'[]', b'{"value": 1}', b'\xff' * 64))
  file.write_bytes(content)
  return f'{file.name} replaced by {content[:12]!r}'


def _remove_folder(rng: random.Random, files: list[pathlib.Path]) -> str:
  folder = rng.choice(sorted({file.parent for file in files}))
  shutil.rmtree(folder)
  return f'folder {folder.name} removed'


def _damage_manifest(rng: random.Random, files: list[pathlib.Path]) -> str:
  inside = [f for f in files if f.parent.name == manifest.META]
  return rng.choice((_flip, _truncate, _empty, _remove, _overwrite))(
    rng, inside
  )


CORRUPTIONS: tuple[Callable[[random.Random, list[pathlib.Path]], str], ...] = (
  *(_flip_in_chunk, _flip_in_chunk, _flip_in_chunk, _flip, _zero, _truncate),
  *(_empty, _remove, _swap, _overwrite, _remove_folder, _damage_manifest),
)


def corrupt(checkpoint_folder: pathlib.Path, seed: int) -> str:
  """Damages a checkpoint; returns a description."""
  rng = random.Random(seed)
  files = sorted(f for f in checkpoint_folder.rglob('*') if f.is_file())
  return rng.choice(CORRUPTIONS)(rng, files)


def outcome(folder: pathlib.Path, states: dict[int, Any]) -> str:
  """Restores, and compares with what was saved.

  Returns:
    'previous used', 'no effect', or what went wrong.
  """
  try:
    with checkpoint.Checkpoints(folder) as checkpoints:
      restored = checkpoints.restore(abstract(states[LATER]))
  except errors.UserError as error:
    return f'refused: {error}'
  except Exception as error:
    return f'raised {type(error).__name__}: {error}'
  if restored is None:
    return 'nothing restored'
  step, state = restored
  equal = jax.tree.map(
    lambda a, b: np.asarray(a).tobytes() == np.asarray(b).tobytes(),
    state,
    states[step],
  )
  if not jax.tree.all(equal):
    return 'restored other values'
  return 'previous used' if step == EARLIER else 'no effect'


def corrupt_all(seeds: range, folder: pathlib.Path) -> dict[str, list[str]]:
  """Makes a corruption for each seed; returns descriptions by outcome."""
  states = {step: make_state(0.2, step) for step in (EARLIER, LATER)}
  whole, damaged = folder / 'whole', folder / 'damaged'
  save(whole, states)
  results = collections.defaultdict(list)
  for seed in seeds:
    shutil.rmtree(damaged, ignore_errors=True)
    shutil.copytree(whole, damaged)
    text = corrupt(damaged / 'checkpoints' / str(LATER), seed)
    results[outcome(damaged, states)].append(text)
  return dict(results)


def time_checksums(
  megabytes: float, rounds: int, folder: pathlib.Path
) -> dict[str, float]:
  """Measures seconds of saving and restoring, and of the checksums in them."""
  state = jax.block_until_ready(make_state(megabytes))
  arrays = manifest.manifest_arrays_by_path(state)
  size = sum(x.nbytes for x in arrays.values())
  times = collections.defaultdict(list)
  for i in range(rounds):
    with checkpoint.Checkpoints(folder / f'{i}') as checkpoints:
      start = time.perf_counter()
      checkpoints.save(1, state)
      times['save, until training goes on'].append(time.perf_counter() - start)
      checkpoints.wait()
      times['save, until on disk'].append(time.perf_counter() - start)
      start = time.perf_counter()
      manifest.make_manifest(state, {})
      times['checksums'].append(time.perf_counter() - start)
      start = time.perf_counter()
      checkpoints.restore(abstract(state))
      times['restore'].append(time.perf_counter() - start)
    shutil.rmtree(folder / f'{i}')
  best = {name: min(values) for name, values in times.items()}
  return {
    'megabytes': size / 1e6,
    **best,
    'share of save': best['checksums'] / best['save, until on disk'],
    'share of restore': best['checksums'] / best['restore'],
  }


def main() -> None:
  """Runs the command line."""
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument('--corruptions', type=int, default=200)
  parser.add_argument('--megabytes', type=float, default=200)
  parser.add_argument('--rounds', type=int, default=3)
  parser.add_argument('--seed', type=int, default=0)
  parser.add_argument('--out', type=pathlib.Path)
  arguments = parser.parse_args()
  logging.disable(logging.ERROR)
  with tempfile.TemporaryDirectory() as folder:
    times = time_checksums(
      arguments.megabytes, arguments.rounds, pathlib.Path(folder)
    )
    seeds = range(arguments.seed, arguments.seed + arguments.corruptions)
    outcomes = corrupt_all(seeds, pathlib.Path(folder))
  counts = {name: len(texts) for name, texts in outcomes.items()}
  results = {'times': times, 'counts': counts, 'outcomes': outcomes}
  print(json.dumps({'times': times, 'counts': counts}, indent=1))
  if arguments.out:
    arguments.out.write_text(json.dumps(results, indent=1))


if __name__ == '__main__':
  main()
