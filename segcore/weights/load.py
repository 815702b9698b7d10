"""Parameters of another run or of a weight file, for the start of a training.

Whole parts are taken (encoder, decoder, heads), and each must match the network
whole: otherwise an error lists the names and shapes that differ. Two
differences of a hybrid transformer are resolved: its position table is resized
to another grid and freed of the class token, and a network that is only its
ResNet takes the ResNet.
"""

import math
import pathlib
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from runtime import console, errors, files, json_files
from segcore.models.layers import position_table
from segcore.weights import checkpoint_reader, weight_files
from segcore.weights.layouts import (
  efficientnet,
  google,
  mit,
  torchvision,
  vit,
)

_MAX_LINES = 8
_COLLECTIONS = ('params/', 'batch_stats/')
# From public names to those of this project; None if the names are others.
_TRANSLATORS = (
  efficientnet.translate_efficientnet_weights,
  torchvision.translate_torchvision_weights,
  vit.translate_vit_weights,
  mit.translate_mit_weights,
  google.translate_google_weights,
)
# Modules of a hybrid transformer's encoder in addition to its ResNet.
_TRANSFORMER = ('embedding', 'cls', 'Transformer')
_TABLE = ('Transformer', 'posembed_input', 'pos_embedding')

Grid = tuple[int, int]


def read_weight_variables(path: files.Path) -> dict[str, Any]:
  """Reads parameters and batch statistics from a folder or a file.

  Args:
    path: a stage's folder; a `checkpoints` or `best` folder; or a file (see
      `weight_files`), either with names of this project, like
      'params/encoder/conv_root/kernel', or with those of public weights (see
      `layouts`), whose classifier becomes a part beside the encoder.

  Returns:
    {'params': {part: tree}, 'batch_stats': {part: tree}}; 'grid', height and
    width of the position table, where they are known; and 'fields', those of
    the encoder that names show and shapes do not.

  Raises:
    UserError: the path does not exist, cannot be read or has unknown names.
  """
  if path.is_dir():
    inner = path / 'checkpoints'
    variables = checkpoint_reader.read_checkpoint_fields(
      inner if inner.is_dir() else path
    )
    encoder = read_encoder_settings(path)
    grid = {'grid': tuple(encoder['grid'])} if 'grid' in encoder else {}
    return {**variables, **grid}
  if not path.is_file():
    raise errors.UserError(
      f'{path} does not exist: expected the folder of a stage, or a file '
      f'{", ".join(weight_files.SUFFIXES)}'
    )
  flat = weight_files.read_weight_file(path)
  for translate in _TRANSLATORS:
    variables = translate(flat)
    if variables is not None:
      return {**variables, **_grid_of_table(variables['params'], str(path))}
  if not flat or not all(name.startswith(_COLLECTIONS) for name in flat):
    families = ' or '.join(layout.family for layout in google.LAYOUTS)
    raise errors.UserError(
      f'{path}: expected names that begin with params/ or batch_stats/, as '
      f'params/encoder/conv_root/kernel, those of public {families} weights, '
      "torch's of a ResNet or an EfficientNet, as layer1.0.conv1.weight, or of "
      'a ViT or a MiT, as blocks.0.attn.qkv.weight; got '
      f'{", ".join(sorted(flat)[:3]) or "none"}'
    )
  return traverse_util.unflatten_dict(
    {name: np.asarray(value) for name, value in flat.items()}, sep='/'
  )


def read_encoder_settings(path: files.Path) -> dict[str, Any]:
  """Reads name and fields of the encoder from the settings of a stage.

  Args:
    path: a stage's folder, or a `checkpoints` or `best` folder in one.

  Returns:
    The fields; {} if there are no settings, or none of a network.
  """
  stage = path if (path / 'checkpoints').is_dir() else path.parent
  settings = stage / 'settings.json'
  if not settings.exists():
    return {}
  network = json_files.read_json(settings)['settings'].get('network', {})
  return dict(network.get('encoder', {}))


def load_weight_parts(
  path: files.Path,
  parts: tuple[str, ...],
  segmenter: nn.Module,
  image_shape: tuple[int, ...],
) -> dict[str, Any]:
  """Reads parts of the parameters of a network, as `Update.init` expects them.

  Args:
    path: folder or file, as in `read_weight_variables`.
    parts: names of parts: 'encoder', 'decoder', 'heads', or of one head:
      'heads/logits'.
    segmenter: the network.
    image_shape: (B, H, W, 3) of its images.

  Raises:
    UserError: the weights cannot be read, or do not fit the network.
  """
  images = jax.ShapeDtypeStruct((1, *image_shape[1:]), np.float32)
  expected = jax.eval_shape(segmenter.init, jax.random.PRNGKey(0), images)
  grid = getattr(segmenter.encoder, 'grid', None)
  variables = read_weight_variables(path)
  return select_weight_parts(variables, expected, parts, str(path), grid)


def write_weights_npz(path: pathlib.Path, variables: Mapping[str, Any]) -> None:
  """Writes an `.npz` file that `read_weight_variables` reads."""
  flat = traverse_util.flatten_dict(jax.device_get(dict(variables)), sep='/')
  np.savez(path, **flat)


def select_weight_parts(
  variables: Mapping[str, Any],
  expected: Mapping[str, Any],
  parts: tuple[str, ...],
  origin: str,
  grid: Grid | None = None,
) -> dict[str, Any]:
  """Selects parts of variables, and fits and checks them for a network.

  A position table of another grid is resized (see `resize_position_table`). Its
  own grid is the one that was read with the variables; without one it is the
  network's grid if that has as many cells, else a square.

  Args:
    variables: variables by collection, as `read_weight_variables` returns them.
    expected: shapes of the network's {'params': …, 'batch_stats': …}.
    parts: names of parts: 'encoder', 'decoder', 'heads', or of one head:
      'heads/logits'.
    origin: folder or file that the variables come from, for messages.
    grid: height and width of the network's position table, if it has one.

  Returns:
    {'params': {part: tree}, 'batch_stats': {part: tree}}.

  Raises:
    UserError: a part is missing, or differs in names or shapes.
  """
  selected: dict[str, Any] = {'params': {}, 'batch_stats': {}}
  notes = []
  for part in parts:
    if not _subtree(variables['params'], part):
      raise errors.UserError(
        f'{origin} has no {part}; it has {", ".join(variables["params"])}'
      )
    if not _subtree(expected['params'], part):
      raise errors.UserError(f'the network has no {part} to take from {origin}')
    for collection, tree in selected.items():
      wanted = _subtree(expected.get(collection, {}), part)
      given = _subtree(variables.get(collection, {}), part)
      if (collection, part) == ('params', 'encoder'):
        given, notes = _fit_encoder(
          given, wanted, variables.get('grid'), grid, origin
        )
      _check_match(given, wanted, f'{collection}/{part}', origin)
      if wanted:
        *outer, name = part.split('/')
        for module in outer:
          tree = tree.setdefault(module, {})
        tree[name] = given
  taken = {part.split('/')[0] for part in parts}
  left_out = [name for name in variables['params'] if name not in taken]
  if left_out:
    notes = [f'left out {", ".join(left_out)}', *notes]
  console.print_line(
    '; '.join([f'took {", ".join(parts)} from {origin}', *notes])
  )
  return selected


def _subtree(tree: Mapping[str, Any], part: str) -> Any:
  """Returns the subtree of a part; {} if there is none."""
  for name in part.split('/'):
    tree = tree.get(name, {})
  return tree


def _fit_encoder(
  given: Any,
  wanted: Any,
  old_grid: Grid | None,
  new_grid: Grid | None,
  origin: str,
) -> tuple[Any, list[str]]:
  """Fits an encoder's parameters to a network.

  Args:
    given: parameters of the encoder that was read.
    wanted: shapes of the network's encoder.
    old_grid: height and width of the position table, if known.
    new_grid: height and width of the network's position table, if it has one.
    origin: folder or file that the parameters come from, for messages.

  Returns:
    The parameters, and notes on each change.
  """
  flat = traverse_util.flatten_dict(dict(given))
  wanted = traverse_util.flatten_dict(dict(wanted))
  if _TABLE not in flat:
    return given, []
  if _TABLE not in wanted:
    resnet = {k: x for k, x in given.items() if k not in _TRANSFORMER}
    left_out = [name for name in given if name in _TRANSFORMER]
    return resnet, [f'left out {", ".join(left_out)} of the encoder']
  notes, table = [], flat[_TABLE]
  if ('cls',) in flat and ('cls',) not in wanted:
    del flat['cls',]
    table = table[:, 1:]  # The first row is the class token's.
    notes.append('left out the class token and its position')
  num_cells = table.shape[1] - (('cls',) in flat)
  if new_grid and not old_grid:
    # A file has the number of cells only: 36 may be 6x6, or the 4x9 of a run
    # of this project, which is likelier if the network has 4x9, too.
    if num_cells == math.prod(new_grid):
      old_grid = new_grid
    else:
      old_grid = _square_grid(num_cells, origin)
  if new_grid and old_grid != new_grid:
    table = position_table.resize_position_table(
      jnp.asarray(table), old_grid, new_grid
    )
    notes.append(
      f'resized the position table from {old_grid[0]}x{old_grid[1]} to '
      f'{new_grid[0]}x{new_grid[1]}'
    )
  flat[_TABLE] = np.asarray(table)
  return traverse_util.unflatten_dict(flat), notes


def _grid_of_table(params: Mapping[str, Any], origin: str) -> dict[str, Grid]:
  """Returns {'grid': …} of public weights that have a position table.

  Their grid is a square: they are trained on square images.
  """
  encoder = params.get('encoder', {})
  flat = traverse_util.flatten_dict(dict(encoder))
  if _TABLE not in flat:
    return {}
  num_cells = flat[_TABLE].shape[1] - ('cls' in encoder)
  return {'grid': _square_grid(num_cells, origin)}


def _square_grid(num_cells: int, origin: str) -> Grid:
  side = math.isqrt(num_cells)
  if side * side != num_cells:
    raise errors.UserError(
      f'the position table of {origin}: expected a square number of cells, '
      f'since its height and width are unknown, got {num_cells}: give the '
      'folder of the stage, or build the network with the grid of the table'
    )
  return side, side


def _check_match(given: Any, wanted: Any, path: str, origin: str) -> None:
  """Raises UserError with a sorted diff if names or shapes differ."""
  given_shapes, wanted_shapes = (
    {
      '/'.join(name): tuple(leaf.shape)
      for name, leaf in traverse_util.flatten_dict(dict(tree)).items()
    }
    for tree in (given, wanted)
  )
  lines = [
    f'- {name}: expected {wanted_shapes.get(name, "nothing")}, got '
    f'{given_shapes.get(name, "nothing")}'
    for name in sorted({*given_shapes, *wanted_shapes})
    if given_shapes.get(name) != wanted_shapes.get(name)
  ]
  if not lines:
    return
  omitted = len(lines) - _MAX_LINES
  lines = lines[:_MAX_LINES]
  if omitted > 0:
    lines.append(f'- {omitted} more')
  raise errors.UserError(
    f'{path} of {origin} does not fit the network:\n' + '\n'.join(lines)
  )
