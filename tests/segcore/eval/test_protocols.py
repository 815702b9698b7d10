import dataclasses

import jax
import numpy as np
import pytest

from segcore.eval import protocol_views, protocols
from segcore.models.layers import resize

SIZES = [(30, 47), (64, 64), (100, 33), (7, 5)]

PROTOCOLS = {
  'whole': protocols.ProtocolOptions(),
  'flip': protocols.ProtocolOptions(flip=True),
  'halves': protocols.ProtocolOptions(tiling='halves', flip=True),
  'scales': protocols.ProtocolOptions(scales=(0.5, 1.0, 1.75)),
  'windows': protocols.ProtocolOptions(
    tiling='sliding_window', window=(32, 48), stride=(21, 32)
  ),
  'padded': protocols.ProtocolOptions(
    tiling='sliding_window',
    window=(48, 48),
    stride=(48, 48),
    padding_mode='mean',
    flip=True,
  ),
  'all': protocols.ProtocolOptions(
    tiling='sliding_window',
    window=(32, 32),
    stride=(21, 21),
    scales=(0.5, 1.25),
    flip=True,
    antialias=True,
  ),
}


@pytest.mark.parametrize('name', PROTOCOLS)
@pytest.mark.parametrize('size', SIZES)
def test_weights_of_a_pixel_sum_to_one(name, size):
  views = PROTOCOLS[name].build(16)(size)
  total = sum(view.weights() for view in views)
  np.testing.assert_allclose(total, np.ones(size), atol=1e-6)
  for view in views:
    height, width = view.input_size
    assert height % 16 == width % 16 == 0
    # An input is a weighted mean of the image's pixels, or padding.
    expected = [1.0] if name != 'padded' else [0.0, 1.0]
    for read in (view.read_rows, view.read_columns):
      assert set(np.round(read.sum(axis=1), 5)) <= set(expected)


@pytest.mark.parametrize('name', PROTOCOLS)
def test_rows_of_maps_have_at_most_max_taps_nonzeros(name):
  protocol = PROTOCOLS[name]
  for size in [*SIZES, (37, 101), (255, 19)]:
    for view in protocol.build(16)(size):
      for read in (view.read_rows, view.read_columns):
        assert np.diff(read.indptr).max() <= protocol.max_taps[0]
      for write in (view.write_rows, view.write_columns):
        assert np.diff(write.indptr).max() <= protocol.max_taps[1]


def window_starts(size, window, stride):
  """Returns (top, left) of each window, from the pixels that it reads."""
  protocol = protocol_views.sliding_window_views(
    protocol_views.whole_image_views(1), window, stride
  )
  return [
    (int(view.read_rows.indices[0]), int(view.read_columns.indices[0]))
    for view in protocol(size)
  ]


def test_cityscapes_has_8_windows_inside_of_the_image():
  starts = window_starts((1024, 2048), (769, 769), (513, 513))
  assert starts == [
    *[(0, 0), (0, 513), (0, 1026), (0, 1279)],
    *[(255, 0), (255, 513), (255, 1026), (255, 1279)],
  ]


@pytest.mark.parametrize(
  ('length', 'starts'), [(5, [0]), (6, [0]), (7, [0, 1]), (12, [0, 4, 6])]
)
def test_window_starts(length, starts):
  assert window_starts((length, 6), (6, 6), (4, 4)) == [(s, 0) for s in starts]


def test_overlapping_windows_have_equal_weights():
  protocol = protocol_views.sliding_window_views(
    protocol_views.whole_image_views(1), (1, 4), (1, 2)
  )
  weights = [view.weights()[0].tolist() for view in protocol((1, 7))]
  half, third = 1 / 2, 1 / 3
  # Starts 0, 2, 3: column 3 is in all three.
  assert np.allclose(
    weights,
    [
      [1, 1, half, third, 0, 0, 0],
      [0, 0, half, third, half, half, 0],
      [0, 0, 0, third, half, half, 1],
    ],
  )


def test_flipped_view_reads_columns_in_reverse():
  first, second = protocol_views.flip_averaged_views(
    protocol_views.whole_image_views(4)
  )((1, 3))
  row = np.array([10, 20, 30])
  # Padded by reflection at the right.
  assert (first.read_columns @ row).tolist() == [10, 20, 30, 30]
  assert (second.read_columns @ row).tolist() == [30, 20, 10, 10]
  assert (first.write_columns @ [1, 2, 3, 4]).tolist() == [1, 2, 3]
  assert (second.write_columns @ [1, 2, 3, 4]).tolist() == [3, 2, 1]


def test_images_smaller_than_a_window_are_padded_by_reflection():
  protocol = protocol_views.sliding_window_views(
    protocol_views.whole_image_views(1), (1, 7), (1, 7)
  )
  (view,) = protocol((1, 3))
  assert (view.read_columns @ [1, 2, 3]).tolist() == [1, 2, 3, 3, 2, 1, 1]
  assert (view.write_columns @ np.arange(7)).tolist() == [0, 1, 2]


def test_images_smaller_than_a_window_are_centered_in_it():
  protocol = protocol_views.sliding_window_views(
    protocol_views.whole_image_views(1), (1, 6), (1, 6), centered=True
  )
  (view,) = protocol((1, 3))
  # The smaller half of the padding is before.
  assert (view.read_columns @ [1, 2, 3]).tolist() == [0, 1, 2, 3, 0, 0]
  assert (view.write_columns @ np.arange(6)).tolist() == [1, 2, 3]
  # An axis that is long enough is not padded.
  assert len(protocol((1, 8))) == 2


def test_halves_of_an_odd_width():
  left, right = protocol_views.half_image_views(
    protocol_views.whole_image_views(1)
  )((1, 5))
  assert (left.read_columns @ np.arange(5)).tolist() == [0, 1]
  assert (right.read_columns @ np.arange(5)).tolist() == [2, 3, 4]
  assert [v.weights()[0].tolist() for v in (left, right)] == [
    [1, 1, 0, 0, 0],
    [0, 0, 1, 1, 1],
  ]


@pytest.mark.parametrize('antialias', [False, True])
@pytest.mark.parametrize('scaled', [(5, 8), (10, 26), (14, 20)])
def test_scaled_inputs_equal_resized_images(scaled, antialias):
  image = np.random.default_rng(0).random((10, 13)).astype(np.float32)
  protocol = protocol_views.rescaled_views(
    protocol_views.whole_image_views(1), scaled, antialias
  )
  (view,) = protocol((10, 13))
  inputs = view.read_rows @ image @ view.read_columns.T
  if antialias:
    expected = jax.image.resize(image, scaled, 'bilinear')
  else:
    pixels = jax.numpy.asarray(image)[None, :, :, None]
    expected = resize.resize_bilinear(pixels, scaled)[0, :, :, 0]
  np.testing.assert_allclose(inputs, expected, atol=1e-5)


def test_scaled_sizes_are_rounded():
  protocol = protocol_views.multi_scale_views(
    protocol_views.whole_image_views(1), (0.5, 1.75)
  )
  assert [view.input_size for view in protocol((375, 501))] == [
    *[(188, 251), (656, 877)]
  ]


@pytest.mark.parametrize(
  ('fields', 'message'),
  [
    (
      {'tiling': 'sliding_window'},
      "got window=.0, 0., stride=.0, 0. with tiling='sliding_window'",
    ),
    (
      {'window': (4, 4), 'stride': (2, 2)},
      "none otherwise, got .* with tiling='whole'",
    ),
    (
      {'tiling': 'sliding_window', 'window': (4, 4), 'stride': (5, 4)},
      'stride: expected at most the window .4, 4., got .5, 4.',
    ),
    (
      {'tiling': 'sliding_window', 'window': (0, 4), 'stride': (2, 4)},
      'window: expected .height, width. >= 1, got .0, 4.',
    ),
    ({'scales': ()}, 'scales: expected numbers above 0, got ..'),
    (
      {'scales': (0.5, 0.0)},
      'scales: expected numbers above 0, got .0.5, 0.0.',
    ),
    ({'size_multiple': -1}, 'size_multiple: expected >= 0, got -1'),
    ({'fit_sides': (512, 1024)}, 'fit_sides: expected .long side, short side.'),
    (
      {'fit_sides': (64, 32), 'short_side': 32},
      r'short_side=32 and fit_sides=\(64, 32\) contradict',
    ),
    (
      {'long_side': 9, 'short_side': 32},
      'short_side=32 and long_side=9 contradict',
    ),
    (
      {'scale_merge': 'max', 'average': 'probs'},
      "scale_merge='max': expected tiling='whole' and average='logits', got",
    ),
    (
      {'padding_mode': 'mean'},
      "padding_mode='mean': expected tiling='sliding_window', got 'whole'",
    ),
  ],
)
def test_impossible_protocols_are_refused(fields, message):
  with pytest.raises(ValueError, match=message):
    protocols.ProtocolOptions(**fields)


@pytest.mark.parametrize(
  ('name', 'text'),
  [
    ('whole', 'whole image, single scale'),
    (
      'halves',
      'left and right half, single scale, flip; averaged logits',
    ),
    (
      'windows',
      'sliding window 32x48, stride 21x32, single scale; averaged logits',
    ),
  ],
)
def test_protocols_are_described(name, text):
  assert PROTOCOLS[name].describe() == text


def test_descriptions_name_all_that_changes_the_numbers():
  shrunk = protocols.ProtocolOptions(scales=(0.5,), antialias=True)
  assert 'antialiased' in shrunk.describe()
  assert (
    'multiples of 64' in protocols.ProtocolOptions(size_multiple=64).describe()
  )
  assert (
    'multiples'
    not in protocols.ProtocolOptions(size_multiple=64, flip=True).describe()
  )
  fit = protocols.ProtocolOptions(fit_sides=(1024, 512))
  assert 'resized to fit 1024x512' in fit.describe()
  assert 'corners' in protocols.ProtocolOptions(align_corners=True).describe()
  assert 'mean color' in PROTOCOLS['padded'].describe()
  afa = protocols.ProtocolOptions(
    long_side=512, scales=(1.0, 0.5), scale_merge='max', flip=True, crf=True
  )
  assert afa.describe() == (
    'whole image, long side 512, scales 1.0, 0.5, flip; averaged logits, '
    'maximum of scales; dense CRF'
  )


def test_single_view_has_the_scale_nearest_to_1():
  single = protocols.ProtocolOptions(
    tiling='sliding_window',
    window=(8, 8),
    stride=(4, 4),
    scales=(0.5, 0.75, 1.25, 1.5),
    flip=True,
    average='probs',
    antialias=True,
    size_multiple=64,
  ).single_view()
  assert single == protocols.ProtocolOptions(
    scales=(1.25,), antialias=True, size_multiple=64
  )
  assert (
    single.is_single_view
    == protocols.ProtocolOptions(scales=(1.25,)).is_single_view
  )


def test_single_view_keeps_padding_and_align_corners():
  protocol = dataclasses.replace(PROTOCOLS['padded'], align_corners=True)
  single = protocol.single_view()
  assert single == dataclasses.replace(protocol, flip=False)
