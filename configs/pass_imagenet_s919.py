"""PASS on ImageNet-S 919: a ResNet-50 learns to segment without labels.

Pretraining is on all of ImageNet, the later stages are on ImageNet-S.

Paper: 11.5 / 11.0 % mIoU on val / test (PASSs), 7.3 / 6.6 (PASSp).
Data:  $SEG_DATA_DIR/imagenet_s, $SEG_DATA_DIR/imagenet (see README.md).
Run:   python -m pass_luss.main --config=configs/pass_imagenet_s919.py
       python -m pass_luss.main --config=configs/pass_imagenet_s919.py:tiny
       The first once more, with :on=50 --workdir=runs/pass_imagenet_s919,
       segments ImageNet-S 50 with the trained network.
Cost:  12.0 EFLOPs: 8.3 hours at 400 TFLOP/s, four fifths of them pretraining.
       tiny: a minute a stage on 2 CPU cores.
"""

from configs import imagenet_s


def get_config(argument=None):
  return imagenet_s.experiment(
    argument,
    num_classes=919,
    num_images=1_183_322,
    threshold=0.37,
    # All of ImageNet.
    pretraining=('imagenet/1k', 1_281_167),
  )
