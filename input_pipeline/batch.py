"""The batch contract: names, types and axis order of the input of networks.

A batch is a dict of arrays with leading axis B:

  image  uint8  [B, H, W, 3]  RGB
  label  int16  [B, H, W]     class ids; a negative label is ignored
  valid  bool   [B, H, W]     False on padding that is ignored; True elsewhere
  tags   bool   [B, C]        image-level labels: the classes that occur
  mask   bool   [B]           False on rows that only pad the batch
  size   int32  [B, 2]        height and width of the original image
  index  int32  [B]           place of the image in its split, where it is read
  id     bytes  [B]           name of the image; stays on the host
  index  int32  [B]           position of the image in its split, and
  drawn_class int32 [B]       class it was drawn for, negative where none; of
                              paired streams alone
  second_image uint8, second_valid bool: another crop of the same image, of
                              streams of two crops alone

In labeled images ignored padding has a negative label, so `valid` is for
unlabeled ones; without it no pixel is ignored padding.

Multi-view batches hold one key per resolution instead of `image`:
`views_NAME` uint8 [B, V, h, w, 3] with `box_NAME` float32 [B, V, 4] (top, left,
height, width in original pixels) and `flip_NAME` bool [B, V]. Two streams are
`{'labeled': batch, 'unlabeled': batch}` with equal B, or 'source' and 'target'
where they differ in their domain; 'pasted' are second labeled images.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from etils import epy
from jaxtyping import Float, Real, UInt8

with epy.lazy_imports():
  import jax
  import jax.numpy as jnp

IGNORE = -1  # Any negative label is ignored; this is the one that is written.

# A batch, or several streams of them: {'labeled': …, 'unlabeled': …}.
Batch = Mapping[str, Any]

# Keys that are not transferred to devices.
HOST_ONLY = ('id',)
# Names of the maps of a second crop begin with this.
SECOND = 'second_'


def batch_spec(
  batch_size: int,
  size: tuple[int, int],
  label: bool = False,
  num_tags: int | None = None,
  valid: bool = False,
  paired: bool = False,
  two_crops: bool = False,
) -> 'dict[str, jax.ShapeDtypeStruct]':
  """Returns shapes and types of a training batch, without any data.

  Args:
    batch_size: global number of rows B.
    size: (height, width) of the images in pixels.
    label: whether the batch has a class id per pixel.
    num_tags: number C of image-level labels; None for a batch without tags.
    valid: whether the batch marks ignored padding.
    paired: whether the batch is that of a paired stream.
    two_crops: whether the batch has a second crop of each image.
  """

  def rows(dtype, *shape: int) -> 'jax.ShapeDtypeStruct':
    return jax.ShapeDtypeStruct((batch_size, *shape), dtype)

  maps = {
    'image': rows(jnp.uint8, *size, 3),
    **({'valid': rows(jnp.bool_, *size)} if valid else {}),
  }
  second = {SECOND + name: each for name, each in maps.items()}
  return {
    **maps,
    **(second if two_crops else {}),
    'size': rows(jnp.int32, 2),
    'mask': rows(jnp.bool_),
    **({'label': rows(jnp.int16, *size)} if label else {}),
    **(
      {'index': rows(jnp.int32), 'drawn_class': rows(jnp.int32)}
      if paired
      else {}
    ),
    **({} if num_tags is None else {'tags': rows(jnp.bool_, num_tags)}),
  }


def batch_images_to_symmetric(
  images: 'Real[jax.Array, "*B H W 3"]',
) -> 'Float[jax.Array, "*B H W 3"]':
  """Maps pixels from 0…255 to [-1, 1], the range of images on the device."""
  # Not x / 127.5 - 1, which exceeds 1 at x = 255 when compiled.
  return (images.astype(jnp.float32) - 127.5) / 127.5


def batch_images_to_uint8(
  images: Float[np.ndarray, '*B H W 3'],
) -> UInt8[np.ndarray, '*B H W 3']:
  """Maps pixels from [-1, 1] back to 0…255, clipped and rounded."""
  scaled = (np.asarray(images, np.float32) + 1.0) * 127.5
  return np.clip(np.rint(scaled), 0, 255).astype(np.uint8)


def join_batch_rows(arrays: 'Sequence[jax.Array]') -> 'jax.Array':
  """Interleaves V arrays [B, …] into one array [B·V, …].

  Row b of array v becomes row b·V + v.

  Args:
    arrays: V arrays of the same shape and type.
  """
  # The batch axis is sharded over devices: a concatenation along it would move
  # rows between devices, interleaving keeps every row on its device.
  stacked = jnp.stack(arrays, axis=1)
  return stacked.reshape((-1, *stacked.shape[2:]))


def split_batch_rows(
  array: 'jax.Array', num_arrays: int
) -> 'tuple[jax.Array, ...]':
  """Splits an array [B·V, …] of `join_batch_rows` into V arrays [B, …].

  Args:
    array: array whose row b·V + v belongs to row b of the v-th result.
    num_arrays: number V of arrays.

  Raises:
    ValueError: the rows do not divide into V arrays.
  """
  if array.shape[0] % num_arrays:
    raise ValueError(
      f'array: expected a multiple of {num_arrays} rows, got {len(array)}'
    )
  stacked = array.reshape((-1, num_arrays, *array.shape[1:]))
  return tuple(stacked[:, i] for i in range(num_arrays))
