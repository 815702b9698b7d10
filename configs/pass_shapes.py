"""PASS on generated images of shapes: nothing has to be downloaded.

Single shapes are segmented into categories without labels.

Run:   python -m pass_luss.main --config=configs/pass_shapes.py:branch=swav
Cost:  8 minutes on 2 CPU cores, 3 of them for the longest stage.
"""

from configs import luss, networks, shared
from configs import options as options_lib

# Gray, as color says nothing about a shape and would be most of what features
# encode. No blur, which would hide the patterns: they are a few pixels wide.
_GRAY = luss.jitter(0.5, saturation=0.0, hue=0.0, gray=1.0, blur=0.0)
_COLORS = {'large': (_GRAY, _GRAY), 'small': _GRAY}
# Both views show most of the shape.
_VIEWS = luss.views('large', 2, 48, (0.5, 1.0))
# Images have 64 pixels a side.
_INFERENCE = {'short_side': 64, 'batch_size': 40}


def get_config(argument=None):
  options = options_lib.parse(argument, **luss.PASS)
  finetuning = {'crop': luss.crop(64, 0.3)}
  config = shared.block(
    program='pass_luss.main',
    network=networks.small_pass(),
    images={'data': {'name': 'shapes/single'}},
    represent=_represent(options),
    stages=luss.stages(options),
    distance={
      **_INFERENCE,
      'splits': ('val', 'test'),
      'rematch': False,
      'accuracy_from': 'train',
      'crop': 64,
    },
    attend={
      'clusters': {'queue': 512},
      'shared': options.shared_attention,
      'large': _VIEWS,
      'colors': _COLORS,
      # LARC moves a weight by less than a thousandth of its length in a step:
      # nothing would be learned in so few.
      'recipe': shared.recipe(64, 300, shared.adam(5e-3)),
    },
    cluster={
      **_INFERENCE,
      'kind': options.cluster,
      'crop': 64,
      'seed': options.seed,
    },
    label={
      **_INFERENCE,
      'threshold': luss.threshold(options),
      'saliency': options.saliency,
      'report': ('val', 'test'),
    },
    finetune={
      **finetuning,
      'recipe': shared.recipe(32, 600, luss.larc(0.6)),
    },
    segment={**_INFERENCE, 'inference': luss.inference(options)},
    semi={
      **finetuning,
      'split': 'train_semi',
      'recipe': shared.recipe(32, 400, luss.larc(0.6)),
    },
    segment_semi=_INFERENCE,
  )
  return luss.finish(config, options)


def _represent(options):
  return {
    'data': {'name': 'shapes/single'},
    'learn': luss.objectives(
      options,
      {'queue': 512, 'queue_from_step': 600, 'frozen_steps': 100},
      pixpro={'hidden': 256, 'size': 64},
    ),
    # More prototypes than channels, or embeddings can avoid all of them; but
    # few, as many would separate backgrounds and sizes.
    'widths': {'hidden': 128, 'embedding': 16, 'prototypes': 40},
    'large': _VIEWS,
    'colors': _COLORS,
    'start': luss.start(options),
    'recipe': shared.recipe(
      64,
      1000,
      shared.adam(options.lr or 2e-3, warmup_steps=20),
      evaluate_every=500,
    ),
  }
