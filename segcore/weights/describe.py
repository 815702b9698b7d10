"""Descriptions of weight files: their encoder, missing parts, and use.

  for line in describe.describe_weights(pathlib.Path('resnet50.pth')):
    print(line)

The fields of the encoder are read from the shapes of the parameters; then the
encoder is built, and the parameters are compared with it as for a training.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from flax import traverse_util

from runtime import errors, files
from segcore.models import network
from segcore.models.encoders import efficientnet, mit, vit
from segcore.weights import load

# Names of the published ResNets by unit and blocks.
_RESNETS = {
  ('basic', (2, 2, 2, 2)): 'ResNet-18',
  ('basic', (3, 4, 6, 3)): 'ResNet-34',
  ('bottleneck', (3, 4, 6, 3)): 'ResNet-50',
  ('bottleneck', (3, 4, 23, 3)): 'ResNet-101',
  ('bottleneck', (3, 8, 36, 3)): 'ResNet-152',
}
# Cells of the position tables of DINO and DINOv2, by patch size.
_GRIDS = {16: (14, 14), 8: (28, 28), 14: (37, 37)}
_STEMS = {7: 'plain', 3: 'small'}
_PARTS = ('encoder', 'decoder', 'heads')
# Name, in configs, of the encoder that a weight file was made with.
OF_WEIGHTS = 'of_weights'

Tree = Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class _Encoder:
  """An encoder, as far as its parameters determine it.

  Attributes:
    name: name in the configs, as 'dilated_resnet'.
    fields: fields of the module that the parameters determine.
    title: published name; empty if it has none.
  """

  name: str
  fields: Mapping[str, Any]
  title: str = ''


def describe_weights(path: files.Path) -> Sequence[str]:
  """Describes a weight file, or the folder of a stage, in lines.

  Args:
    path: file or folder, as in `load.read_weight_variables`.

  Raises:
    UserError: it cannot be read, or its names are unknown.
  """
  return describe_variables(load.read_weight_variables(path), str(path))


def describe_variables(variables: Tree, path: str) -> Sequence[str]:
  """Describes parameters in lines.

  Args:
    variables: result of `load.read_weight_variables`; shapes instead of arrays
      do as well.
    path: file or folder that they were read from.
  """
  parts = variables['params']
  leaves = traverse_util.flatten_dict(dict(parts))
  count = sum(math.prod(x.shape) for x in leaves.values())
  lines = [
    f'{path}: {len(leaves)} parameters of {count / 1e6:.2f} M values',
    f'holds: {", ".join(parts)}',
  ]
  encoder = _find_encoder(variables)
  if encoder is None:
    return [*lines, 'encoder: none that is known, as by its names and shapes']
  fields = ', '.join(f'{k}={v!r}' for k, v in encoder.fields.items())
  title = f'{encoder.title}: ' if encoder.title else ''
  lines.append(f'encoder: {title}{encoder.name}({fields})')
  problem = _misfit(variables, encoder, path)
  if problem:
    return [*lines, problem]
  lacks = [part for part in _PARTS if part not in parts]
  if lacks:
    lines.append(f'lacks: {", ".join(lacks)}, which start at random')
  return [*lines, f'use: {_describe_use(path, encoder)}']


def _describe_use(path: str, encoder: _Encoder) -> str:
  """Describes the options and fields of a config that take an encoder."""
  network_option, named = _name_network(encoder)
  fields = {'name': encoder.name, **encoder.fields}
  if network_option:
    # A field that the name sets, and the file does not have, has its default.
    defaults = _defaults(encoder.name)
    wanted = {name: defaults[name] for name in named} | encoder.fields
    fields = {k: v for k, v in wanted.items() if named.get(k, defaults[k]) != v}
  flags = ' '.join(
    f'"--config.network.encoder.{name}={value!r}"'
    for name, value in fields.items()
  )
  if network_option:
    return f'network={network_option},encoder={path} {flags}'.rstrip()
  return f'encoder={path}, for a network with {flags}'


def _name_network(encoder: _Encoder) -> tuple[str, dict[str, Any]]:
  """Names the network of configs/networks.py that has an encoder.

  Returns:
    The value of the option `network`, and the fields that it gives the encoder;
    ('', {}) if no network has it.
  """
  fields = encoder.fields
  if encoder.name == 'efficientnet' and encoder.title:
    return f'efficientnet_{encoder.title[-5:].lower()}+unet', {**fields}
  if encoder.name == 'dilated_resnet' and encoder.title:
    deep = '_deep' if 'stem' not in fields else ''
    depth = encoder.title.removeprefix('ResNet-').split()[0]
    name = f'resnet{depth}{deep}' if depth != '152' else ''
    return (f'{name}+deeplabv3plus', {**fields}) if name else ('', {})
  if encoder.name == 'vit' and encoder.title:
    patch_size = fields.get('patch_size', _defaults('vit')['patch_size'])
    size = encoder.title[len('ViT-')].lower()
    if (size == 'l' and patch_size != 14) or patch_size not in _GRIDS:
      return '', {}
    named = {'grid': _GRIDS[patch_size]}
    named |= {'layer_scale': True} if patch_size == 14 else {}
    name, registers = f'vit_{size}{patch_size}', fields.get('num_registers', 0)
    if registers == 4 and patch_size == 14:
      name += '_reg'
      named |= {'num_registers': 4, 'position_rule': 'timm'}
    return f'{name}+dpt', named | {
      k: v
      for k, v in fields.items()
      if k in (*vit.SIZES['small'], 'patch_size')
    }
  if encoder.name == 'mit' and encoder.title:
    name = encoder.title.lower().replace('-', '_')
    named = {k: v for k, v in fields.items() if k in mit.SIZES['b0']}
    return f'{name}+segformer', named
  return '', {}


def encoder_of_weights(path: files.Path, variables: Tree) -> dict[str, Any]:
  """Determines the encoder that weights belong to.

  Args:
    path: file or folder, as in `load.read_weight_variables`.
    variables: its content, as `load.read_weight_variables` returns it.

  Returns:
    Name and fields of the encoder, as in a config: for the folder of a stage
    those it was trained with; for a file those that names and shapes determine.

  Raises:
    UserError: the encoder is unknown, or shapes do not determine all fields.
  """
  if path.is_dir() and (settings := load.read_encoder_settings(path)):
    return {
      name: tuple(value) if isinstance(value, list) else value
      for name, value in settings.items()
    }
  encoder = _find_encoder(variables)
  advice = 'set config.network.encoder to its name and fields'
  if encoder is None:
    raise errors.UserError(
      f'{path}: expected an encoder among {", ".join(network.ENCODERS)}, got '
      f'names and shapes of none: {advice}'
    )
  has_groups = hasattr(network.ENCODERS[encoder.name], 'num_groups')
  if has_groups and encoder.fields.get('width', 64) % 64:
    raise errors.UserError(
      f'{path}: expected an encoder of the published width, as shapes do not '
      f'tell its num_groups, got width={encoder.fields["width"]}: {advice}'
    )
  return {'name': encoder.name, **encoder.fields}


def _find_encoder(variables: Tree) -> _Encoder | None:
  """Returns the encoder that has such parameters; None if none has."""
  encoder = variables['params'].get('encoder', {})
  for read in _READERS:
    try:
      result = read(encoder, variables.get('grid'))
    except (LookupError, AttributeError, TypeError):
      continue  # It has not the modules of such an encoder.
    if result is not None:
      fields = {**result.fields, **variables.get('fields', {})}
      return dataclasses.replace(
        result, fields=_without_defaults(result.name, fields)
      )
  return None


def _without_defaults(name: str, fields: Tree) -> dict[str, Any]:
  """Returns the fields that differ from the defaults of the module."""
  defaults = _defaults(name)
  return {k: v for k, v in fields.items() if v != defaults[k]}


def _defaults(name: str) -> dict[str, Any]:
  """Returns the default of each field of an encoder's module."""
  return {
    field.name: field.default
    for field in dataclasses.fields(network.ENCODERS[name])
  }


def _count(tree: Tree, prefix: str) -> int:
  return sum(name.startswith(prefix) for name in tree)


def _blocks(encoder: Tree) -> tuple[int, ...]:
  """Returns the number of units in each block."""
  count = _count(encoder, 'block')
  return tuple(_count(encoder[f'block{i + 1}'], 'unit') for i in range(count))


def _dilated_resnet(encoder: Tree, grid: Any) -> _Encoder | None:
  del grid
  if 'bn_root' not in encoder:
    return None
  first = encoder['block1']['unit1']
  unit = 'bottleneck' if 'conv3' in first else 'basic'
  side = encoder['conv_root']['kernel'].shape[0]
  stem = 'deep' if 'conv_stem1' in encoder else _STEMS[side]
  blocks = _blocks(encoder)
  width = int(first['conv1']['kernel'].shape[-1])
  fields = {'blocks': blocks, 'width': width, 'stem': stem, 'unit': unit}
  title = _RESNETS.get((unit, blocks), '') if width == 64 else ''
  if title and stem == 'deep':
    title += ' with a deep stem'
  return _Encoder('dilated_resnet', fields, title)


def _efficientnet(encoder: Tree, grid: Any) -> _Encoder | None:
  del grid
  channels = [
    encoder[f'block{b + 1}']['project_conv']['kernel'].shape[-1]
    for b in range(_count(encoder, 'block'))
  ]
  for variant in efficientnet.SCALES:
    blocks = efficientnet.scale_blocks(variant)
    if channels == [block.channels for block in blocks]:
      title = f'EfficientNet-{variant.capitalize()}'
      return _Encoder('efficientnet', {'variant': variant}, title)
  return None


def _hybrid_vit(encoder: Tree, grid: tuple[int, int] | None) -> _Encoder:
  layers = encoder['Transformer']
  first = layers['encoderblock_0']
  query = first['MultiHeadDotProductAttention_0']['query']['kernel']
  fields = {
    'blocks': _blocks(encoder),
    'width': int(encoder['conv_root']['kernel'].shape[-1]),
    'hidden_size': int(query.shape[0]),
    'num_layers': _count(layers, 'encoderblock_'),
    'num_heads': int(query.shape[1]),
    'mlp_dim': int(first['MlpBlock_0']['Dense_0']['kernel'].shape[-1]),
    'use_cls_token': 'cls' in encoder,
    **({'grid': tuple(grid)} if grid else {}),
  }
  is_base = fields['num_layers'] == 12 and fields['hidden_size'] == 768
  title = 'R50+ViT-B/16' if is_base and fields['blocks'] == (3, 4, 9) else ''
  return _Encoder('hybrid_vit', fields, title)


def _vit(encoder: Tree, grid: tuple[int, int] | None) -> _Encoder:
  first = encoder['block0']
  qkv = first['attn']['qkv']
  registers = encoder.get('register_tokens')
  fields = {
    'hidden_size': int(qkv['kernel'].shape[0]),
    'num_layers': _count(encoder, 'block'),
    # No shape tells it; heads of all published sizes have 64 features.
    'num_heads': max(int(qkv['kernel'].shape[0]) // 64, 1),
    'mlp_dim': int(first['mlp']['fc1']['kernel'].shape[-1]),
  }
  sizes = [name[0].upper() for name, x in vit.SIZES.items() if x == fields]
  num_registers = 0 if registers is None else int(registers.shape[1])
  fields |= {
    'patch_size': int(encoder['patch_embed']['kernel'].shape[0]),
    'use_cls_token': 'cls_token' in encoder,
    'num_registers': num_registers,
    'qkv_bias': 'bias' in qkv,
    'layer_scale': 'ls1' in first,
    **({'grid': tuple(grid)} if grid else {}),
  }
  title = f'ViT-{sizes[0]}/{fields["patch_size"]}' if sizes else ''
  if title and num_registers:
    title += f' with {num_registers} registers'
  return _Encoder('vit', fields, title)


def _mit(encoder: Tree, grid: Any) -> _Encoder:
  del grid
  stages = [encoder['stage1']]
  stages += [
    encoder[f'stage{s + 1}'] for s in range(1, _count(encoder, 'stage'))
  ]
  sizes = [int(x['patch_embed']['kernel'].shape[-1]) for x in stages]
  blocks = [x['block0'] for x in stages]
  hidden = int(blocks[0]['mlp']['fc1']['kernel'].shape[-1])
  fields = {
    'hidden_sizes': tuple(sizes),
    'num_layers': tuple(_count(x, 'block') for x in stages),
  }
  names = [name for name, x in mit.SIZES.items() if x == fields]
  fields |= {
    # No shape tells it; all published sizes have one head in the first stage,
    # and heads of as many features in the others.
    'num_heads': tuple(n // sizes[0] for n in sizes),
    'reductions': tuple(
      int(x['attn']['sr']['kernel'].shape[0]) if 'sr' in x['attn'] else 1
      for x in blocks
    ),
    'mlp_ratio': hidden // sizes[0],
  }
  title = f'MiT-{names[0].upper()}' if names else ''
  return _Encoder('mit', fields, title)


def _bit(encoder: Tree, grid: Any) -> _Encoder | None:
  del grid
  if 'gn_last' not in encoder:
    return None
  return _with_groups('bit', encoder, 'BiT R50x1')


def _resnet(encoder: Tree, grid: Any) -> _Encoder:
  del grid
  return _with_groups('resnet', encoder, '')


def _with_groups(name: str, encoder: Tree, title: str) -> _Encoder:
  width = int(encoder['conv_root']['kernel'].shape[-1])
  fields = {'blocks': _blocks(encoder), 'width': width}
  is_published = fields == {'blocks': (3, 4, 6, 3), 'width': 64}
  return _Encoder(name, fields, title if is_published else '')


_READERS: tuple[Callable[[Tree, Any], _Encoder | None], ...] = (
  *(_dilated_resnet, _efficientnet, _hybrid_vit, _vit, _mit, _bit, _resnet),
)


def _misfit(variables: Tree, encoder: _Encoder, origin: str) -> str:
  """Describes how parameters differ from the encoder, as a training would."""
  fields = dict(encoder.fields)
  if hasattr(network.ENCODERS[encoder.name], 'num_groups'):
    # Shapes do not tell the number of groups; any divisor has the same ones.
    fields['num_groups'] = math.gcd(fields.get('width', 64), 32)
  module = network.ENCODERS[encoder.name](**fields)
  grid = getattr(module, 'grid', None)
  side = [module.size_multiple * n for n in grid] if grid else (64, 64)
  images = jax.ShapeDtypeStruct((1, *side, 3), np.float32)
  try:
    shapes = jax.eval_shape(module.init, jax.random.PRNGKey(0), images)
    expected = {name: {'encoder': tree} for name, tree in shapes.items()}
    load.select_weight_parts(variables, expected, ('encoder',), origin, grid)
  except (errors.UserError, ValueError, TypeError) as error:
    return str(error)
  return ''
