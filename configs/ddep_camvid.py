"""Denoising pretraining on CamVid, 367 street photographs of 11 classes.

With a pretrained encoder (`encoder=`), denoising trains the decoder (DDeP); by
default without one, the whole U-Net (DeP). Both are then fine-tuned on the
labeled photographs. `init=ddep,encoder=random` first trains the encoder on
image-level labels.

Val is one clip from within a training sequence: its score is optimistic.

Data:  $SEG_DATA_DIR/camvid/{train,val}/{images,labels}
Run:   python -m ddep.main --config=configs/ddep_camvid.py
Cost:  3 to 5 minutes a stage on 2 CPU cores.
"""

from configs import ddep, pretrained, shared
from configs import options as options_lib


def get_config(argument=None):
  options = options_lib.parse(
    argument,
    source='',  # folder of the photographs; '': searched in $SEG_DATA_DIR
    **ddep.PHOTO,
  )
  network = ddep.photo_network(options)
  crop = pretrained.camvid_crop(network)
  data = {'name': 'camvid', 'source': options.source}
  noise = ddep.noise(options, gamma=0.95)
  optimizer = shared.adam(
    options.lr or network.learning_rate(7e-3), warmup_steps=50
  )
  return ddep.small(
    options,
    encoder=network.encoder,
    encoder_lr=network.encoder_lr,
    notes=network.notes,
    network=network.block,
    **ddep.photo_pretraining(data, crop, noise),
    finetune={
      'data': data,
      'subset': shared.subset(options),
      'crop': crop,
      'recipe': shared.recipe(8, 1200, optimizer, evaluate_every=400),
    },
    # At the scale of the crops of training.
    evaluate={
      'protocol': ddep.WHOLE_IMAGE | pretrained.camvid_protocol(network)
    },
  )
