"""DDeP on `shapes`: an encoder learns to classify, a decoder to denoise.

Both are then fine-tuned on few labeled scenes. Everything is generated here,
nothing has to be downloaded.

Run:   python -m ddep.main --config=configs/ddep_shapes.py:init=ddep,labels=100
Cost:  2 to 3 minutes a stage on 2 CPU cores.
"""

from configs import common, luss

# By option `network`: ResNet, hybrid ViT, or the encoder of `pass_shapes.py`.
_NETWORKS = {
  'unet': common.SMALL_RESNET,
  'transunet': common.SMALL_VIT,
  'pass': luss.SMALL_RESNET,
}


def get_config(argument=None):
  options = common.parse(
    argument,
    init=['ddep', 'dep', 'supervised', 'none'],
    labels=0,  # number of labeled images; 0: `fraction` decides
    fraction=0.0,  # share of the images that is labeled; 0: 100 images
    list='',  # file that names the labeled images
    seed=0,  # of the choice of labeled images and of fine-tuning
    run=0,  # another choice of labeled images with the same seed
    pretrain_seed=0,  # of the stages before
    lr=0.0,  # of fine-tuning; 0: what stands below
    network=[*_NETWORKS],
    width=1,  # factor of the decoder's channels
    encoder='',  # a finished run's stage, or a weight file
    **common.NOISE,  # noise, gamma, target, …
    tiny=False,  # the same code, in a minute a stage
  )
  config = common.block(program='ddep.main', data_dir='')

  config.network = common.small_network(
    _NETWORKS[options.network], options.width
  )

  config.classify = common.shapes_classifier()
  config.denoise = common.block(
    data=common.data('shapes/scenes'),
    split='unlabeled',
    val_split='val',
    noise=common.noise(options, gamma=0.7),
    crop={'name': 'inception', 'size': (64, 64), 'area': (0.3, 1.0)},
    flips=('horizontal', 'vertical'),
    recipe=common.recipe(16, 2000, common.adam(2e-3, warmup_steps=50), 500),
  )
  config.finetune = common.block(
    data=common.data('shapes/scenes'),
    split='train',
    val_split='val',
    follow=(),  # splits that are evaluated along the way too
    subset=common.subset(options, labels=100),
    crop={'name': 'random', 'size': (64, 64)},
    flips=('horizontal', 'vertical'),
    recipe=common.recipe(
      8, 1200, common.adam(options.lr or 1.5e-3, warmup_steps=50), 200
    ),
  )
  config.evaluate = common.block(
    splits=('test', 'val', 'train'),
    batch_size=40,
    protocol=common.protocol(),
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
