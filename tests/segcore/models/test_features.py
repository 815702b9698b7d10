import jax
import pytest

from tests.support import reference_networks


def test_missing_maps_are_refused_with_the_maps_there_are():
  maps = reference_networks.draw_maps((2, 3), (4, 5))
  with pytest.raises(ValueError, match=r'no map at stride 8; .* strides 2, 4'):
    maps.at_stride(8)
  with pytest.raises(ValueError, match=r"no map named 'x'; .* map0, map1"):
    maps.by_name('x')
  shapes = jax.tree.map(lambda x: x.shape[-1], maps)
  assert shapes.at_stride(4).array == 5
