"""U2PL, U2PL+ and its baselines on Cityscapes, as in the paper (with CutMix).

Hard pixels and an auxiliary head in the supervised loss; windows of 769 pixels
in the evaluation. U2PL's rows of the paper's Table II stand on AEL, which is
not here; docs/methods/u2pl_tables.md has a command for every row.

Data:  python -m input_pipeline.prepare cityscapes/fine --source=…
Start: ImageNet weights of a ResNet-101 with a deep stem (.safetensors or .npz)
Run:   python -m u2pl.main --config=configs/u2pl_cityscapes.py:labels=372
Cost:  13.4 TFLOPs an image, 32,400 steps of 16; see --dry_run.
"""

from configs import common, u2pl

_NUM_IMAGES = 2975


def get_config(argument=None):
  options = common.parse(
    argument,
    system=u2pl.SYSTEMS,  # from U2PL+ down to labels alone
    **u2pl.SWITCHES,  # auto, on, off: parts of Table IV
    labels=186,  # 186 372 744 1488
    fraction=0.0,  # not here: `labels` decides, for the length of an epoch
    list='',  # file that names them; {labels} in it is their number
    seed=0,  # of the choice of labeled images and of training
    run=0,  # another choice of labeled images with the same seed
    epochs=200,  # of the unlabeled images; for sup_only of the labeled ones
    equal_steps=False,  # sup_only: as many steps as the others
    lr=1e-2,  # of everything
    batch=16,  # labeled images of a step, and as many unlabeled ones
    contrast_weight=0.1,  # of the contrastive loss
    anchor_entropy=['paper', 'released'],  # which pixels are anchors
    pad_label=['paper', 'ignored'],  # paper: what is filled up is road
    network=['resnet101', 'resnet50', 'transunet'],
    encoder='auto',  # the ImageNet weights of the network; '': random
    start='',  # a finished run, for the encoder and the decoder
    tiny=False,  # the same code on drawn images, in a minute
  )
  config = common.block(
    program='u2pl.main', data_dir='', without_files=common.TINY
  )
  config.stages = ('train', 'evaluate')
  config.network = u2pl.deeplab(options.network)
  steps = u2pl.steps_per_epoch(options, _NUM_IMAGES, _NUM_IMAGES)
  convolutional = options.network != 'transunet'
  size = (769, 769) if convolutional else (768, 768)
  config.train = common.block(
    data=common.data('cityscapes/fine'),
    split='train',
    val_split='val',
    follow=(),  # splits that are evaluated along the way too
    subset=u2pl.listed_or_chosen(options),
    unlabeled='',  # the rest of the split
    learn=u2pl.learn(
      options,
      group=min(2, options.batch),  # images of one GPU of the authors
      bank=u2pl.BANK,
      supervised={
        'kind': 'ohem',
        'threshold': 0.7,
        'kept_per_image': 50_000,
        'auxiliary': 0.4 if convolutional else 0.0,
      },
      warmup_epochs=0,
    ),
    heads=u2pl.heads(options.network),
    start=u2pl.published_start(options),
    crop={
      'name': 'random',
      'size': size,
      'scales': (0.5, 2.0),
      'balanced': True,
      'centered': True,
      'fill': u2pl.border(options),
    },
    flips=('horizontal',),
    steps_per_epoch=steps,
    recipe=common.recipe(
      options.batch,
      steps * options.epochs,
      common.sgd(options.lr, weight_decay=5e-4),
      10 * steps,
    ),
  )
  config.train.recipe.seed = options.seed
  u2pl.set_contrast(config, options)
  config.evaluate = common.block(
    splits=('val',),
    batch_size=8,
    # Two thirds of a window, rounded up.
    protocol=u2pl.protocol(
      tiling='sliding_window', window=size, stride=(-(-2 * size[0] // 3),) * 2
    ),
    which='last',
  )
  config.operation = common.operation()
  if options.tiny:
    u2pl.shrink(config)
  return config
