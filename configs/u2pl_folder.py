"""U2PL, U2PL+ and its baselines on your own images, of which few have masks.

Data:  a folder with images, masks of the same names, and a class list: see
       docs/own_data.md. With without_mask=unlabeled images may be
       without a mask; else the masks of those that are not among the labeled
       ones are used to say how good the pseudo-labels are, no more.
Run:   python -m u2pl.main \\
         --config=configs/u2pl_folder.py:source=roads,ignore=255,labels=20
Cost:  5 to 10 minutes on 2 CPU cores.
"""

from configs import common, u2pl


def get_config(argument=None):
  options = common.parse(
    argument,
    source='',  # folder of everything
    images='images',  # in the source
    masks='masks',  # in the source; same names as the images, PNG
    classes='classes.txt',  # in the source; a class a line: name, name #rrggbb
    ignore='',  # value or color of pixels without a class: 255 or #ffffff
    without_mask=['error', 'unlabeled'],  # of images that have none
    val_fraction=0.2,  # share of the images that is only evaluated on
    on_bad_example=['error', 'skip'],
    system=u2pl.SYSTEMS,  # from U2PL+ down to labels alone
    **u2pl.SWITCHES,  # auto, on, off: parts of Table IV
    labels=0,  # number of labeled images; 0: `fraction` decides
    # Share of the images that is labeled; 0: a quarter, or all that have masks
    # where others have none.
    fraction=0.0,
    list='',  # file that names the labeled images
    seed=0,  # of the choice of labeled images and of training
    run=0,  # another choice of labeled images with the same seed
    lr=0.0,  # 0: what stands below
    # Of 50 steps, of labeled images alone: until they have taught something.
    warmup_epochs=10,
    unlabeled_weight=0.3,  # of their loss; 1 in the papers, of good teachers
    contrast_weight=0.1,  # of the contrastive loss
    anchor_entropy=['paper', 'released'],  # which pixels are anchors
    # Negatives rank a class from here on; the papers' 3 needs more classes.
    low_rank=1,
    encoder='',  # a finished run's stage, or a weight file
    start='',  # the same, for the encoder and the decoder
    tiny=False,  # the same code, in a minute
  )
  apart = options.without_mask == 'unlabeled'
  if not (options.labels or options.list or apart):
    options.fraction = options.fraction or 0.25
  config = common.block(program='u2pl.main', data_dir='', without_files='')
  config.stages = ('train', 'evaluate')
  config.network = common.small_network(common.SMALL_RESNET)
  config.train = common.block(
    data=common.data(
      'image_mask_folder',
      source=options.source,
      images=options.images,
      masks=options.masks,
      classes=options.classes,
      ignore=options.ignore,
      without_mask=options.without_mask,
      val_fraction=options.val_fraction,
      on_bad_example=options.on_bad_example,
    ),
    split='train',
    val_split='val',
    follow=(),  # splits that are evaluated along the way too
    subset=common.subset(options),
    unlabeled='unlabeled' if apart else '',  # '': the rest of the split
    learn=u2pl.learn(
      options,
      group=4,
      bank={**u2pl.SMALL_BANK, 'low_rank': options.low_rank},
      warmup_epochs=options.warmup_epochs,
      weight=options.unlabeled_weight,
    ),
    heads={'kind': 'conv', 'width': 32, 'representation': 32},
    start=u2pl.start(options),
    crop={'name': 'inception', 'size': (96, 96), 'area': (0.05, 0.5)},
    flips=('horizontal',),
    steps_per_epoch=50,
    recipe=common.recipe(
      8, 1000, common.adam(options.lr or 2e-3, warmup_steps=50), 500
    ),
  )
  config.train.recipe.seed = options.seed
  u2pl.set_contrast(config, options)
  config.evaluate = common.block(
    splits=('val',),
    batch_size=8,
    # Images of many sizes run on a few canvases, continued by reflection.
    protocol=u2pl.protocol(size_multiple=64),
    which='last',
  )
  config.operation = common.operation()
  if options.tiny:
    u2pl.make_tiny(config)
  return config
