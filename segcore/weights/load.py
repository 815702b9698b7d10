"""Parameters from elsewhere: a finished stage's folder, or a weight file.

Whole parts are taken (encoder, decoder, heads) and must match whole: otherwise
a list of names and shapes says what differs. Only a transformer is fitted to
the network: its position table to another grid, and to one without a class
token; a network that has none takes the ResNet before it.
"""

import math
import pathlib
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import safetensors
from flax import traverse_util

from runtime import console, errors, files, json_files
from segcore.models.layers import resize
from segcore.weights import checkpoint_reader
from segcore.weights.layouts import google, torchvision

_MOST_LINES = 8
_KINDS = ('params/', 'batch_stats/')
# From foreign names to ours; None if the names are not of their kind.
_TRANSLATORS = (torchvision.translate, google.translate)
# What a hybrid transformer has more than its ResNet.
_TRANSFORMER = ('embedding', 'cls', 'Transformer')
_TABLE = ('Transformer', 'posembed_input', 'pos_embedding')

Grid = tuple[int, int]


def read_variables(path: files.Path) -> dict[str, Any]:
  """Reads {'params': tree, 'batch_stats': tree}.

  'grid' is there too where the height and width of a position table are known.

  Args:
    path: a stage's folder; a `checkpoints` or `best` folder; or an `.npz` or
      `.safetensors` file, of this project with names like
      'params/encoder/conv_root/kernel', or a public one (see `public_weights`
      and `torch_weights`), whose classifier becomes parts of its own.

  Raises:
    UserError: nothing readable is there.
  """
  if path.is_dir():
    inner = path / 'checkpoints'
    found = checkpoint_reader.read(inner if inner.is_dir() else path)
    settings = (path if inner.is_dir() else path.parent) / 'settings.json'
    return {**found, **_grid_of_settings(settings)}
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
      return {**found, **_grid_of_table(found['params'], str(path))}
  if not flat or not all(name.startswith(_KINDS) for name in flat):
    families = ' or '.join(x.family for x in google.LAYOUTS)
    raise errors.UserError(
      f'{path} has names like {", ".join(sorted(flat)[:3])}: expected all to '
      'begin with params/ or batch_stats/, as params/encoder/conv_root/kernel, '
      f"or the names of public {families} weights, or torch's of a ResNet, as "
      'layer1.0.conv1.weight'
    )
  return traverse_util.unflatten_dict(
    {name: np.asarray(value) for name, value in flat.items()}, sep='/'
  )


def load_parts(
  path: files.Path,
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
  grid = getattr(segmenter.encoder, 'grid', None)
  return select_parts(read_variables(path), expected, parts, str(path), grid)


def write_npz(path: pathlib.Path, variables: Mapping[str, Any]) -> None:
  """Writes an `.npz` file that `read_variables` takes."""
  flat = traverse_util.flatten_dict(jax.device_get(dict(variables)), sep='/')
  np.savez(path, **flat)


def select_parts(
  found: Mapping[str, Any],
  expected: Mapping[str, Any],
  parts: tuple[str, ...],
  origin: str,
  grid: Grid | None = None,
) -> dict[str, Any]:
  """The named parts of what was read, fitted and checked against the network.

  A position table of another grid is resized (see `resize_position_table`). The
  grid it comes from is the one that was read, else the network's if that has
  as many cells, else a square.

  Args:
    found: as `read_variables` returns it.
    expected: shapes of the network's {'params': …, 'batch_stats': …}.
    parts: names: 'encoder', 'decoder', 'heads'; or one head, 'heads/logits'.
    origin: where it was read, for messages.
    grid: height and width of the network's position table, if it has one.

  Returns:
    {'params': {part: tree}, 'batch_stats': {part: tree}}.

  Raises:
    UserError: a part is missing or does not match whole.
  """
  taken: dict[str, Any] = {'params': {}, 'batch_stats': {}}
  notes = []
  for part in parts:
    if not _at(found['params'], part):
      raise errors.UserError(
        f'{origin} has no {part}; it has {", ".join(found["params"])}'
      )
    if not _at(expected['params'], part):
      raise errors.UserError(f'the network has no {part} to take from {origin}')
    for kind, tree in taken.items():
      want = _at(expected.get(kind, {}), part)
      have = _at(found.get(kind, {}), part)
      if (kind, part) == ('params', 'encoder'):
        have, notes = _fit(have, want, found.get('grid'), grid, origin)
      _check(have, want, f'{kind}/{part}', origin)
      if want:
        top, *below = part.split('/')
        for name in below:
          tree = tree.setdefault(top, {})
          top = name
        tree[top] = have
  touched = {part.split('/')[0] for part in parts}
  left = [name for name in found['params'] if name not in touched]
  if left:
    notes = [f'left {", ".join(left)}', *notes]
  console.log('; '.join([f'took {", ".join(parts)} from {origin}', *notes]))
  return taken


def _at(tree: Mapping[str, Any], part: str) -> Any:
  """The subtree of a part; {} if there is none."""
  for name in part.split('/'):
    tree = tree.get(name, {})
  return tree


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


def _grid_of_settings(path: files.Path) -> dict[str, Grid]:
  """The grid that a stage's network was built with, if its config gave one."""
  if not path.exists():
    return {}
  settings = json_files.read(path)['settings']
  encoder = settings.get('network', {}).get('encoder', {})
  return {'grid': tuple(encoder['grid'])} if 'grid' in encoder else {}


def _fit(
  have: Any, want: Any, old: Grid | None, new: Grid | None, origin: str
) -> tuple[Any, list[str]]:
  """An encoder's parameters for this network, and what was done to them."""
  flat, wanted = map(traverse_util.flatten_dict, (dict(have), dict(want)))
  if _TABLE not in flat:
    return have, []
  if _TABLE not in wanted:
    kept = {k: x for k, x in have.items() if k not in _TRANSFORMER}
    left = [name for name in have if name in _TRANSFORMER]
    return kept, [f'left {", ".join(left)} of the encoder']
  notes, table = [], flat[_TABLE]
  if ('cls',) in flat and ('cls',) not in wanted:
    del flat['cls',]
    table = table[:, 1:]
    notes.append('left the class token and its position')
  cells = table.shape[1] - (('cls',) in flat)
  if new and not old:
    old = new if cells == math.prod(new) else _square(cells, origin)
  if new and old != new:
    table = resize.resize_position_table(jnp.asarray(table), old, new)
    notes.append(
      f'resized the position table from {old[0]}x{old[1]} to {new[0]}x{new[1]}'
    )
  flat[_TABLE] = np.asarray(table)
  return traverse_util.unflatten_dict(flat), notes


def _grid_of_table(params: Mapping[str, Any], origin: str) -> dict[str, Grid]:
  """The grid of a file's position table, if it has one."""
  encoder = params.get('encoder', {})
  flat = traverse_util.flatten_dict(dict(encoder))
  if _TABLE not in flat:
    return {}
  cells = flat[_TABLE].shape[1] - ('cls' in encoder)
  return {'grid': _square(cells, origin)}


def _square(cells: int, origin: str) -> Grid:
  """The grid that a position table is taken for where nothing says it."""
  side = math.isqrt(cells)
  if side * side != cells:
    raise errors.UserError(
      f'the position table of {origin} has {cells} cells, which is no square, '
      "and nothing says their height and width: give the folder of the run's "
      'stage, or build the network with the grid it comes from'
    )
  return side, side


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
