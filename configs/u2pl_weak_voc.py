"""AFA and U2PL+ on it, from the classes of images, on VOC 2012.

The tags of an image are the classes of its mask, which is not trained on.
system=cam is the classifier alone, system=full training on masks.

Paper: Table XIII, U2PL+: 66.4 / 67.0 % mIoU on val / test; AFA: 64.9 / 66.1.
       docs/methods/u2pl_weak_tables.md has a command for every row.
Data:  python -m input_pipeline.prepare voc2012 --source=…
Weights: SegFormer's MiT-B1 of ImageNet-1k, mit_b1.pth
Run:   python -m u2pl.main --config=configs/u2pl_weak_voc.py:system=afa,crf
Cost:  20,000 steps of 8 images of 512 pixels, of each six passes for CAMs; see
       --dry_run.
"""

from configs import networks, shared, weak
from configs import options as options_lib

_CROP = {
  'name': 'random',
  'size': (512, 512),
  'scales': (0.5, 2.0),
  'fill': 'black',
  'antialias': True,
}


def get_config(argument=None):
  options = options_lib.parse(
    argument,
    network='mit_b1',  # mit_b0 to mit_b5
    tags='',  # table of ID,CLASS;CLASS; '': the classes of the masks
    encoder='auto',  # auto: public weights of the network; '': random values
    batch=8,
    steps=20_000,
    lr=6e-5,  # of the encoder; ten times that of decoder and heads
    **weak.OPTIONS,
  )
  network = networks.named(f'{options.network}+segformer')
  network.encoder.strides = (4, 2, 2, 1)
  config = shared.block(
    program='u2pl.main',
    without_files=shared.TINY_ADVICE,
    stages=('weak', 'evaluate'),
    network=network,
    weak={
      'data': {'name': 'voc2012'},
      'split': 'train_aug',
      'tags': '' if options.tiny else options.tags,
      'learn': weak.losses(
        options,
        class_steps=options.steps // 10,
        refined_steps=options.steps * 3 // 10,
      ),
      'start': shared.encoder_start(networks.encoder_weights(options)),
      'crop': _CROP,
      'recipe': shared.recipe(
        options.batch,
        options.steps,
        shared.adamw(options.lr, 'switched_poly', weak.GROUPS),
        evaluate_every=options.steps // 10,
      ),
    },
    evaluate={
      'batch_size': 4,
      'protocol': {
        'long_side': 512,
        'scales': (1.0, 0.5, 0.75),
        'flip': True,
        'scale_merge': 'max',
      },
    },
  )
  config.weak.recipe.seed = options.seed
  if options.tiny:
    weak.generate_images(config)
    weak.shorten(config, options)
  config.evaluate.protocol.crf = options.crf
  config.evaluate.cam_refinement = weak.cam_refinement(options)
  return config
