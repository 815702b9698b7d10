"""PASS on ImageNet-S 300: a ResNet-50 learns to segment without labels.

Paper: 18.0 / 18.1 % mIoU on val / test (PASSs), 16.6 / 16.0 (PASSp).
Data:  $SEG_DATA_DIR/imagenet_s (see the table in README.md).
Run:   python -m pass_luss.main --config=configs/pass_imagenet_s300.py
       python -m pass_luss.main --config=configs/pass_imagenet_s300.py:tiny
       The first once more, with :on=50 --workdir=runs/pass_imagenet_s300,
       segments ImageNet-S 50 with the trained network.
Cost:  3.7 EFLOPs: 2.5 hours at 400 TFLOP/s, three quarters of them pretraining.
       tiny: a minute a stage on 2 CPU cores.
"""

from configs import imagenet_s


def get_config(argument=None):
  return imagenet_s.experiment(
    argument,
    num_classes=300,
    num_images=384_862,
    threshold=0.40,
  )
