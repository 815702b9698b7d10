"""Fake checkpoints of MiT, with the names of published ones."""

import numpy as np

SMALL = {
  'sizes': (8, 16, 24, 16),
  'layers': (1, 2, 1, 1),
  'reductions': (8, 4, 2, 1),
}
B0 = {
  'sizes': (32, 64, 160, 256),
  'layers': (2, 2, 2, 2),
  'reductions': (8, 4, 2, 1),
}

# Modules of a block, and their names in transformers.
_HUGGINGFACE = {
  'norm1': 'layer_norm_1',
  'norm2': 'layer_norm_2',
  'attn.q': 'attention.self.query',
  'attn.sr': 'attention.self.sr',
  'attn.norm': 'attention.self.layer_norm',
  'attn.proj': 'attention.output.dense',
  'mlp.fc1': 'mlp.dense1',
  'mlp.dwconv.dwconv': 'mlp.dwconv.dwconv',
  'mlp.fc2': 'mlp.dense2',
}


def official(sizes, layers, reductions, classes=0):
  """Draws a state dict as of `mit_b0.pth`, with a classifier if asked for."""
  rng = np.random.default_rng(1)
  state = {}

  def draw(name, *shape, mean=0.0, deviation=0.3):
    value = rng.standard_normal(shape, np.float32)
    state[name] = np.float32(mean) + np.float32(deviation) * value

  def linear(name, *shape):
    fan_in = np.prod(shape[1:])
    draw(f'{name}.weight', *shape, deviation=fan_in**-0.5)
    draw(f'{name}.bias', shape[0])

  def norm(name, size):
    draw(f'{name}.weight', size, mean=1.0)
    draw(f'{name}.bias', size)

  before = 3
  for s, (size, num_blocks, r) in enumerate(
    zip(sizes, layers, reductions, strict=True), 1
  ):
    k = 7 if s == 1 else 3
    linear(f'patch_embed{s}.proj', size, before, k, k)
    norm(f'patch_embed{s}.norm', size)
    for i in range(num_blocks):
      name = f'block{s}.{i}'
      norm(f'{name}.norm1', size)
      linear(f'{name}.attn.q', size, size)
      linear(f'{name}.attn.kv', 2 * size, size)
      linear(f'{name}.attn.proj', size, size)
      if r > 1:
        linear(f'{name}.attn.sr', size, size, r, r)
        norm(f'{name}.attn.norm', size)
      norm(f'{name}.norm2', size)
      linear(f'{name}.mlp.fc1', 4 * size, size)
      linear(f'{name}.mlp.dwconv.dwconv', 4 * size, 1, 3, 3)
      linear(f'{name}.mlp.fc2', size, 4 * size)
    norm(f'norm{s}', size)
    before = size
  if classes:
    linear('head', classes, before)
  return state


def huggingface(state, prefix='segformer.encoder.'):
  """Returns arrays as transformers' SegFormer has them."""
  renamed = {}
  for name, x in state.items():
    module, leaf = name.rsplit('.', 1)
    top, _, rest = module.partition('.')
    if top == 'head':
      renamed[f'classifier.{leaf}'] = x
      continue
    stage = int(top[-1]) - 1
    if top.startswith('block'):
      index, _, part = rest.partition('.')
      block = f'{prefix}block.{stage}.{index}'
      if part == 'attn.kv':
        for half, value in zip(('key', 'value'), np.split(x, 2), strict=True):
          renamed[f'{block}.attention.self.{half}.{leaf}'] = value
      else:
        renamed[f'{block}.{_HUGGINGFACE[part]}.{leaf}'] = x
    elif top.startswith('patch_embed'):
      part = {'proj': 'proj', 'norm': 'layer_norm'}[rest]
      renamed[f'{prefix}patch_embeddings.{stage}.{part}.{leaf}'] = x
    else:
      renamed[f'{prefix}layer_norm.{stage}.{leaf}'] = x
  return renamed
