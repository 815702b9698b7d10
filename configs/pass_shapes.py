"""PASS on `shapes`: an encoder learns from single shapes without a label.

Everything is generated here, nothing has to be downloaded.

Run:   python -m pass_luss.main --config=configs/pass_shapes.py:branch=swav
Cost:  3 minutes a stage on 2 CPU cores.
"""

from configs import common, pass_luss


def get_config(argument=None):
  options = common.parse(argument, **pass_luss.PASS)
  config = common.block(program='pass_luss.main', data_dir='', without_files='')
  config.stages = ('represent',)
  config.network = pass_luss.small_network()
  config.represent = common.block(
    data=common.data('shapes/single'),
    split='train',
    learn=pass_luss.learn(
      options,
      queue=512,
      queue_from_step=300,
      frozen_steps=100,
      grid=7,
      hidden=256,
      size=64,
    ),
    widths={'hidden': 128, 'embedding': 64, 'prototypes': 60},
    large=pass_luss.views('large', 2, 48, (0.3, 1.0)),
    small=pass_luss.views('small', 2, 32, (0.1, 0.3))
    if options.branch == 'swav'
    else None,
    colours=pass_luss.colours(options.branch),
    start=pass_luss.start(options),
    recipe=common.recipe(64, 600, pass_luss.larc(options.lr or 0.6), 200),
  )
  config.represent.recipe.seed = options.seed
  config.operation = common.operation()
  if options.tiny:
    pass_luss.make_tiny(config)
  return config
