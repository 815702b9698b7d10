"""PASS on `shapes`: single shapes are found, grouped and segmented, unlabeled.

Everything is generated here, nothing has to be downloaded.

Run:   python -m pass_luss.main --config=configs/pass_shapes.py:branch=swav
Cost:  8 minutes on 2 CPU cores, 3 of them for the longest training.
"""

from configs import common, luss

# Color says nothing of what a shape is, and learned features would be of
# little else. Blur would hide the patterns, which are a few pixels wide.
_GRAY = luss.jitter(0.5, saturation=0.0, hue=0.0, gray=1.0, blur=0.0)
# Both views show most of the shape.
_AREA = (0.5, 1.0)
_COLORS = {'large': (_GRAY, _GRAY), 'small': _GRAY, 'red_deviation': 0.229}


def get_config(argument=None):
  # The newer recipes are for images of 224 pixels.
  options = common.parse(argument, **{**luss.PASS, 'semi': ['pass']})
  config = common.block(program='pass_luss.main', data_dir='', without_files='')
  config.network = luss.small_network()
  config.images = common.block(data=common.data('shapes/single'), split='train')
  config.represent = _represent(options)
  config.distance = common.block(
    bank='train_semi',
    splits=('val', 'test'),
    neighbors=10,
    temperature=0.07,
    short_side=64,
    batch_size=40,
    rematch=False,
    accuracy_from='train',
    crop=64,
  )
  config.attend = _attend(options)
  config.cluster = common.block(
    kind=options.cluster,
    iterations=20,
    restarts=30,
    short_side=64,
    crop=64,
    batch_size=40,
    seed=options.seed,
  )
  config.label = common.block(
    threshold=luss.threshold(options, published=-1.0),
    choose_on='val',
    short_side=64,
    batch_size=40,
    saliency=options.saliency,
    report=('val', 'test'),
  )
  config.finetune = common.block(
    split='',  # the generated labels
    crop=luss.crop(64, 0.3),
    flips=('horizontal',),
    reduction=2,
    recipe=common.recipe(32, 600, luss.larc(0.6)),
  )
  config.segment = luss.segment(options)
  config.semi = common.block(
    split='train_semi',
    crop=luss.crop(64, 0.3),
    flips=('horizontal',),
    reduction=2,
    recipe=common.recipe(32, 400, luss.larc(0.6)),
  )
  config.segment_semi = luss.segment(options)
  config.segment_semi.inference = 'logits'
  for name in ('segment', 'segment_semi'):
    config[name].update(short_side=64, batch_size=40)
  config.stages = luss.stages(options)
  config.operation = common.operation()
  luss.set_seeds(config, options)
  if options.untrained:
    luss.forget(config)
  if options.tiny:
    luss.make_tiny(config)
  return config


def _represent(options):
  return common.block(
    data=common.data('shapes/single'),
    split='train',
    learn=luss.learn(
      options,
      queue=512,
      queue_from_step=600,
      frozen_steps=100,
      grid=7,
      hidden=256,
      size=64,
    ),
    # More prototypes than channels: else embeddings can avoid all of them. Few
    # of them, as many would tell backgrounds and sizes apart.
    widths={'hidden': 128, 'embedding': 16, 'prototypes': 40},
    large=luss.views('large', 2, 48, _AREA),
    small=None,
    colors=_COLORS,
    start=luss.start(options),
    recipe=common.recipe(
      64, 1000, common.adam(options.lr or 2e-3, warmup_steps=20), 500
    ),
  )


def _attend(options):
  return common.block(
    clusters={
      **luss.TARGETS,
      'queue': 512,
      'queue_from_step': 0,
      'frozen_steps': 0,
    },
    shared=options.shared_attention,
    large=luss.views('large', 2, 48, _AREA),
    colors=_COLORS,
    # LARC moves weights by less than a thousandth of their length a step: in
    # so few steps nothing would be learned.
    recipe=common.recipe(64, 300, common.adam(5e-3)),
  )
