"""U2PL, U2PL+ and its baselines on CamVid: 1/16 of 367 photographs labeled.

The network is that of `ddep_camvid.py`, so a run of DDeP can be its start. Val
is one clip that lies inside a training sequence: its score is optimistic.

Data:  $SEG_DATA_DIR/camvid/{train,val}/{images,labels}
Run:   python -m u2pl.main --config=configs/u2pl_camvid.py:system=u2pl
Cost:  5 to 10 minutes on 2 CPU cores.
"""

from configs import common, u2pl


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
    unlabeled_weight=1.0,  # of the unlabeled images' loss
    contrast_weight=0.1,  # of the contrastive loss
    anchor_entropy=['paper', 'released'],  # which pixels are anchors
    source='',  # folder of the photographs; '' looks in $SEG_DATA_DIR
    encoder='',  # a finished run's stage, or a weight file
    start='',  # the same, for the encoder and the decoder
    width=1,  # factor of the decoder's channels
    tiny=False,  # the same code, in a minute
  )
  config = common.block(program='u2pl.main', data_dir='', without_files='')
  config.stages = ('train', 'evaluate')
  config.network = common.small_network(common.SMALL_RESNET, options.width)
  config.train = common.block(
    data=common.data('camvid', source=options.source),
    split='train',
    val_split='val',
    follow=(),  # splits that are evaluated along the way too
    subset=common.subset(options, labels=23),
    unlabeled='',  # the rest of the split
    learn=u2pl.learn(
      options,
      group=4,
      bank=u2pl.SMALL_BANK,
      warmup_epochs=10,
      weight=options.unlabeled_weight,
    ),
    heads={'kind': 'conv', 'width': 32, 'representation': 32},
    start=u2pl.start(options),
    crop={'name': 'inception', 'size': (96, 128), 'area': (0.25, 1.0)},
    flips=('horizontal',),
    steps_per_epoch=43,
    recipe=common.recipe(
      8, 1075, common.adam(options.lr or 7e-3, warmup_steps=50), 215
    ),
  )
  config.train.recipe.seed = options.seed
  u2pl.set_contrast(config, options)
  config.evaluate = common.block(
    splits=('val',),
    batch_size=8,
    # Trained on views of about this scale.
    protocol=u2pl.protocol(scales=(0.3,), antialias=True),
    which='last',
  )
  config.operation = common.operation()
  if options.tiny:
    u2pl.make_tiny(config)
  return config
