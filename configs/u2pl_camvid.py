"""U2PL, U2PL+ and their baselines on CamVid: 23 of 367 photographs labeled.

The network is that of `ddep_camvid.py`, so training can start from a run of
DDeP. Val is one clip from within a training sequence: its score is optimistic.

Data:  $SEG_DATA_DIR/camvid/{train,val}/{images,labels}
Run:   python -m u2pl.main --config=configs/u2pl_camvid.py:system=u2pl
Cost:  5 to 10 minutes on 2 CPU cores.
"""

from configs import pretrained, shared, u2pl, u2pl_losses, unlabeled


def get_config(argument=None):
  options = unlabeled.parse(
    argument,
    unlabeled.PHOTOGRAPHS,
    unlabeled_weight=1.0,  # of the loss of unlabeled images
    source='',  # folder of the photographs; '': searched in $SEG_DATA_DIR
    **u2pl.SMALL | pretrained.OPTIONS | shared.WEIGHTED,
  )
  network = pretrained.choose_network(options)
  return u2pl.small(
    options,
    network=network.block,
    encoder=network.encoder,
    notes=network.notes,
    train={
      'data': {'name': 'camvid', 'source': options.source},
      'crop': pretrained.camvid_crop(network),
      'learn': u2pl_losses.small_losses(
        options, warmup_epochs=10, weight=options.unlabeled_weight
      ),
      'steps_per_epoch': 43,
    },
    labels=23,
    epochs=25,
    epochs_per_evaluation=5,
    learning_rate=network.learning_rate(7e-3),
    encoder_lr=network.encoder_lr,
    # At the scale of the crops of training.
    evaluate={
      'protocol': u2pl.WHOLE_IMAGE | pretrained.camvid_protocol(network)
    },
  )
