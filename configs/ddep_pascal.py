"""DDeP on Pascal Context: pretrain the decoder by denoising, then fine-tune.

Paper: Table 6, DDeP 1x: 60.95 / 52.81 / 48.64 / 42.20 / 19.90 % mIoU at 100 /
       20 / 10 / 5 / 1 % of the labels. docs/methods/ddep_tables.md has a
       command for every row.
Data:  $SEG_DATA_DIR/pascal_context, $SEG_DATA_DIR/imagenet (the full set); or
       records made by `python -m input_pipeline.prepare pascal_context`.
Weights: weights/R50+ViT-B_16.npz (its ImageNet-21k release); for network=unet
       weights/BiT-M-R50x1.npz; or encoder=PATH.
Run:   python -m ddep.main --config=configs/ddep_pascal.py:fraction=0.1
       python -m ddep.main --config=configs/ddep_pascal.py:tiny
Cost:  2.5 M pretraining steps of 512 images, then 4 k to 16 k steps of 32: 10
       days, and 0.2 to 0.8 hours, at 300 TFLOP/s.
       tiny: a minute a stage on 2 CPU cores.
"""

from configs import ddep

_NUM_IMAGES = 4_998


def get_config(argument=None):
  return ddep.paper_with_windows(argument, 'pascal_context', _NUM_IMAGES)
