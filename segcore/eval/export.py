"""The network of a finished run as one file that needs none of this code.

  python -m ddep.main --config=… --workdir=runs/roads --stage=export

writes `export/model.stablehlo`, a program of `jax.export` from uint8
[1, H, W, 3] to class ids int16 [1, H, W], with pre-processing, weights, and
resizing to the image's own size inside; and `export/classes.json`, what the ids
mean.
`examples/segment_exported.py` uses them with jax, numpy and Pillow alone.
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

# Where the program runs: one file serves all.
PLATFORMS = ('cpu', 'cuda', 'tpu')
PROGRAM, CLASSES = 'model.stablehlo', 'classes.json'
# An image on which the file is compared with the network it came from.
_COMPARED = (97, 131)


class Request(NamedTuple):
  """What is to be exported.

  Attributes:
    size: height and width that images are resized to inside of the program;
      None shows the network the image as it is.
  """

  size: tuple[int, int] | None = None


def run(model: predict.Model, folder: files.Path, request: Request) -> None:
  """Writes the files, reads them back, and compares them with the network.

  Raises:
    UserError: the network or its protocol is not made for images of any size,
      or the folder cannot be written.
  """
  exported = program(model, request.size)
  if jax.process_index() != 0:
    return
  content = bytes(exported.serialize())
  json_files.write(
    folder / CLASSES,
    {
      'classes': model.classes,
      'palette': model.palette,
      'size': request.size,
      'platforms': PLATFORMS,
    },
  )
  path = folder / PROGRAM
  with predict.writing(folder):
    files.write(path, content)
  again = jax_export.deserialize(bytearray(path.read_bytes()))
  size = request.size or _COMPARED
  image = np.random.default_rng(0).integers(0, 256, (1, *size, 3), np.uint8)
  found = np.asarray(again.call(image))
  group = model.predictor.group(size)
  inputs = model.predictor.prepare([image[0]], group)
  expected = np.asarray(model.predictor(jax.device_get(model.state), inputs))
  same = np.mean(found == expected[:, : size[0], : size[1]])
  console.log(
    f'exported: {path}, {len(content) / 1e6:,.1f} MB; read back, it agrees '
    f'with the network on {same:.2%} of a {size[0]}x{size[1]} image of noise'
  )


def program(
  model: predict.Model, size: tuple[int, int] | None = None
) -> jax_export.Exported:
  """The program, for images of any size.

  Raises:
    UserError: it cannot be had without a size.
  """
  # One device: an exported program is bound to the number of them.
  state = jax.device_get(model.state)

  def label(images: UInt8[Array, '1 H W 3']) -> Int16[Array, '1 H W']:
    if size is None:
      return model.predictor.label(state, images)
    shown = resize.antialiased_uint8(images, size)
    found = model.predictor.label(state, shown)
    for axis, (old, new) in enumerate(
      zip(size, images.shape[1:3], strict=True), 1
    ):
      found = jnp.take(found, jnp.arange(new) * old // new, axis=axis)
    return found

  height, width = jax_export.symbolic_shape(
    'H, W', constraints=('H >= 2', 'W >= 2')
  )
  shape = jax.ShapeDtypeStruct((1, height, width, 3), jnp.uint8)
  try:
    return jax_export.export(jax.jit(label), platforms=PLATFORMS)(shape)
  except (*_OF_SHAPES, errors.UserError) as error:
    if size is not None:
      raise
    reason = str(error).strip().splitlines()[0].rstrip('.')
    raise errors.UserError(
      'this network, by this protocol, cannot be exported for images of any '
      f'size ({reason}): name the size it looks at, --export_size=HxW'
    ) from error


# What jax and the networks raise where a shape has to be known.
_OF_SHAPES = (
  jax.errors.ConcretizationTypeError,
  NotImplementedError,
  TypeError,
  ValueError,
)
