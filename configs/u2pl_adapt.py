"""DAFormer and U2PL+ on it, from rendered streets to those of Cityscapes.

The source is GTA5 or SYNTHIA. Source-only training and DAFormer without a part
of it are options.

Paper: Table XI, U2PL+: 69.6 mIoU from GTA5, 61.6 over 16 classes from SYNTHIA;
       DAFormer: 68.3 and 60.9. docs/methods/u2pl_adapt_tables.md has a command
       for every row.
Data:  python -m input_pipeline.prepare gta5 --source=… (and cityscapes/fine)
Weights: SegFormer's MiT-B5 of ImageNet-1k, mit_b5.pth
Run:   python -m u2pl.main --config=configs/u2pl_adapt.py:source=gta5
Cost:  40,000 steps of 2 + 2 images of 512 pixels; see --dry_run.
"""

from configs import adaptation, networks, shared
from configs import options as options_lib

# Long and short side that images of a data set are resized to fit; ids of
# classes that it does not show.
_SIDES = {'gta5': (1280, 720), 'synthia': (1280, 760)}
_TARGET_SIDES = (1024, 512)
# Means of IoU over 16 and 13 classes that are published for SYNTHIA, by the
# classes that they leave out.
_LEFT_OUT = ('terrain', 'truck', 'train')
_MEANS = {'miou16': _LEFT_OUT, 'miou13': ('wall', 'fence', 'pole', *_LEFT_OUT)}


def get_config(argument=None):
  options = options_lib.parse(
    argument,
    source=['gta5', 'synthia'],
    network='mit_b5',  # mit_b0 to mit_b5
    encoder='auto',  # auto: public weights of the network; '': random values
    batch=2,  # images of each domain; 1 in the paper's U2PL+
    steps=40_000,
    lr=6e-5,  # of the encoder; ten times that of decoder and heads
    **adaptation.OPTIONS,
  )
  size, target = (512, 512), {'name': 'cityscapes/fine'}
  is_oracle = options.system == 'target_only'
  config = shared.block(
    program='u2pl.main',
    without_files=shared.TINY_ADVICE,
    stages=('adapt', 'evaluate'),
    network=adaptation.daformer(options.network),
    adapt={
      'data': target if is_oracle else {'name': options.source},
      'target': {
        'data': target,
        'crop': {'name': 'random', 'size': size, 'fit_sides': _TARGET_SIDES},
      },
      'crop': {
        'name': 'random',
        'size': size,
        'fit_sides': _TARGET_SIDES if is_oracle else _SIDES[options.source],
        'max_class_share': 0.75,
      },
      'learn': adaptation.losses(options, start_step=1500),
      'rare_classes': adaptation.rare_classes(options),
      'start': shared.encoder_start(networks.encoder_weights(options)),
      'recipe': shared.recipe(
        options.batch,
        options.steps,
        shared.adamw(options.lr, 'warmed_poly', adaptation.GROUPS),
        evaluate_every=options.steps // 10,
      ),
    },
    evaluate={
      'batch_size': 2,
      'protocol': {'fit_sides': _TARGET_SIDES},
      'miou_without': _MEANS if options.source == 'synthia' else {},
    },
  )
  config.adapt.recipe.seed = options.seed
  if options.tiny:
    adaptation.generate_images(config)
    adaptation.shorten(config)
  return config
