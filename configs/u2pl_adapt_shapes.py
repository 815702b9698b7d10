"""DAFormer, and U2PL+ on it, from shapes by day to shapes at dusk.

Images are drawn by a program: nothing has to be downloaded. The feature
distance is on where `encoder` names weights, which it keeps the encoder near.

Run:   python -m u2pl.main --config=configs/u2pl_adapt_shapes.py:system=daformer
Cost:  about 10 minutes on 2 CPU cores, by an estimate from `tiny`.
"""

from configs import adaptation, networks, shared
from configs import options as options_lib


def get_config(argument=None):
  options = options_lib.parse(
    argument,
    network=['unet', 'daformer'],  # ResNet with a U-Net, or a small MiT
    encoder='',  # a finished stage, or a weight file
    threshold=0.968,  # probability from which on the teacher is confident
    ema=0.99,  # decay of the EMA teacher
    steps=2000,
    lr=1.5e-3,
    **adaptation.OPTIONS,
  )
  domains = {'source': 'shapes/source', 'target': 'shapes/target'}
  if options.system == 'target_only':
    domains['source'] = domains['target']
  crop = {'name': 'random', 'size': (64, 64)}
  config = shared.block(
    program='u2pl.main',
    stages=('adapt', 'evaluate'),
    network=networks.small('unet')
    if options.network == 'unet'
    else adaptation.small_daformer(),
    adapt={
      'data': {'name': domains['source']},
      'target': {'data': {'name': domains['target']}, 'crop': crop},
      'crop': crop,
      'flips': ('horizontal', 'vertical'),
      'learn': _losses(options),
      # At the paper's 0.01 two of nine classes would have 97 % of the draws.
      'rare_classes': adaptation.rare_classes(
        options, temperature=0.05, min_pixels=50, min_crop_pixels=20
      ),
      'heads': {'width': 32, 'representation': 32},
      'start': shared.encoder_start(options.encoder),
      'recipe': shared.recipe(
        8,
        options.steps,
        shared.adam(options.lr, warmup_steps=50),
        evaluate_every=options.steps // 5,
      ),
    },
    evaluate={'splits': ('test', 'val'), 'batch_size': 40, 'protocol': {}},
  )
  config.adapt.recipe.seed = options.seed
  if options.tiny:
    adaptation.shorten(config)
  return config


def _losses(options):
  """Builds the losses for images of shapes, of 64 pixels a side."""
  return adaptation.losses(
    options,
    start_step=options.steps // 10,
    has_encoder=bool(options.encoder),
    self_training={
      'threshold': options.threshold,
      'ema_decay': options.ema,
      'ignored_top': 0,
      'ignored_bottom': 0,
    },
    # All but the background are things.
    feature_distance={'classes': tuple(range(1, 9))},
    contrast={
      'num_anchors': 64,
      'capacity': 2000,
      'first_capacity': 4000,
      'max_push': 256,
    },
  )
