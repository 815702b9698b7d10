"""Denoising pretraining on your own images, then fine-tuning on their masks.

Data:  a folder with images, masks of the same names, and a class list: see
       docs/own_data.md.
Run:   python -m ddep.main \
         --config=configs/ddep_folder.py:source=roads,ignore=255
Cost:  about 3 minutes a stage on 2 CPU cores.
"""

from configs import common


def get_config(argument=None):
  options = common.parse(
    argument,
    source='',  # folder of everything
    images='images',  # in the source
    masks='masks',  # in the source; same names as the images, PNG
    classes='classes.txt',  # in the source; a class a line: name, name #rrggbb
    ignore='',  # value or color of pixels without a class: 255 or #ffffff
    val_fraction=0.2,  # share of the images that is only evaluated on
    on_bad_example=['error', 'skip'],
    init=['dep', 'none'],
    labels=0,  # number of labeled images; 0: `fraction` decides
    fraction=0.0,  # share of the images that is labeled; 0: all
    list='',  # file that names the labeled images
    seed=0,  # of the choice of labeled images and of fine-tuning
    run=0,  # another choice of labeled images with the same seed
    pretrain_seed=0,  # of the stages before
    lr=0.0,  # of fine-tuning; 0: what stands below
    tiny=False,  # the same code, in a minute a stage
  )
  data = common.data(
    'image_mask_folder',
    source=options.source,
    images=options.images,
    masks=options.masks,
    classes=options.classes,
    ignore=options.ignore,
    val_fraction=options.val_fraction,
    on_bad_example=options.on_bad_example,
  )
  config = common.block(program='ddep.main', data_dir='')

  config.network = common.small_network(common.SMALL_RESNET)

  config.classify = common.block(
    data=data,
    split='train',
    val_split='val',
    kind='sigmoid',
    crop={'name': 'inception', 'size': (96, 96), 'area': (0.1, 1.0)},
    flips=('horizontal',),
    recipe=common.recipe(16, 800, common.adam(1e-3, warmup_steps=50), 400),
  )
  config.denoise = common.block(
    data=data,
    split='train',
    val_split='val',
    noise={'kind': 'scaled', 'gamma': 0.95, 'sigma': 0.0, 'target': 'eps'},
    crop={'name': 'inception', 'size': (96, 96), 'area': (0.05, 0.5)},
    flips=('horizontal',),
    recipe=common.recipe(8, 600, common.adam(2e-3, warmup_steps=50), 200),
  )
  config.finetune = common.block(
    data=data,
    split='train',
    val_split='val',
    follow=(),  # splits that are evaluated along the way too
    subset=common.subset(options),
    crop={'name': 'inception', 'size': (96, 96), 'area': (0.05, 0.5)},
    flips=('horizontal',),
    recipe=common.recipe(
      8, 800, common.adam(options.lr or 2e-3, warmup_steps=50), 400
    ),
  )
  config.evaluate = common.block(
    splits=('val',),
    batch_size=8,
    # Images of many sizes run on a few canvases, continued by reflection.
    protocol=common.protocol(size_multiple=64),
    which='last',
  )
  config.operation = common.operation()
  common.set_init(config, options.init)
  common.set_seeds(config, options)
  if options.tiny:
    common.make_tiny(config)
  return config
