"""U2PL, U2PL+ and its baselines on PASCAL VOC 2012, as in the paper.

Labeled are the 1,464 images of VOC ('classic') or the 10,582 with those of SBD
('blender'), or a part of them; all others are without labels. The authors' own
partitions are files: `list=splits/92/labeled.txt`. Every row as a command:
docs/methods/u2pl_tables.md.

Data:  python -m input_pipeline.prepare voc2012 --source=…
Start: ImageNet weights of a ResNet-101 with a deep stem (.safetensors or .npz)
Run:   python -m u2pl.main --config=configs/u2pl_voc.py:labels=366
Cost:  5.9 TFLOPs an image, 51,080 steps of 16; see --dry_run.
"""

from configs import common, u2pl

# Images in all; of these the unlabeled ones are what is not labeled.
_NUM_IMAGES = 10582
# Which of them may be labeled.
_MOST_LABELS = {'classic': 1464, 'blender': _NUM_IMAGES}


def get_config(argument=None):
  options = common.parse(
    argument,
    system=u2pl.SYSTEMS,  # from U2PL+ down to labels alone
    **u2pl.SWITCHES,  # auto, on, off: parts of Table IV
    partition=['classic', 'blender'],  # what may be labeled
    labels=92,  # 92 183 366 732 1464, or 662 1323 2646 5291
    fraction=0.0,  # not here: `labels` decides, for the length of an epoch
    list='',  # file that names them; {labels} in it is their number
    seed=0,  # of the choice of labeled images and of training
    run=0,  # another choice of labeled images with the same seed
    epochs=80,  # of the unlabeled images; for sup_only of the labeled ones
    equal_steps=False,  # sup_only: as many steps as the others
    lr=1e-3,  # of the encoder; ten times that elsewhere
    batch=16,  # labeled images of a step, and as many unlabeled ones
    contrast_weight=0.1,  # of the contrastive loss
    anchor_entropy=['paper', 'released'],  # which pixels are anchors
    pad_label=['paper', 'ignored'],  # paper: what is filled up is background
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
  steps = u2pl.steps_per_epoch(
    options, _MOST_LABELS[options.partition], _NUM_IMAGES
  )
  config.train = common.block(
    data=common.data('voc2012'),
    split='train' if options.partition == 'classic' else 'train_aug',
    val_split='val',
    follow=(),  # splits that are evaluated along the way too
    subset=u2pl.listed_or_chosen(options),
    unlabeled='train_aug',
    learn=u2pl.learn(
      options,
      group=min(4, options.batch),  # images of one GPU of the authors
      bank=u2pl.BANK,
    ),
    heads=u2pl.heads(options.network),
    start=u2pl.published_start(options),
    crop={
      'name': 'random',
      'size': (512, 512) if options.network == 'transunet' else (513, 513),
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
      common.sgd(options.lr, groups=(('^(decoder|heads)/', 10.0, 1.0),)),
      steps,
    ),
  )
  config.train.recipe.seed = options.seed
  u2pl.set_contrast(config, options)
  config.evaluate = common.block(
    splits=('val',),
    batch_size=16,
    protocol=u2pl.framed(config.train.crop.size),
    which='best',
    framed=True,  # also with what is around images as background, as published
  )
  config.operation = common.operation()
  if options.tiny:
    u2pl.shrink(config)
  return config
