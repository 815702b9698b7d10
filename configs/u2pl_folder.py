"""U2PL, U2PL+ and their baselines on your own images, few of them with masks.

Data:  a folder of images, masks of the same names and a class list: see
       docs/own_data.md. With unlabeled=same images without a mask are the
       unlabeled ones, with unlabeled=FOLDER those of another folder. Otherwise
       they are images with masks, which only measure the pseudo-labels.
Run:   python -m u2pl.main \\
         --config=configs/u2pl_folder.py:source=roads,ignore=255,labels=20
Cost:  1,500 steps of 8 labeled and 8 unlabeled crops, about 13 minutes on a
       CPU core (docs/results/photographs.md).
"""

from configs import pretrained, shared, u2pl, u2pl_losses, unlabeled

# The first is the default: it learned most from unlabeled photographs.
_SYSTEM = {'system': sorted(u2pl_losses.SYSTEMS, key='pseudoseg'.__ne__)}


def get_config(argument=None):
  options = unlabeled.parse(
    argument,
    unlabeled.PHOTOGRAPHS,
    **shared.FOLDER,
    without_mask=['error', 'unlabeled'],  # unlabeled: as unlabeled=same
    # Of 50 steps, on labeled images alone, before there are pseudo-labels.
    warmup_epochs=4,
    unlabeled_weight=1.0,  # of the loss of unlabeled images
    # Negatives rank a class from here on; the papers' 3 needs more classes.
    low_rank=1,
    # fraction is 0.25 by default, or 1 of those with a mask
    **u2pl.SMALL | pretrained.OPTIONS | shared.WEIGHTED | _SYSTEM,
  )
  if options.low_rank != 1 and options.system not in u2pl_losses.WITH_CONTRAST:
    raise ValueError(
      f'config option low_rank={options.low_rank}: system={options.system} has '
      f'no contrast, expected one of {", ".join(u2pl_losses.WITH_CONTRAST)}'
    )
  network = pretrained.choose_network(options)
  if options.without_mask == 'unlabeled':
    options.unlabeled = options.unlabeled or 'same'
  images = shared.unlabeled_images(options)
  elsewhere = images and images['data'] != shared.folder(options)
  if not (options.labels or options.list or images):
    options.fraction = options.fraction or 0.25
  return u2pl.small(
    options,
    network=network.block,
    encoder=network.encoder,
    notes=(*network.notes, *shared.folder_notes(options)),
    train={
      'data': shared.folder(options),
      'unlabeled': images['split'] if images else '',
      **({'unlabeled_data': images['data']} if elsewhere else {}),
      'crop': shared.folder_crop(
        options, network.size_multiple, network.max_area
      ),
      'learn': u2pl_losses.small_losses(
        options,
        options.warmup_epochs,
        options.unlabeled_weight,
        low_rank=options.low_rank,
      ),
      'steps_per_epoch': 50,
    },
    labels=0,
    epochs=30,
    epochs_per_evaluation=10,
    learning_rate=network.learning_rate(2e-3),
    encoder_lr=network.encoder_lr,
    # Images of many sizes are padded to few, each compiled once.
    evaluate={
      'protocol': u2pl.WHOLE_IMAGE | {'size_multiple': network.round_down(64)},
      'training_scale': True,
    },
  )
