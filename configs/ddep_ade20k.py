"""DDeP on ADE20K: pretrain the decoder by denoising, fine-tune on few labels.

Paper: Table 3, DDeP 1x: 49.37 / 37.14 / 29.74 % mIoU at 100 / 10 / 5 % of the
       labels. docs/methods/ddep_tables.md has a command for every row.
Data:  $SEG_DATA_DIR/ade20k, $SEG_DATA_DIR/imagenet (the full set); or records
       made by `python -m input_pipeline.prepare ade20k`.
Weights: weights/R50+ViT-B_16.npz (its ImageNet-21k release); for network=unet
       weights/BiT-M-R50x1.npz; or encoder=PATH.
Run:   python -m ddep.main --config=configs/ddep_ade20k.py:fraction=0.1
       python -m ddep.main --config=configs/ddep_ade20k.py:tiny
Cost:  2.5 M pretraining steps of 512 images, then 4 k to 63 k steps of 32: 10
       days, and 0.2 to 3.3 hours, at 300 TFLOP/s.
       tiny: a minute a stage on 2 CPU cores.
"""

from configs import ddep

_NUM_IMAGES = 20_210


def get_config(argument=None):
  return ddep.paper_with_windows(argument, 'ade20k', _NUM_IMAGES)
