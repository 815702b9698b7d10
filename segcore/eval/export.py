"""Export of a trained network as one file that needs none of this code.

  python -m ddep.main --workdir=runs/roads --stage=export

writes `export/model.stablehlo`, a program of `jax.export` from uint8
[1, H, W, 3] to class ids int16 [1, H, W], which includes preprocessing, weights
and resizing to the size of the image; and `export/classes.json`, the names of
the class ids. `examples/segment_exported.py` uses them with jax, numpy and
Pillow alone.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import export as jax_export
from jaxtyping import Array, Int16, UInt8

from runtime import console, errors, files, json_files
from segcore.eval import predict
from segcore.models.layers import resize

# Platforms that the program is lowered for; one file serves all.
PLATFORMS = ('cpu', 'cuda', 'tpu')
PROGRAM, CLASSES = 'model.stablehlo', 'classes.json'
# Size of the image on which the file is compared with the network.
_COMPARISON_SIZE = (97, 131)


class Request(NamedTuple):
  """Options of an export.

  Attributes:
    size: height and width that the program resizes images to before the
      network; None for no resizing.
  """

  size: tuple[int, int] | None = None


def export_network(
  model: predict.Model, folder: files.Path, request: Request
) -> None:
  """Exports the network, and compares the exported program with it.

  Args:
    model: trained network and its data.
    folder: folder of the exported program.
    request: options of the export.

  Raises:
    UserError: the network or its protocol needs images of a fixed size, or the
      folder cannot be written.
  """
  exported = build_exported_program(model, request.size)
  if jax.process_index() != 0:
    return
  content = bytes(exported.serialize())
  json_files.write_json(
    folder / CLASSES,
    {
      'classes': model.classes,
      'palette': model.palette,
      'size': request.size,
      # Of the reader of images in examples/segment_exported.py.
      'follow_exif': model.image_options.follow_exif,
      'image_depth': model.image_options.image_depth,
      'platforms': PLATFORMS,
    },
  )
  path = folder / PROGRAM
  with predict.explaining_prediction_write_errors(folder):
    files.write_atomically(path, content)
  restored = jax_export.deserialize(bytearray(path.read_bytes()))
  size = request.size or _COMPARISON_SIZE
  image = np.random.default_rng(0).integers(0, 256, (1, *size, 3), np.uint8)
  labels = np.asarray(restored.call(image))
  group = model.predictor.group(size)
  inputs = model.predictor.prepare([image[0]], group)
  expected = np.asarray(model.predictor(jax.device_get(model.state), inputs))
  same = np.mean(labels == expected[:, : size[0], : size[1]])
  console.print_line(
    f'exported: {path}, {len(content) / 1e6:,.1f} MB; read back, it agrees '
    f'with the network on {same:.2%} of a {size[0]}x{size[1]} image of noise'
  )


def build_exported_program(
  model: predict.Model, size: tuple[int, int] | None = None
) -> jax_export.Exported:
  """Builds the program, for images of any size.

  Args:
    model: the trained network.
    size: height and width to which the program resizes images; None for none.

  Raises:
    UserError: the network cannot be traced with symbolic sides, so a size is
      needed.
  """
  # One device: an exported program is bound to the number of them.
  state = jax.device_get(model.state)

  def label(images: UInt8[Array, '1 H W 3']) -> Int16[Array, '1 H W']:
    if size is None:
      return model.predictor.label(state, images)
    resized = resize.resize_antialiased_uint8(images, size)
    labels = model.predictor.label(state, resized)
    for axis, (old, new) in enumerate(
      zip(size, images.shape[1:3], strict=True), 1
    ):
      labels = jnp.take(labels, jnp.arange(new) * old // new, axis=axis)
    return labels

  height, width = jax_export.symbolic_shape(
    'H, W', constraints=('H >= 2', 'W >= 2')
  )
  shape = jax.ShapeDtypeStruct((1, height, width, 3), jnp.uint8)
  try:
    return jax_export.export(jax.jit(label), platforms=PLATFORMS)(shape)
  except (*_SHAPE_ERRORS, errors.UserError) as error:
    if size is not None:
      raise
    reason = str(error).strip().splitlines()[0].rstrip('.')
    raise errors.UserError(
      'this network and protocol cannot be exported for images of any size '
      f'({reason}): give the size of its input, --export_size=HxW'
    ) from error


# Raised by jax and the networks where a side has to be a number.
_SHAPE_ERRORS = (
  jax.errors.ConcretizationTypeError,
  jax.errors.InconclusiveDimensionOperation,
  NotImplementedError,
  TypeError,
  ValueError,
)
