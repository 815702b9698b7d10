"""DDeP on generated images of shapes: nothing has to be downloaded.

The encoder is pretrained by classification, the decoder by denoising; both are
then fine-tuned on few labeled scenes.

Run:   python -m ddep.main --config=configs/ddep_shapes.py:init=ddep,labels=100
Cost:  2 to 3 minutes a stage on 2 CPU cores.
"""

from configs import ddep, networks, shared
from configs import options as options_lib

# By option `data`: the images of one object, which the encoder classifies, and
# the side of crops, in pixels.
_DATA = {
  'scenes': ('single', 64),
  'natural': ('natural_single', 64),
  'natural_128': ('natural_single_128', 96),
}
_FLIPS = ('horizontal', 'vertical')


def get_config(argument=None):
  options = options_lib.parse(
    argument,
    data=[*_DATA],  # drawn scenes
    init=['ddep', 'dep', 'supervised', 'none'],
    network=[*networks.SMALL],
    width=1,  # factor of the decoder's channels
    skips='all',  # strides whose maps reach the decoder; none, coarse, 16-8
    encoder='',  # a finished stage, or a weight file
    **ddep.NOISE,
    **ddep.SMALL,  # labels is 100 by default
  )
  learning_rate = options.lr or 1.5e-3
  scenes = {'name': f'shapes/{options.data}'}
  single, side = _DATA[options.data]
  return ddep.small(
    options,
    encoder=options.encoder,
    network=networks.small(options.network, options.width, options.skips),
    classify=ddep.shapes_classifier(single, side),
    denoise={
      'data': scenes,
      'split': 'unlabeled',
      'noise': ddep.noise(options, gamma=0.7),
      'crop': {'name': 'inception', 'size': (side, side)},
      'flips': _FLIPS,
      'recipe': shared.recipe(
        16, 2000, shared.adam(2e-3, warmup_steps=50), evaluate_every=500
      ),
    },
    finetune={
      'data': scenes,
      'subset': shared.subset(options, labels=100),
      'crop': {'name': 'random', 'size': (side, side)},
      'flips': _FLIPS,
      'recipe': shared.recipe(
        8, 1200, shared.adam(learning_rate, warmup_steps=50), evaluate_every=200
      ),
    },
    evaluate={
      'splits': ('test', 'val', 'train'),
      'batch_size': 40,
      'protocol': ddep.WHOLE_IMAGE,
    },
  )
