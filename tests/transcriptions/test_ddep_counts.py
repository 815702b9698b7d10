"""Parameters and operations of DDeP against the sums of §1.5."""

import numpy as np
import pytest

from tests.transcriptions import (
  ddep_checkpoints,
  ddep_counts,
  ddep_networks,
)

BIT = {'mids': (64, 128, 256, 512), 'blocks': (3, 4, 6, 3)}


def widths(times):
  return [times * width for width in ddep_networks.WIDTHS]


def test_parameters_of_the_encoders():
  assert ddep_counts.parameters(ddep_counts.stem_layers(224)) == 11_894_848
  assert ddep_counts.parameters(ddep_counts.vit_layers(224)) == 85_995_264
  bit = ddep_counts.stem_layers(224, preactivation=True, **BIT)
  assert ddep_counts.parameters(bit) == 23_500_352
  longer = ddep_counts.vit_layers(512, grid=32)
  assert ddep_counts.parameters(longer) == 85_995_264 + (1025 - 197) * 768


@pytest.mark.parametrize(
  ('layout', 'times', 'expected'),
  [
    ('A', 1, 28_947_907),
    ('A', 2, 95_570_819),
    ('A', 3, 199_868_739),
    ('A1', 1, 19_508_675),
    ('A1', 2, 57_817_987),
    ('A1', 3, 114_927_939),
    ('unet', 1, 50_181_571),
  ],
)
def test_parameters_of_the_decoders(layout, times, expected):
  options = {'layout': layout, 'widths': widths(times)}
  actual = ddep_counts.parameters(ddep_counts.decoder_layers(224, **options))
  assert actual == expected
  rng = np.random.default_rng(0)
  weights = ddep_checkpoints.decoder_weights(rng, std_scale=0, **options)
  assert ddep_checkpoints.count_parameters(weights, exclude=()) == expected


def test_parameters_of_the_blocks_and_of_a_wider_head():
  layers = ddep_counts.decoder_layers(224)
  assert [
    sum(layer.params for layer in layers if layer.name.startswith(name))
    for name in ('block0', 'block1', 'block2', 'block3', 'block4')
  ] == [16_519_168, 9_439_232, 2_360_320, 516_608, 110_848]
  single = ddep_counts.decoder_layers(224, layout='A1')
  assert sum(
    layer.params for layer in single if layer.name.startswith('block0')
  ) == 7_079_936  # fmt: skip
  for times, expected in ((1, 32_889), (2, 65_721), (3, 98_553)):
    few, many = (
      ddep_counts.parameters(
        ddep_counts.decoder_layers(224, widths=widths(times), outputs=outputs)
      )
      for outputs in (3, 60)
    )
    assert many - few == expected


@pytest.mark.parametrize(
  ('size', 'outputs', 'stem', 'vit', 'layout_a', 'layout_a1', 'sums'),
  [
    (224, 3, 7.9, 35.2, (60.3, 216.8, 469.4), (56.6, 202.0, 436.1),
     (103, 260, 512)),
    (512, 60, 41.1, 214.5, (332, 1167, 2504), (313, 1090, 2330),
     (588, 1422, 2760)),
    (1024, 19, 164.4, 1321, (1279, 4569, 9868), (1202, 4259, 9172),
     (2765, 6054, 11353)),
  ],
)  # fmt: skip
def test_operations_of_transunet(
  size, outputs, stem, vit, layout_a, layout_a1, sums
):
  found_stem = ddep_counts.gflops(ddep_counts.stem_layers(size))
  found_vit = ddep_counts.gflops(ddep_counts.vit_layers(size))
  assert found_stem == pytest.approx(stem, rel=0.01)
  assert found_vit == pytest.approx(vit, rel=0.01)
  for layout, expected in (('A', layout_a), ('A1', layout_a1)):
    decoders = [
      ddep_counts.gflops(
        ddep_counts.decoder_layers(
          size, layout=layout, widths=widths(times), outputs=outputs
        )
      )
      for times in (1, 2, 3)
    ]
    assert decoders == pytest.approx(expected, rel=0.01)
    if layout == 'A':
      both = [found_stem + found_vit + one for one in decoders]
      assert both == pytest.approx(sums, rel=0.01)


def test_operations_of_attention_alone_at_1024():
  layers = ddep_counts.vit_layers(1024)
  result = ddep_counts.gflops(
    layer for layer in layers if layer.name.endswith('attention')
  )
  assert result == pytest.approx(619, abs=0.5)


@pytest.mark.parametrize(
  ('size', 'encoder', 'expected'),
  [(224, 8.2, 68.6), (512, 42.7, 358), (1024, 171, 1434)],
)
def test_operations_of_the_unet(size, encoder, expected):
  actual = ddep_counts.gflops(ddep_counts.stem_layers(size, **BIT))
  assert actual == pytest.approx(encoder, rel=0.01)
  # The specification's row has the 3-channel head at every size.
  decoder = ddep_counts.decoder_layers(size, layout='unet')
  assert ddep_counts.gflops(decoder) == pytest.approx(expected, rel=0.01)


@pytest.mark.parametrize(('times', 'cost'), [(1, 212), (2, 669), (3, 1415)])
def test_operations_of_a_frozen_step(times, cost):
  result = ddep_counts.frozen_gflops(224, widths=widths(times))
  assert result == pytest.approx(cost, abs=0.5)
