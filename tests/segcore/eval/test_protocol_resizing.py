"""Images resized on the host, and in exported programs for any size."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from segcore.eval import protocol_resizing, protocols, view_maps


@pytest.mark.parametrize(
  'fields',
  [
    {'fit_sides': (30, 19)},
    {'short_side': 9},
    {'long_side': 30},
    {'side_multiple': 14},
    {'side_multiple': 14, 'align_corners': True},
  ],
)
def test_exported_programs_resize_as_the_host_does(fields):
  protocol = protocols.ProtocolOptions(**fields)

  def resized(images):
    size = protocol_resizing.symbolic_protocol_size(images.shape[1:3], protocol)
    return protocol_resizing.resize_protocol_images_on_device(
      images, size, protocol
    )

  h, w = jax.export.symbolic_shape('h, w')
  shape = jax.ShapeDtypeStruct((1, h, w, 3), jnp.uint8)
  program = jax.export.export(jax.jit(resized))(shape).call
  rng = np.random.default_rng(0)
  for size in ((20, 40), (41, 23), (19, 30), (8, 9)):
    image = rng.integers(0, 256, (*size, 3), np.uint8)
    expected = protocol_resizing.resize_protocol_image(image, protocol)
    assert expected.shape[:2] == protocol.resized_size(size)
    actual = np.asarray(program(image[None]))[0]
    # OpenCV's weights have 11 bits.
    assert actual.dtype == np.uint8
    assert np.abs(actual.astype(int) - expected).max() <= 1


def test_corners_stay_corners_there_and_back():
  protocol = protocols.ProtocolOptions(side_multiple=14, align_corners=True)
  # Linear in the position of a pixel between the corners.
  image = np.linspace(0, 240, 25)[:, None] + np.zeros((1, 20))
  image = np.stack([np.rint(image).astype(np.uint8)] * 3, axis=-1)
  resized = protocol_resizing.resize_protocol_image(image, protocol)
  assert resized.shape == (28, 14, 3)
  expected = np.linspace(0, 240, 28)
  assert np.abs(resized[:, 3, 0] - expected).max() <= 0.51
  # Scores that are linear stay so, and reach the corners.
  [rows, columns] = view_maps.one_image_upsampling_matrices(
    (2, 3), (28, 14), (28, 14), (25, 20), protocol
  )
  np.testing.assert_allclose(
    rows @ np.array([0.0, 1.0]), np.linspace(0, 1, 25), atol=1e-5
  )
  np.testing.assert_allclose(
    columns @ np.array([0.0, 1.0, 2.0]), np.linspace(0, 2, 20), atol=1e-5
  )


def test_sides_are_resized_to_the_nearest_multiple():
  protocol = protocols.ProtocolOptions(side_multiple=14)
  assert protocol.resized_size((500, 375)) == (504, 378)
  # A half is rounded up, and nothing vanishes.
  assert protocol.resized_size((35, 3)) == (42, 14)
  assert protocol.describe() == (
    'whole image, sides resized to multiples of 14, single scale'
  )
  with pytest.raises(ValueError, match='side_multiple=14 contradict'):
    protocols.ProtocolOptions(side_multiple=14, short_side=9)
