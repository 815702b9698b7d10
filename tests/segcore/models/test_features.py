import jax
import pytest

from segcore.models import features
from tests.support import reference_networks


def test_near_strides_are_compared_by_their_factor():
  strides = (1.75, 3.5, 7, 14)
  maps = features.Features(
    tuple(features.FeatureMap(f'map{i}', n, i) for i, n in enumerate(strides))
  )
  for stride, nearest in ((1, 1.75), (4, 3.5), (5, 7), (4.9, 3.5), (30, 14)):
    assert maps.near_stride(stride).stride == nearest


def test_missing_maps_are_refused_with_the_maps_there_are():
  maps = reference_networks.draw_maps((2, 3), (4, 5))
  with pytest.raises(ValueError, match=r'no map at stride 8; .* strides 2, 4'):
    maps.at_stride(8)
  with pytest.raises(ValueError, match=r"no map named 'x'; .* map0, map1"):
    maps.by_name('x')
  shapes = jax.tree.map(lambda x: x.shape[-1], maps)
  assert shapes.at_stride(4).array == 5
