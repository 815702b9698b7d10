"""Drawn images, and what is prepared of a folder of them."""

import numpy as np
import PIL.Image
import tensorflow_datasets as tfds

DECODERS = {'image': tfds.decode.SkipDecoding()}


def write_image(path, width=3, height=5):
  path.parent.mkdir(parents=True, exist_ok=True)
  ramp = np.arange(width * height * 3, dtype=np.uint8)
  PIL.Image.fromarray(ramp.reshape(height, width, 3)).save(path)


def prepared(builder):
  builder.download_and_prepare()
  return builder


def ids(builder, split='train'):
  source = builder.as_data_source(split, decoders=DECODERS)
  return [record['id'].decode() for record in source]
