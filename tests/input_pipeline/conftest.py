import numpy as np
import pytest

from tests.support import images


@pytest.fixture
def example():
  """Pixels 10 to 60 and their classes 1 to 6, in two rows of three."""
  label = np.array([[1, 2, 3], [4, 5, 6]], np.int16)
  return {
    'image': images.rgb(label * 10),
    'label': label,
    'id': np.bytes_(b'a'),
  }
