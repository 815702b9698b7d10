"""PASS on ImageNet-S 50: a ResNet-18 learns to segment without labels.

Paper: 29.2 / 29.3 % mIoU on val / test (PASSs), 32.4 / 32.0 (PASSp).
Data:  $SEG_DATA_DIR/imagenet_s (see the table in README.md).
Run:   python -m pass_luss.main --config=configs/pass_imagenet_s50.py
       python -m pass_luss.main --config=configs/pass_imagenet_s50.py:tiny
Cost:  0.5 EFLOPs: 20 minutes at 400 TFLOP/s, most of them pretraining.
       tiny: a minute a stage on 2 CPU cores.
"""

from configs import imagenet_s


def get_config(argument=None):
  return imagenet_s.experiment(
    argument,
    num_classes=50,
    num_images=64_431,
    threshold=0.41,
    depth=18,
    epochs=200,
    multi_crop=True,
    attention_rate=6.0,
    queue=2048,
    frozen_steps=1001,
    hidden=512,
    prototypes=500,
  )
