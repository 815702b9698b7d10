"""DDeP on Cityscapes: pretrain the decoder by denoising, then fine-tune.

Paper: Fig. 6, DDeP 1x: 80.72 / 76.38 / 73.21 / 64.48 % mIoU with 2975 / 744 /
       372 / 100 labels. docs/methods/ddep_tables.md has a command for every
       row.
Data:  $SEG_DATA_DIR/cityscapes, $SEG_DATA_DIR/imagenet (the full set); or
       records made by `python -m input_pipeline.prepare cityscapes/fine`.
Weights: weights/R50+ViT-B_16.npz (its ImageNet-21k release); for network=unet
       weights/BiT-M-R50x1.npz; or encoder=PATH.
Run:   python -m ddep.main --config=configs/ddep_cityscapes.py:labels=372
       python -m ddep.main --config=configs/ddep_cityscapes.py:tiny
Cost:  2.5 M pretraining steps of 512 images, then 4 k steps of 64: 10 days, and
       2 hours, at 300 TFLOP/s.
       tiny: a minute a stage on 2 CPU cores.
"""

from configs import ddep, options


def get_config(argument=None):
  return ddep.paper(
    options.parse(argument, **ddep.PAPER),
    data='cityscapes/fine',
    num_images=2_975,
    size=1024,
    batch_size=64,
    protocol=ddep.HALVES,
  )
