"""Small images and examples for tests of transforms."""

import io

import numpy as np
import PIL.Image


def rgb(values):
  """Returns an image with these values in all three channels."""
  return np.repeat(np.array(values, np.uint8)[..., None], 3, axis=-1)


def png(image):
  """Returns the bytes of a PNG."""
  file = io.BytesIO()
  PIL.Image.fromarray(image).save(file, 'PNG')
  return file.getvalue()


def draws(count, seed=0):
  """Yields the same generator `count` times."""
  rng = np.random.default_rng(seed)
  return (rng for _ in range(count))


def gray_and_label(example):
  """Returns gray values and labels as lists."""
  image = example['image']
  assert image.dtype == np.uint8
  np.testing.assert_array_equal(image, rgb(image[..., 0]))
  assert example['label'].dtype == np.int16
  return image[..., 0].tolist(), example['label'].tolist()
