"""U2PL, U2PL+ and their baselines on generated scenes of shapes.

The network is that of `ddep_shapes.py`, so training can start from a run of
DDeP. Nothing has to be downloaded.

Run:   python -m u2pl.main --config=configs/u2pl_shapes.py:system=u2pl,labels=50
Cost:  3 to 5 minutes on 2 CPU cores.
"""

from configs import networks, u2pl, u2pl_losses
from configs import options as options_lib

# By option `data`: the side of crops, in pixels.
_SIDES = {'scenes': 64, 'natural': 64, 'natural_128': 96}


def get_config(argument=None):
  options = options_lib.parse(
    argument,
    data=[*_SIDES],  # drawn scenes
    # Of the loss of unlabeled images. At 1, as in the paper, pseudo-labels of a
    # teacher of 30 % mIoU do harm.
    unlabeled_weight=0.3,
    network=['unet', 'pass'],  # ResNet, or the encoder of `pass_shapes.py`
    width=1,  # factor of the decoder's channels
    skips='all',  # strides whose maps reach the decoder; none, coarse, 16-8
    **u2pl.SMALL,  # labels is 125 by default: 1/16
  )
  side = _SIDES[options.data]
  learn = u2pl_losses.small_losses(
    options,
    # A teacher of less than 20 % mIoU teaches the frequent classes only.
    warmup_epochs=6,
    weight=options.unlabeled_weight,
  )
  return u2pl.small(
    options,
    encoder=options.encoder,
    network=networks.small(options.network, options.width, options.skips),
    train={
      'data': {'name': f'shapes/{options.data}'},
      'crop': {'name': 'random', 'size': (side, side)},
      'flips': ('horizontal', 'vertical'),
      'learn': learn,
      'steps_per_epoch': 100,
    },
    labels=125,
    epochs=14,
    epochs_per_evaluation=2,
    learning_rate=1.5e-3,
    evaluate={
      'splits': ('test', 'val', 'train'),
      'batch_size': 40,
      'protocol': u2pl.WHOLE_IMAGE,
    },
  )
