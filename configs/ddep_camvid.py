"""Denoising pretraining on CamVid: 367 photographs of streets, 11 classes.

By default the whole U-Net learns to denoise the photographs (DeP) and is then
fine-tuned on the labeled ones. With `init=ddep` the encoder was trained on
image-level labels, here or elsewhere (`encoder=`), and the decoder denoises.

Val is one clip that lies inside a training sequence: its score is optimistic.

Data:  $SEG_DATA_DIR/camvid/{train,val}/{images,labels}
Run:   python -m ddep.main --config=configs/ddep_camvid.py
Cost:  3 to 5 minutes a stage on 2 CPU cores.
"""

from configs import common


def get_config(argument=None):
  options = common.parse(
    argument,
    init=['dep', 'ddep', 'supervised', 'none'],
    labels=0,  # number of labeled images; 0: `fraction` decides
    fraction=0.0,  # share of the images that is labeled; 0: all
    list='',  # file that names the labeled images
    seed=0,  # of the choice of labeled images and of fine-tuning
    run=0,  # another choice of labeled images with the same seed
    pretrain_seed=0,  # of the stages before
    lr=0.0,  # of fine-tuning; 0: what stands below
    width=1,  # factor of the decoder's channels
    source='',  # folder of the photographs; '' looks in $SEG_DATA_DIR
    encoder='',  # a finished run's stage, or a weight file
    **common.NOISE,  # noise, gamma, target, …
    tiny=False,  # the same code, in a minute a stage
  )
  config = common.block(program='ddep.main', data_dir='')

  config.network = common.small_network(common.SMALL_RESNET, options.width)

  config.classify = common.block(
    data=common.data('camvid', source=options.source),
    split='train',
    val_split='val',
    kind='sigmoid',  # an image has several classes
    crop={'name': 'inception', 'size': (96, 128), 'area': (0.1, 1.0)},
    flips=('horizontal',),
    recipe=common.recipe(16, 800, common.adam(1e-3, warmup_steps=50), 400),
  )
  config.denoise = common.block(
    data=common.data('camvid', source=options.source),
    split='train',
    val_split='val',
    noise=common.noise(options, gamma=0.95),
    crop={'name': 'inception', 'size': (96, 128), 'area': (0.25, 1.0)},
    flips=('horizontal',),
    recipe=common.recipe(8, 600, common.adam(2e-3, warmup_steps=50), 200),
  )
  config.finetune = common.block(
    data=common.data('camvid', source=options.source),
    split='train',
    val_split='val',
    follow=(),  # splits that are evaluated along the way too
    subset=common.subset(options),
    crop={'name': 'inception', 'size': (96, 128), 'area': (0.25, 1.0)},
    flips=('horizontal',),
    recipe=common.recipe(
      8, 1200, common.adam(options.lr or 7e-3, warmup_steps=50), 400
    ),
  )
  config.evaluate = common.block(
    splits=('val',),
    batch_size=8,
    # Trained on views of about this scale.
    protocol=common.protocol(scales=(0.3,), antialias=True),
    which='last',
  )
  config.operation = common.operation()
  common.set_init(config, options.init)
  common.set_seeds(config, options)
  if options.encoder:
    common.set_encoder(config, options.encoder)
  if options.tiny:
    common.make_tiny(config)
  return config
