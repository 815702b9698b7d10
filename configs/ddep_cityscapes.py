"""DDeP on Cityscapes: a decoder learns to denoise, then to segment streets.

Paper, Fig. 6, DDeP 1x: 80.72 / 76.38 / 73.21 / 64.48 % mIoU at 2975 / 744 / 372
/ 100 labels. docs/methods/ddep_tables.md has a command for every row.

Data:  $SEG_DATA_DIR/cityscapes, $SEG_DATA_DIR/imagenet (the full set); or
       records made by `python -m input_pipeline.prepare cityscapes/fine`.
Weights: weights/R50+ViT-B_16.npz (its ImageNet-21k release), and for
       network=unet weights/BiT-M-R50x1.npz; or encoder=PATH.
Run:   python -m ddep.main --config=configs/ddep_cityscapes.py:labels=372
       python -m ddep.main --config=configs/ddep_cityscapes.py:tiny
Cost:  2.5 M steps of 512 images of denoising, then 4 k steps of 64: 10 days
       and 2 hours at 300 TFLOP/s.
       tiny takes a minute a stage on 2 CPU cores.
"""

from configs import common


def get_config(argument=None):
  # init, network, noise, pretraining, labels, lr, tiny, …
  options = common.parse(argument, **common.DDEP)
  config = common.block(
    program='ddep.main', data_dir='', without_files=common.TINY
  )

  config.network = common.ddep_network(options)

  config.denoise = common.pretraining(options)
  config.finetune = common.block(
    data=common.data('cityscapes/fine'),
    split='train',
    val_split='val',
    follow=(),  # splits that are evaluated along the way too
    subset=common.subset(options),
    crop={'name': 'inception', 'size': (1024, 1024), 'area': (0.3, 1.0)},
    flips=('horizontal',),
    recipe=common.tuning(options, images=2_975, batch_size=64),
  )
  config.evaluate = common.block(
    splits=('val',),
    batch_size=8,
    protocol=common.flipped_halves(),
    which='last',
  )
  config.operation = common.operation(
    log_every=100,
    save_every=1000,
    reading={'threads': 16, 'buffered': 16, 'workers': 0},
  )
  common.set_init(config, options.init)
  common.set_seeds(config, options)
  common.set_held_out(config, options)
  if options.tiny:
    common.put_on_shapes(config)
    common.make_tiny(config)
  elif 'classify' in config.stages and not options.encoder:
    common.set_encoder(config, common.WEIGHTS[options.network])
  if options.encoder:
    common.set_encoder(config, options.encoder)
  return config
