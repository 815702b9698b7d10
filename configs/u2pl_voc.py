"""U2PL, U2PL+, what they are compared with, CPS and UniMatch on VOC 2012.

The labeled images are some of the 1,464 of VOC (partition=classic) or of the
10,582 with those of SBD (blender); all others are unlabeled. The partitions of
the authors are files: `list=splits/92/labeled.txt`.

Paper: U2PL+: 69.29 / 73.40 / 75.03 / 77.09 / 79.52 % mIoU with 92 / 183 / 366 /
       732 / 1464 labels (classic). docs/methods/u2pl_tables.md has a command
       for every row.
Data:  python -m input_pipeline.prepare voc2012 --source=…
Weights: an ImageNet ResNet-101 with a deep stem (.safetensors or .npz)
Run:   python -m u2pl.main --config=configs/u2pl_voc.py:labels=366
Cost:  5.9 TFLOPs an image, 51,080 steps of 16; see --dry_run.
"""

from configs import semi_systems, u2pl, u2pl_losses

_NUM_IMAGES = 10_582
# By option `partition`: the images that may be labeled, and their split.
_LABELED = {'classic': (1_464, 'train'), 'blender': (_NUM_IMAGES, 'train_aug')}


def get_config(argument=None):
  options, settings = semi_systems.parse(
    argument,
    'voc',
    partition=[*_LABELED],
    labels=92,  # 92 183 366 732 1464, or 662 1323 2646 5291
    epochs=80,  # of the unlabeled images; of the labeled ones for sup_only
    lr=1e-3,  # of the encoder; ten times that of decoder and heads
    **u2pl.PAPER,
  )
  max_labels, split = _LABELED[options.partition]
  common = {
    'images': {
      'data': {'name': 'voc2012'},
      'split': split,
      'unlabeled': 'train_aug',
    },
    'steps_per_epoch': u2pl.steps_per_epoch(
      options,
      max_labels,
      _NUM_IMAGES,
      bool(settings and settings.losses.get('includes_labeled')),
    ),
    'epochs_per_evaluation': 1,
  }
  if settings:
    return u2pl.published(options, settings, **common)
  size = 512 if options.network == 'transunet' else 513
  return u2pl.paper(
    options,
    **common,
    size=size,
    # Mixed are the images of one GPU of the authors.
    losses=u2pl_losses.losses(options, mixing={'group': min(4, options.batch)}),
    optimizer=u2pl.sgd(options.lr, groups=(('^(decoder|heads)/', 10.0, 1.0),)),
    evaluate={
      'batch_size': 16,
      'protocol': u2pl.centered(size),
      'which': 'best',
      'framed': True,  # as published: padding counts as background
    },
  )
