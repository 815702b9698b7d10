"""DDeP on ADE20K: a decoder learns to denoise, then to segment 150 classes.

Paper, Table 3, DDeP 1x: 49.37 / 37.14 / 29.74 % mIoU at 100 / 10 / 5 % of the
labels. docs/methods/ddep_tables.md has a command for every row.

Data:  $SEG_DATA_DIR/ade20k, $SEG_DATA_DIR/imagenet (the full set); or
       records made by `python -m input_pipeline.prepare ade20k`.
Weights: weights/R50+ViT-B_16.npz (its ImageNet-21k release), and for
       network=unet weights/BiT-M-R50x1.npz; or encoder=PATH.
Run:   python -m ddep.main --config=configs/ddep_ade20k.py:fraction=0.1
       python -m ddep.main --config=configs/ddep_ade20k.py:tiny
Cost:  2.5 M steps of 512 images of denoising, then 4 k to 63 k steps of 32:
       10 days and 0.2 to 3.3 hours at 300 TFLOP/s.
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
    data=common.data('ade20k'),
    split='train',
    val_split='val',
    follow=(),  # splits that are evaluated along the way too
    subset=common.subset(options),
    crop={'name': 'inception', 'size': (512, 512), 'area': (0.3, 1.0)},
    flips=('horizontal',),
    recipe=common.tuning(options, images=20_210, batch_size=32),
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
