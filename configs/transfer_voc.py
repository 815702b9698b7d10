"""Transfer of pretrained encoders: DeepLabv3+ trained on VOC 2012.

The recipe is that of mmsegmentation for 20,000 steps, as in the LUSS paper:
all 10,582 images with the masks of SBD, all layers and batch norms train.

Paper: encoders of ImageNet-S 300: 75.1 % mIoU (PASSp), 70.8 (PASSs), 72.6
       (supervised). docs/methods/pass_tables.md has a command for every row.
Data:  python -m input_pipeline.prepare voc2012 --source=…
Weights: encoder=PATH, a finished stage or a weight file of a ResNet; without
       it, the network starts from random values.
Run:   python -m u2pl.main \
         --config=configs/transfer_voc.py:encoder=runs/pass_s300/represent
       python -m u2pl.main --config=configs/transfer_voc.py:tiny
Cost:  0.86 TFLOPs an image, 20,000 steps of 16: 0.3 hours at 300 TFLOP/s.
       tiny: a minute on 2 CPU cores.
"""

from configs import networks, shared, u2pl
from configs import options as options_lib

# Long and short side that images are resized to fit, in training times a factor
# of 0.5 to 2.
_SIDES = (2048, 512)


def get_config(argument=None):
  options = options_lib.parse(
    argument,
    network=['resnet50', 'resnet18', 'resnet34', 'resnet101'],
    encoder='',  # a finished stage or a weight file; '': random values
    batch=16,
    steps=20_000,
    lr=0.01,
    seed=0,
    tiny=False,  # 60 steps of the encoder of `pass_shapes`, on drawn images
  )
  config = shared.block(
    program='u2pl.main',
    without_files=shared.TINY_ADVICE,
    network=networks.wide_deeplabv3plus(options.network),
    train={
      'data': {'name': 'voc2012'},
      'split': 'train_aug',
      'learn': {
        'supervised': {'auxiliary': 0.4, 'align_corners': False},
        'consistency': None,
        'contrast': None,
        'distortion': {},
      },
      'heads': {'kind': 'classifier'},
      'crop': {
        'name': 'random',
        'size': (512, 512),
        'fit_sides': _SIDES,
        'scales': (0.5, 2.0),
        'max_class_share': 0.75,
        'fill': 'mean',
      },
      'start': shared.encoder_start(options.encoder),
      'steps_per_epoch': -(-10_582 // options.batch),
      'recipe': shared.recipe(
        options.batch,
        options.steps,
        u2pl.sgd(
          options.lr,
          final_learning_rate=0.01 * options.lr,
          weight_decay=5e-4,
        ),
        evaluate_every=2_000,
      ),
    },
    evaluate={'batch_size': 4, 'protocol': {'fit_sides': _SIDES}},
  )
  config.train.recipe.seed = options.seed
  if options.tiny:
    _generate_images(config)
    u2pl.shorten(config)
  return config


def _generate_images(config):
  """Replaces images and network of the paper by drawn and small ones."""
  decoder = config.network.decoder
  config.network = networks.small_pass()
  config.network.decoder = decoder
  decoder.update(width=16, low_width=8, dilations=(1, 2, 3))
  config.train.data.name = 'shapes/scenes'
  config.train.split = 'train'
  config.train.heads.width = 16
  config.train.crop.update(size=(64, 64), fit_sides=(64, 64))
  config.train.recipe.batch_size = 8
  config.evaluate.update(batch_size=40, protocol={'fit_sides': (64, 64)})
