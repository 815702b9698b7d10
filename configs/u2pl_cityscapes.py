"""U2PL, U2PL+ and their baselines on Cityscapes, with CutMix.

The supervised loss takes hard pixels and has an auxiliary head; inference is by
windows of 769 pixels.

Paper: Table II, U2PL+: 76.09 / 78.00 / 79.02 / 79.62 % mIoU with 186 / 372 /
       744 / 1488 labels, probably on top of AEL (system=u2pl_ael).
       docs/methods/u2pl_tables.md has a command for every row.
Data:  python -m input_pipeline.prepare cityscapes/fine --source=…
Weights: an ImageNet ResNet-101 with a deep stem (.safetensors or .npz)
Run:   python -m u2pl.main --config=configs/u2pl_cityscapes.py:labels=372
Cost:  13.4 TFLOPs an image, 32,400 steps of 16; see --dry_run.
"""

from configs import semi_systems, u2pl, u2pl_losses


def get_config(argument=None):
  options, settings = semi_systems.parse(
    argument,
    'cityscapes',
    labels=186,  # 186 372 744 1488
    epochs=200,  # of the unlabeled images; of the labeled ones for sup_only
    lr=1e-2,  # of all parameters
    **u2pl.PAPER,
  )
  common = {
    'images': {'data': {'name': 'cityscapes/fine'}},
    'steps_per_epoch': u2pl.steps_per_epoch(options, 2_975, 2_975),
    'epochs_per_evaluation': 10,
  }
  if settings:
    return u2pl.published(options, settings, **common)
  convolutional = options.network != 'transunet'
  size = 769 if convolutional else 768
  stride = -(-2 * size // 3)
  return u2pl.paper(
    options,
    **common,
    size=size,
    losses=u2pl_losses.losses(
      options,
      # Mixed are the images of one GPU of the authors.
      mixing={'group': min(2, options.batch)},
      supervised={
        'kind': 'ohem',
        'auxiliary': 0.4 if convolutional else 0.0,
      },
      warmup_epochs=0,
    ),
    optimizer=u2pl.sgd(options.lr, weight_decay=5e-4),
    evaluate={
      'protocol': {
        'tiling': 'sliding_window',
        'window': (size, size),
        'stride': (stride, stride),
        'align_corners': True,
      },
    },
  )
