"""Parameters from elsewhere: a finished stage's folder, or a weight file.

Whole parts are taken (encoder, decoder, heads) and must match whole: otherwise
a list of names and shapes says what differs.
"""

import pathlib
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import numpy as np
import safetensors
from flax import traverse_util

from input_pipeline import errors
from segcore import checkpoint, journal, torch_weights

_MOST_LINES = 8
_KINDS = ('params/', 'batch_stats/')
# From foreign names to ours; None if the names are not of their kind.
_TRANSLATORS = (torch_weights.translate,)


def read(path: pathlib.Path) -> dict[str, Any]:
  """Reads {'params': tree, 'batch_stats': tree}.

  Args:
    path: a stage's folder; a `checkpoints` or `best` folder; or an `.npz` or
      `.safetensors` file with names like 'params/encoder/conv_root/kernel', or
      with those of a kind of public weights (see `torch_weights`).

  Raises:
    UserError: nothing readable is there.
  """
  if path.is_dir():
    inner = path / 'checkpoints'
    return checkpoint.read(inner if inner.is_dir() else path)
  if not path.is_file():
    raise errors.UserError(
      f'{path} does not exist: expected the folder of a stage, or a .npz or '
      '.safetensors file'
    )
  if path.suffix in _READERS:
    flat = _read_file(path)
  else:
    raise errors.UserError(
      f'{path}: unknown kind of weight file, expected .npz or .safetensors'
    )
  for translate in _TRANSLATORS:
    if (found := translate(flat)) is not None:
      return found
  if not flat or not all(name.startswith(_KINDS) for name in flat):
    raise errors.UserError(
      f'{path} has names like {", ".join(sorted(flat)[:3])}: expected all to '
      'begin with params/ or batch_stats/, as params/encoder/conv_root/kernel, '
      "or torch's names of a ResNet, as layer1.0.conv1.weight"
    )
  return traverse_util.unflatten_dict(
    {tuple(name.split('/')): np.asarray(value) for name, value in flat.items()}
  )


def load(
  path: pathlib.Path,
  parts: tuple[str, ...],
  segmenter: nn.Module,
  image_shape: tuple[int, ...],
) -> dict[str, Any]:
  """Reads the named parts for a network, as `Update.init` takes them.

  Raises:
    UserError: nothing readable is there, or it does not fit the network.
  """
  images = jax.ShapeDtypeStruct((1, *image_shape[1:]), np.float32)
  expected = jax.eval_shape(segmenter.init, jax.random.PRNGKey(0), images)
  return take(read(path), expected, parts, str(path))


def write(path: pathlib.Path, variables: Mapping[str, Any]) -> None:
  """Writes an `.npz` file that `read` takes."""
  flat = traverse_util.flatten_dict(jax.device_get(dict(variables)), sep='/')
  np.savez(path, **flat)


def take(
  found: Mapping[str, Any],
  expected: Mapping[str, Any],
  parts: tuple[str, ...],
  origin: str,
) -> dict[str, Any]:
  """The named parts of what was read, checked against the network.

  Args:
    found: as `read` returns it.
    expected: shapes of the network's {'params': …, 'batch_stats': …}.
    parts: top-level names: 'encoder', 'decoder', 'heads'.
    origin: where it was read, for messages.

  Returns:
    {'params': {part: tree}, 'batch_stats': {part: tree}}.

  Raises:
    UserError: a part is missing or does not match whole.
  """
  taken: dict[str, Any] = {'params': {}, 'batch_stats': {}}
  for part in parts:
    if part not in found['params']:
      raise errors.UserError(
        f'{origin} has no {part}; it has {", ".join(found["params"])}'
      )
    if part not in expected['params']:
      raise errors.UserError(f'the network has no {part} to take from {origin}')
    for kind, tree in taken.items():
      want = expected.get(kind, {}).get(part, {})
      have = found.get(kind, {}).get(part, {})
      _check(have, want, f'{kind}/{part}', origin)
      if want:
        tree[part] = have
  left = [name for name in found['params'] if name not in parts]
  journal.say(
    f'took {", ".join(parts)} from {origin}'
    + (f'; left {", ".join(left)}' if left else '')
  )
  return taken


def _read_npz(path: pathlib.Path) -> dict[str, np.ndarray]:
  with np.load(path, allow_pickle=False) as file:
    return dict(file)


def _read_safetensors(path: pathlib.Path) -> dict[str, np.ndarray]:
  # As jax arrays: numpy has no bfloat16, and `load` fails on it.
  with safetensors.safe_open(path, 'flax') as file:
    return {name: np.asarray(file.get_tensor(name)) for name in file.keys()}  # noqa: SIM118


_READERS = {'.npz': _read_npz, '.safetensors': _read_safetensors}


def _read_file(path: pathlib.Path) -> dict[str, np.ndarray]:
  try:
    return _READERS[path.suffix](path)
  except Exception as error:
    raise errors.UserError(
      f'{path} is not a readable {path.suffix} file '
      f'({str(error).splitlines()[0]}): fetch it again'
    ) from error


def _check(have: Any, want: Any, path: str, origin: str) -> None:
  """Raises UserError with a sorted diff of names and shapes."""
  shapes = [
    {
      '/'.join(name): tuple(leaf.shape)
      for name, leaf in traverse_util.flatten_dict(dict(tree)).items()
    }
    for tree in (have, want)
  ]
  lines = [
    f'{name} found {shapes[0].get(name, "nothing")} expected '
    f'{shapes[1].get(name, "nothing")}'
    for name in sorted({*shapes[0], *shapes[1]})
    if shapes[0].get(name) != shapes[1].get(name)
  ]
  if lines:
    more = len(lines) - _MOST_LINES
    raise errors.UserError(
      f'{path} of {origin} does not fit the network: '
      + '; '.join(lines[:_MOST_LINES])
      + (f'; and {more} more' if more > 0 else '')
    )
