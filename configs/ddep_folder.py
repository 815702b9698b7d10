"""Denoising pretraining on your own images, then fine-tuning on their masks.

Data:  a folder of images, masks of the same names and a class list: see
       docs/own_data.md. With unlabeled=same some images may have no mask, with
       unlabeled=FOLDER there are further images: denoising trains on them, too;
       init=supervised and none leave out images without a mask.
Run:   python -m ddep.main \
         --config=configs/ddep_folder.py:source=roads,ignore=255
Cost:  about 3 minutes a stage on 2 CPU cores.
"""

from configs import ddep, shared
from configs import options as options_lib


def get_config(argument=None):
  options = options_lib.parse(
    argument,
    **shared.FOLDER,
    **ddep.PHOTO,
  )
  network = ddep.photo_network(options)
  data, unlabeled = shared.folder(options), shared.unlabeled_images(options)
  crop = shared.folder_crop(options, network.size_multiple, network.max_area)
  denoises = options.init not in ('supervised', 'none')
  # With unlabeled=same, images without a mask are left out.
  if unlabeled and unlabeled['data'] != data and not denoises:
    raise ValueError(
      f'config option unlabeled={options.unlabeled}: expected init=ddep or '
      f'dep, as init={options.init} trains on images with masks alone'
    )
  optimizer = shared.adam(
    options.lr or network.learning_rate(2e-3), warmup_steps=50
  )
  return ddep.small(
    options,
    encoder=network.encoder,
    encoder_lr=network.encoder_lr,
    notes=(*network.notes, *shared.folder_notes(options)),
    network=network.block,
    **ddep.photo_pretraining(
      data,
      crop,
      noise=ddep.noise(options, gamma=0.95),
      also=(unlabeled,) if unlabeled and denoises else (),
    ),
    finetune={
      'data': data,
      'subset': shared.subset(options),
      'crop': crop,
      'recipe': shared.recipe(8, 800, optimizer, evaluate_every=400),
    },
    # Images of many sizes are padded to few, each compiled once.
    evaluate={
      'protocol': ddep.WHOLE_IMAGE | {'size_multiple': network.round_down(64)},
      'training_scale': True,
    },
  )
