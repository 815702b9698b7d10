"""U2PL, U2PL+ and its baselines on `shapes`: few labeled scenes, many without.

The network is that of `ddep_shapes.py`, so a run of DDeP can be its start.

Run:   python -m u2pl.main --config=configs/u2pl_shapes.py:system=u2pl,labels=50
Cost:  3 to 5 minutes on 2 CPU cores.
"""

from configs import common, networks, u2pl


def get_config(argument=None):
  options = common.parse(
    argument,
    system=u2pl.SYSTEMS,  # from U2PL+ down to labels alone
    **u2pl.SWITCHES,  # auto, on, off: parts of Table IV
    labels=0,  # number of labeled images; 0: `fraction` decides
    fraction=0.0,  # share of the images that is labeled; 0: 1/16
    list='',  # file that names the labeled images
    seed=0,  # of the choice of labeled images and of training
    run=0,  # another choice of labeled images with the same seed
    lr=0.0,  # 0: what stands below
    # Of the unlabeled images' loss: at the paper's 1 the labels of a teacher
    # of 30 % mIoU do harm.
    unlabeled_weight=0.3,
    contrast_weight=0.1,  # of the contrastive loss
    anchor_entropy=['paper', 'released'],  # which pixels are anchors
    encoder='',  # a finished run's stage, or a weight file
    start='',  # the same, for the encoder and the decoder
    network=['unet', 'pass'],  # ResNet, or the encoder of `pass_shapes.py`
    width=1,  # factor of the decoder's channels
    tiny=False,  # the same code, in a minute
  )
  config = common.block(program='u2pl.main', data_dir='', without_files='')
  config.stages = ('train', 'evaluate')
  config.network = networks.small(options.network, options.width)
  config.train = common.block(
    data=common.data('shapes/scenes'),
    split='train',
    val_split='val',
    follow=(),  # splits that are evaluated along the way too
    subset=common.subset(options, labels=125),
    unlabeled='',  # the rest of the split
    learn=u2pl.learn(
      options,
      group=4,
      bank=u2pl.SMALL_BANK,
      # A teacher of less than 20 % mIoU teaches the frequent classes only.
      warmup_epochs=6,
      weight=options.unlabeled_weight,
    ),
    heads={'kind': 'conv', 'width': 32, 'representation': 32},
    start=u2pl.start(options),
    crop={'name': 'random', 'size': (64, 64)},
    flips=('horizontal', 'vertical'),
    steps_per_epoch=100,
    recipe=common.recipe(
      8, 1400, common.adam(options.lr or 1.5e-3, warmup_steps=50), 200
    ),
  )
  config.train.recipe.seed = options.seed
  u2pl.set_contrast(config, options)
  config.evaluate = common.block(
    splits=('test', 'val', 'train'),
    batch_size=40,
    protocol=u2pl.protocol(),
    which='last',
  )
  config.operation = common.operation()
  if options.tiny:
    u2pl.make_tiny(config)
  return config
