"""PASS on generated images of shapes: nothing has to be downloaded.

Single shapes are segmented into categories without labels.

Run:   python -m pass_luss.main --config=configs/pass_shapes.py:branch=swav
Cost:  8 minutes on 2 CPU cores, 3 of them for the longest stage.
"""

from configs import luss, luss_objectives, networks, shared
from configs import options as options_lib

# Gray, as color says nothing about a shape and would be most of what features
# encode. No blur, which would hide the patterns: they are a few pixels wide.
_GRAY = luss.jitter(0.5, saturation=0.0, hue=0.0, gray=1.0, blur=0.0)
# Colors of photographs do say something.
_JITTER = luss.jitter(0.5, blur=0.0)
# By option `data`: the variant of `shapes`, the sides of images and of views in
# pixels, the augmentation of their colors, and the number of classes.
_DATA = {
  'single': ('single', 64, 48, _GRAY, 8),
  'natural': ('natural_single', 64, 48, _JITTER, 10),
  'natural_128': ('natural_single_128', 128, 96, _JITTER, 10),
}


def get_config(argument=None):
  options = luss.resolve(
    options_lib.parse(
      argument,
      data=[*_DATA],  # drawn images of one object
      **luss.PASS,
    )
  )
  _refuse_setting(options)
  name, side, view_side, jitter, _ = _DATA[options.data]
  data = {'name': f'shapes/{name}'}
  views = {
    # Both views show most of the shape.
    'large': luss.views('large', 2, view_side, (0.5, 1.0)),
    'colors': {'large': (jitter, jitter), 'small': jitter},
  }
  inference = {'short_side': side, 'batch_size': 40}
  finetuning = {'crop': luss.crop(side, 0.3)}
  config = shared.block(
    program='pass_luss.main',
    network=networks.small_pass(),
    images={'data': data},
    represent={'data': data, **views, **_represent(options)},
    stages=luss.stages(options),
    distance={
      **inference,
      'splits': ('val', 'test'),
      'rematch': False,
      'accuracy_from': 'train',
      'crop': side,
    },
    attend={**_attend(options), **views},
    cluster={
      **inference,
      'kind': options.cluster,
      'crop': side,
      'seed': options.seed,
    },
    label={
      **inference,
      'threshold': luss.threshold(options),
      'saliency': options.saliency,
      'report': ('val', 'test'),
    },
    finetune={
      **finetuning,
      'recipe': shared.recipe(32, 600, luss.larc(0.6)),
    },
    segment={**inference, 'inference': luss.inference(options)},
    semi={
      **finetuning,
      'split': 'train_semi',
      'recipe': shared.recipe(32, 400, luss.larc(0.6)),
    },
    segment_semi=inference,
  )
  return luss.finish(config, options)


def _refuse_setting(options):
  """Raises ValueError for a setting of the authors, which has no effect."""
  if options.setting != 'luss':
    raise ValueError(
      f'config option setting={options.setting}: expected luss, as objectives '
      'have batch and length of these small images in both settings; '
      'pass_imagenet_s50.py and the like have those of the authors'
    )


def _attend(options):
  return {
    'clusters': {'queue': 512},
    'shared': options.shared_attention,
    **luss.fresh_projection(options),
    # LARC moves a weight by less than a thousandth of its length in a step:
    # nothing would be learned in so few.
    'recipe': shared.recipe(64, 300, shared.adam(5e-3)),
  }


def _represent(options):
  _, side, view_side, _, num_classes = _DATA[options.data]
  compared = None
  if options.objective != 'pass':
    compared = luss_objectives.small_fields(options, 64, side, num_classes)
  return {
    'learn': luss.objectives(
      options,
      {'queue': 512, 'queue_from_step': 600, 'frozen_steps': 100},
      pixpro={'hidden': 256, 'size': 64},
      compared=compared,
    ),
    'large': luss.large_views(options, view_side, (0.5, 1.0)),
    **luss.smaller_views(options, view_side, (0.5, 1.0)),
    # More prototypes than channels, or embeddings can avoid all of them; but
    # few, as many would separate backgrounds and sizes.
    'widths': {'hidden': 128, 'embedding': 16, 'prototypes': 40},
    'start': luss.start(options),
    'recipe': shared.recipe(
      64,
      1000,
      shared.adam(
        options.lr or 2e-3,
        warmup_steps=20,
        **luss.constant_rate(options.objective),
      ),
      evaluate_every=500,
    ),
  }
