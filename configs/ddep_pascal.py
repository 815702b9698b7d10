"""DDeP on Pascal Context: a decoder learns to denoise, then to segment.

Paper, Table 6, DDeP 1x: 60.95 / 52.81 / 48.64 / 42.20 / 19.90 % mIoU at
100 / 20 / 10 / 5 / 1 % of the labels. Every row: docs/methods/ddep_tables.md.

Data:  $SEG_DATA_DIR/pascal_context, $SEG_DATA_DIR/imagenet (the full set); or
       records made by `python -m input_pipeline.prepare pascal_context`.
Weights: weights/R50+ViT-B_16.npz (its ImageNet-21k release), and for
       network=unet weights/BiT-M-R50x1.npz; or encoder=PATH.
Run:   python -m ddep.main --config=configs/ddep_pascal.py:fraction=0.1
       python -m ddep.main --config=configs/ddep_pascal.py:tiny
Cost:  2.5 M steps of 512 images of denoising, then 4 k to 16 k steps of 32:
       10 days and 0.2 to 0.8 hours at 300 TFLOP/s.
       tiny takes a minute a stage on 2 CPU cores.
"""

from configs import common


def get_config(argument=None):
  options = common.parse(
    argument,
    **common.DDEP,  # init, network, noise, pretraining, labels, lr, tiny, …
    scales=['multi', 'single'],  # of the evaluation; Table 7: single
  )
  config = common.block(
    program='ddep.main', data_dir='', without_files=common.TINY
  )

  config.network = common.ddep_network(options)

  config.denoise = common.pretraining(options)
  config.finetune = common.block(
    data=common.data('pascal_context'),
    split='train',
    val_split='val',
    follow=(),  # splits that are evaluated along the way too
    subset=common.subset(options),
    crop={'name': 'inception', 'size': (512, 512), 'area': (0.3, 1.0)},
    flips=('horizontal',),
    recipe=common.tuning(options, images=4_998, batch_size=32),
  )
  config.evaluate = common.block(
    splits=('val',),
    batch_size=8,
    protocol={
      'multi': common.multi_scale(),
      'single': common.single_scale(),
    }[options.scales],
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
