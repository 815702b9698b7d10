"""Resizing of whole images before a protocol is applied.

On the host by OpenCV or Pillow, or, for exported programs, on the device.
"""

import jax.numpy as jnp
import numpy as np
from jax import core
from jaxtyping import Array, UInt8

from input_pipeline import resampling
from segcore.eval import protocols
from segcore.models.layers import resize


def resize_protocol_image(
  image: UInt8[np.ndarray, 'H W 3'], protocol: protocols.ProtocolOptions
) -> UInt8[np.ndarray, 'height width 3']:
  """Resizes an image as a protocol does before all else."""
  size = protocol.resized_size(image.shape[:2])
  if size == image.shape[:2]:
    return image
  if protocol.short_side:
    return resampling.resize_image_antialiased(image, size)
  if protocol.resizes_by_corners:
    rows, columns = (
      resize.bilinear_resize_matrix(n, new, align_corners=True)
      for n, new in zip(image.shape[:2], size, strict=True)
    )
    resized = np.tensordot(rows, image.astype(np.float32), axes=1)
    resized = np.matmul(columns, resized)
    return np.floor(resized + 0.5).astype(np.uint8)
  return resampling.resize_image_bilinear(image, size)


def resize_protocol_images_on_device(
  images: UInt8[Array, 'B H W 3'],
  size: resize.Size,
  protocol: protocols.ProtocolOptions,
) -> UInt8[Array, 'B h w 3']:
  """Resizes as `resize_protocol_image` does, in a traceable function."""
  if protocol.short_side:
    return resize.resize_antialiased_uint8(images, size)
  resized = resize.resize_bilinear(
    images.astype(jnp.float32), size, protocol.resizes_by_corners
  )
  return jnp.floor(resized + 0.5).astype(jnp.uint8)


def symbolic_protocol_size(
  size: resize.Size, protocol: protocols.ProtocolOptions
) -> resize.Size:
  """Returns what `ProtocolOptions.resized_size` does; sides may be symbolic."""
  if not protocol.resizes_images:
    return size
  if multiple := protocol.side_multiple:
    height, width = (
      core.max_dim((2 * n + multiple) // (2 * multiple), 1) * multiple
      for n in size
    )
    return height, width
  shorter, longer = core.min_dim(*size), core.max_dim(*size)
  # jax cannot infer that a symbolic long side is not below the short side, nor
  # that a side is not 0.
  if any(protocol.fit_sides):
    long, short = protocol.fit_sides
    height, width = (
      core.max_dim(
        # The smaller of n·long / longer and n·short / shorter, rounded half up.
        core.min_dim(
          (2 * n * long + longer) // (2 * longer),
          (2 * n * short + shorter) // (2 * shorter),
        ),
        1,
      )
      for n in size
    )
    return height, width
  if protocol.long_side:
    height, width = (
      core.max_dim(protocol.long_side * n // longer, 1) for n in size
    )
    return height, width
  height, width = (
    core.max_dim(protocol.short_side * n // shorter, protocol.short_side)
    for n in size
  )
  return height, width
