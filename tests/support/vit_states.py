"""Fake checkpoints of vision transformers, with the names of published ones."""

import numpy as np


def dino(
  size=12, num_layers=2, patch=4, grid=3, registers=0, layer_scale=False
):
  """Draws a state dict of DINO; of DINOv2 with registers or layer scale."""
  rng = np.random.default_rng(1)
  state = {}

  def draw(name, *shape, mean=0.0, deviation=0.3):
    value = mean + deviation * rng.normal(size=shape)
    state[name] = value.astype(np.float32)

  def linear(name, outputs, inputs):
    draw(f'{name}.weight', outputs, inputs, deviation=inputs**-0.5)
    draw(f'{name}.bias', outputs)

  def norm(name):
    draw(f'{name}.weight', size, mean=1.0)
    draw(f'{name}.bias', size)

  draw('cls_token', 1, 1, size)
  draw('pos_embed', 1, grid * grid + 1, size)
  if registers:
    draw('register_tokens', 1, registers, size)
  if layer_scale:
    draw('mask_token', 1, size)
  draw('patch_embed.proj.weight', size, 3, patch, patch)
  draw('patch_embed.proj.bias', size)
  for i in range(num_layers):
    name = f'blocks.{i}'
    norm(f'{name}.norm1')
    linear(f'{name}.attn.qkv', 3 * size, size)
    linear(f'{name}.attn.proj', size, size)
    if layer_scale:
      draw(f'{name}.ls1.gamma', size)
    norm(f'{name}.norm2')
    linear(f'{name}.mlp.fc1', 4 * size, size)
    linear(f'{name}.mlp.fc2', size, 4 * size)
    if layer_scale:
      draw(f'{name}.ls2.gamma', size)
  norm('norm')
  return state


def timm_with_registers(state):
  """Returns DINOv2's arrays as timm has them: the class position is added."""
  state = {k: x for k, x in state.items() if k != 'mask_token'}
  table = state['pos_embed']
  state['reg_token'] = state.pop('register_tokens')
  state['cls_token'] = state['cls_token'] + table[:, :1]
  state['pos_embed'] = table[:, 1:]
  return state


def dinov2_training(state):
  """Returns arrays as DINOv2's trainings have them: blocks in chunks."""
  renamed = {}
  for name, x in state.items():
    parts = name.split('.')
    if parts[0] == 'blocks':
      parts.insert(1, str(int(parts[1]) // 2))
    renamed[f'backbone.{".".join(parts)}'] = x
  renamed['dino_head.mlp.0.weight'] = np.ones((2, 2), np.float32)
  renamed['ibot_head.mlp.0.weight'] = np.ones((2, 2), np.float32)
  return renamed


def huggingface(state, prefix='', family='dinov2'):
  """Returns arrays as transformers' Dinov2 or ViT has them."""
  mlp = {
    'dinov2': ('norm1', 'norm2', 'mlp.fc1', 'mlp.fc2'),
    'vit': (
      'layernorm_before',
      'layernorm_after',
      'intermediate.dense',
      'output.dense',
    ),
  }[family]
  inner = dict(zip(('norm1', 'norm2', 'mlp.fc1', 'mlp.fc2'), mlp, strict=True))
  inner |= {
    'attn.proj': 'attention.output.dense',
    'ls1': 'layer_scale1',
    'ls2': 'layer_scale2',
  }
  top = {
    'pos_embed': 'embeddings.position_embeddings',
    'patch_embed.proj.weight': 'embeddings.patch_embeddings.projection.weight',
    'patch_embed.proj.bias': 'embeddings.patch_embeddings.projection.bias',
    'norm.weight': 'layernorm.weight',
    'norm.bias': 'layernorm.bias',
  }
  renamed = {}
  for name, x in state.items():
    if not name.startswith('blocks.'):
      renamed[top.get(name, f'embeddings.{name}')] = x
      continue
    _, index, rest = name.split('.', 2)
    module, leaf = rest.rsplit('.', 1)
    layer = f'encoder.layer.{index}'
    if module == 'attn.qkv':
      for part, value in zip(
        ('query', 'key', 'value'), np.split(x, 3), strict=True
      ):
        renamed[f'{layer}.attention.attention.{part}.{leaf}'] = value
      continue
    leaf = 'lambda1' if leaf == 'gamma' else leaf
    renamed[f'{layer}.{inner[module]}.{leaf}'] = x
  return {f'{prefix}{name}': x for name, x in renamed.items()}
