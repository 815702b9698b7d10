"""Blocks that several experiments share, as functions; and their options.

Options are what stands after the colon: `ddep_shapes.py:init=dep,tiny`.
"""

from types import SimpleNamespace
from typing import Any

import ml_collections


def parse(argument: str | None, **defaults: Any) -> SimpleNamespace:
  """Reads 'name=value,…' against declared options with their defaults.

  A value has the type of the default; a bare name sets a bool to True. A list
  of strings as a default means one of them, the first by default.

  Raises:
    ValueError: an unknown option, or a value of another type.
  """
  allowed = dict(defaults)
  values = {
    name: default[0] if isinstance(default, list) else default
    for name, default in defaults.items()
  }
  for item in filter(None, (argument or '').split(',')):
    name, _, text = item.partition('=')
    if name not in allowed:
      raise ValueError(
        f'config option {name!r} is unknown, expected some of '
        f'{", ".join(sorted(allowed))}'
      )
    if isinstance(allowed[name], bool):
      text = text or 'true'
    values[name] = _convert(name, text, allowed[name])
  return SimpleNamespace(**values)


def _convert(name: str, text: str, default: Any) -> Any:
  if isinstance(default, list):
    if text not in default:
      raise ValueError(
        f'config option {name}={text}: expected one of {", ".join(default)}'
      )
    return text
  if isinstance(default, bool):
    if text not in ('true', 'false'):
      raise ValueError(f'config option {name}={text}: expected true or false')
    return text == 'true'
  try:
    return type(default)(text)
  except ValueError:
    kind = type(default).__name__
    raise ValueError(f'config option {name}={text}: expected {kind}') from None


# The noise of denoising, as options; `noise` reads them.
NOISE = {
  'noise': ['scaled', 'simple'],
  'gamma': 0.0,  # share of the image's power that is kept; 0: the config's own
  'sigma': 0.0,  # instead of gamma: standard deviation, of images in [0, 1]
  'gamma_range': '',  # instead of gamma: each image has its own, 0.9-0.95
  'draw': ['uniform', 'linear', 'multiplicative'],  # from the range
  'noise_steps': 0,  # of the latter two
  'target': ['eps', 'x', 'eps_scaled'],  # what is predicted
}


def block(**fields: Any) -> ml_collections.ConfigDict:
  """A block of a config; nested dicts become blocks too."""
  return ml_collections.ConfigDict(fields)


def data(name: str, **fields: Any) -> ml_collections.ConfigDict:
  """A data set; `source` '' looks for its files in $SEG_DATA_DIR."""
  return block(**{'name': name, 'source': '', **fields})


# A ResNet of three short blocks, stride 16; for a CPU.
SMALL_RESNET = {
  'name': 'resnet',
  'blocks': (1, 1, 1),
  'width': 16,
  'num_groups': 8,
}


def small_network(
  encoder: dict[str, Any], width: int = 1
) -> ml_collections.ConfigDict:
  """A network for a CPU: an encoder of stride 16 and a narrow U-Net decoder."""
  return block(
    encoder=encoder,
    decoder={
      'name': 'unet',
      'widths': (64, 48, 32, 16, 16),
      'width_multiplier': width,
      'num_groups': 8,
    },
    dtype='float32',
    remat=False,
  )


def noise(options: SimpleNamespace, gamma: float) -> ml_collections.ConfigDict:
  """The noise of denoising.

  Args:
    options: with those of `NOISE`.
    gamma: where no strength was given.

  Raises:
    ValueError: the range is not LEAST-LARGEST.
  """
  given = options.gamma or options.sigma or options.gamma_range
  return block(
    kind=options.noise,
    gamma=options.gamma if given else gamma,
    sigma=options.sigma,
    gamma_range=_range(options.gamma_range),
    draw=options.draw,
    num_steps=options.noise_steps,
    target=options.target,
  )


def _range(text: str) -> tuple[float, float]:
  if not text:
    return 0.0, 0.0
  least, _, largest = text.partition('-')
  try:
    return float(least), float(largest)
  except ValueError:
    raise ValueError(
      f'config option gamma_range={text}: expected LEAST-LARGEST, as 0.9-0.95'
    ) from None


def operation(**fields: Any) -> ml_collections.ConfigDict:
  """How a run is carried out; nothing here changes what it computes."""
  return block(
    **{
      'log_every': 50,  # steps
      'save_every': 500,  # steps
      'fsdp': 1,  # devices that share one copy of the large parameters
      'record_ids': False,  # write the ids of each step's images
      'reading': {'threads': 2, 'buffered': 4, 'workers': 0},
      **fields,
    }
  )


def protocol(**fields: Any) -> ml_collections.ConfigDict:
  """How the network looks at an image when it is reported: whole, once."""
  return block(
    **{
      'tiles': 'whole',  # or 'halves', 'windows'
      'window': (0, 0),  # height, width
      'stride': (0, 0),  # of windows
      'scales': (1.0,),
      'flip': False,  # average with the mirrored image
      'average': 'probs',  # or 'logits'
      'antialias': False,  # blur images before shrinking them
      'canvas': 0,  # sides are multiples of it; 0: the network's stride
      **fields,
    }
  )


def adam(learning_rate: float, **fields: Any) -> ml_collections.ConfigDict:
  """Adam with a cosine schedule to 0."""
  return block(
    **{
      'name': 'adam',
      'learning_rate': learning_rate,
      'schedule': 'cosine',
      'warmup_steps': 0,
      'weight_decay': 0.0,
      'clip_norm': 1.0,
      **fields,
    }
  )


def recipe(
  batch_size: int,
  num_steps: int,
  optimizer: ml_collections.ConfigDict,
  evaluate_every: int = 0,
) -> ml_collections.ConfigDict:
  """Batch, length and optimiser of a training."""
  return block(
    batch_size=batch_size,
    num_steps=num_steps,
    optimizer=optimizer,
    accumulate=1,
    evaluate_every=evaluate_every,  # steps; 0: after the last one only
    seed=0,  # of fresh parameters, random draws, order of the images
  )


def subset(options: SimpleNamespace, labels: int = 0) -> Any:
  """The labelled images of a run: `labels`, `fraction` or `list`.

  Args:
    options: with these, seed and run.
    labels: where neither was given; 0 means all.
  """
  given = options.labels or options.fraction or options.list
  return block(
    labels=options.labels if given else labels,
    fraction=options.fraction or 1.0,
    seed=options.seed,
    run=options.run,
    nested=True,  # fewer images are among more of the same seed and run
    list=options.list,
  )


# What each kind of pretraining runs, and what the stages start from.
_INITS = {
  'ddep': {
    'stages': ('classify', 'denoise', 'finetune', 'evaluate'),
    'denoise': ('classify', ('encoder',), ('decoder', 'heads')),
    'finetune': ('denoise', ('encoder', 'decoder')),
  },
  'dep': {
    'stages': ('denoise', 'finetune', 'evaluate'),
    'denoise': ('', (), ('encoder', 'decoder', 'heads')),
    'finetune': ('denoise', ('encoder', 'decoder')),
  },
  'supervised': {
    'stages': ('classify', 'finetune', 'evaluate'),
    'denoise': ('', (), ('decoder', 'heads')),
    'finetune': ('classify', ('encoder',)),
  },
  'none': {
    'stages': ('finetune', 'evaluate'),
    'denoise': ('', (), ('decoder', 'heads')),
    'finetune': ('', ()),
  },
}


def set_init(config: ml_collections.ConfigDict, init: str) -> None:
  """Wires the stages of DDeP for a kind of pretraining.

  ddep: encoder from classification, decoder from denoising. dep: both from
  denoising. supervised: encoder from classification, decoder random. none: all
  random.
  """
  wiring = _INITS[init]
  config.stages = wiring['stages']
  path, take, trained = wiring['denoise']
  config.denoise.start = block(path=path, take=take)
  config.denoise.trained = trained
  path, take = wiring['finetune']
  config.finetune.start = block(path=path, take=take)


def set_seeds(
  config: ml_collections.ConfigDict, options: SimpleNamespace
) -> None:
  """`seed` is that of fine-tuning, `pretrain_seed` of what comes before.

  Runs that differ in `seed` only can so share their pretraining.
  """
  config.finetune.recipe.seed = options.seed
  for name in ('classify', 'denoise'):
    config[name].recipe.seed = options.pretrain_seed


def set_encoder(config: ml_collections.ConfigDict, path: str) -> None:
  """Takes the encoder from a finished run's stage or a weight file instead.

  The stage `classify` falls away.

  Raises:
    ValueError: nothing in this experiment starts from a classifier.
  """
  if 'classify' not in config.stages:
    raise ValueError(
      f'config option encoder={path}: nothing starts from an encoder here, '
      'expected init=ddep or init=supervised'
    )
  config.stages = tuple(s for s in config.stages if s != 'classify')
  for name in ('denoise', 'finetune'):
    if config[name].start.path == 'classify':
      config[name].start.path = path


def make_tiny(config: ml_collections.ConfigDict) -> None:
  """Cuts every stage to 60 steps; all else stays as it is."""
  for name in ('classify', 'denoise', 'finetune'):
    recipe = config[name].recipe
    recipe.num_steps = 60
    recipe.evaluate_every = 30 if recipe.evaluate_every else 0
    recipe.optimizer.warmup_steps = 5
  config.operation.update(log_every=10, save_every=20)
