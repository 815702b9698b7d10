"""Label maps of images of many sizes share few canvases."""

import numpy as np

from segcore.eval import inference
from tests.segcore.eval import test_inference as fakes


def test_images_of_hundreds_of_sizes_that_are_resized_share_few_programs():
  rng = np.random.default_rng(0)
  short = rng.integers(300, 800, 400).tolist()
  sizes = [(n, int(n * rng.uniform(1, 2))) for n in short]
  label_maps = fakes.predictor(fakes.pointwise, multiple=32, short_side=242)
  groups = [label_maps.group(size) for size in sizes]
  assert len({group.input_sizes for group in groups}) == 9
  assert len(set(groups)) < 70
  for (height, width), group in zip(sizes, groups, strict=True):
    assert height <= group.padded_size[0] < 2 * height
    assert width <= group.padded_size[1] < 2 * width


def test_the_canvas_of_a_label_map_changes_nothing(monkeypatch):
  images = [fakes.photograph(19, 30), fakes.photograph(20, 29, seed=1)]
  label_maps = fakes.predictor(
    fakes.neighbor, 2, 'probs', short_side=8, flip=True
  )
  in_canvas = fakes.predict(label_maps, images)
  assert label_maps.group((19, 30)).padded_size == (20, 30)
  monkeypatch.setattr(inference, '_smallest_canvas', lambda _, size: size)
  for image, probs in zip(images, in_canvas, strict=True):
    (expected,) = fakes.predict(label_maps, [image])
    np.testing.assert_allclose(probs, expected, atol=1e-6)
