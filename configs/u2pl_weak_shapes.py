"""AFA and U2PL+ on it, from the classes of generated images of shapes.

Images are drawn by a program: nothing has to be downloaded, and the network
starts from random values. system=full is training on the masks. CAMs of a
classifier that does not know the classes are of no use: train one first.

Run:   python -m u2pl.main --config=configs/u2pl_weak_shapes.py:system=cam \
         --workdir=runs/tags
       python -m u2pl.main \
         --config=configs/u2pl_weak_shapes.py:system=afa,encoder=runs/tags/weak
Cost:  about 15 minutes on 2 CPU cores, by an estimate from `tiny`.
"""

from configs import options as options_lib
from configs import shared, weak


def get_config(argument=None):
  options = options_lib.parse(
    argument,
    network=['mit', 'resnet'],  # a ResNet has no attention for affinities
    data=['scenes', 'single'],  # 1 to 4 objects in an image, or 1
    pooling=['max', 'mean'],  # of the features that tags are predicted from
    encoder='',  # a finished stage, or a weight file
    steps=3000,
    lr=1.5e-3,
    **weak.OPTIONS,
  )
  if options.system == 'full' and options.pooling != 'max':
    raise ValueError(
      f'config option pooling={options.pooling}: expected none with '
      'system=full, which predicts no tags'
    )
  attends = options.network == 'mit'
  config = shared.block(
    program='u2pl.main',
    stages=('weak', 'evaluate'),
    network=weak.small_mit() if attends else weak.small_resnet(),
    weak={
      'data': {'name': f'shapes/{options.data}'},
      'crop': {
        'name': 'random',
        'size': (64, 64),
        'scales': (0.75, 1.5),
        'fill': 'black',
      },
      'flips': ('horizontal', 'vertical'),
      'learn': weak.small_losses(options, options.steps, attends),
      'heads': {'width': 32, 'representation': 32},
      'start': shared.encoder_start(options.encoder),
      'recipe': shared.recipe(
        16,
        options.steps,
        shared.adam(options.lr, warmup_steps=50),
        evaluate_every=options.steps // 5,
      ),
    },
    evaluate={
      'cam_refinement': weak.cam_refinement(options),
      'splits': ('test', 'val'),
      'batch_size': 40,
      'protocol': {'flip': True, 'crf': options.crf},
    },
  )
  config.weak.recipe.seed = options.seed
  if options.tiny:
    weak.shorten(config, options)
  if options.system != 'full':
    config.weak.learn.pooling = options.pooling
  return config
