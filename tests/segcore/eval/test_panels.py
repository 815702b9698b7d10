import numpy as np
import PIL.Image

from input_pipeline import overlays, splits
from segcore.eval import panels

PALETTE = ((0, 0, 0), (200, 0, 0), (0, 100, 50))
LABEL = np.array([[0, 1], [2, -1]])
GRAY = panels.IGNORED


def test_labels_have_the_colors_of_their_classes():
  assert panels.colorize_label_map(LABEL, PALETTE).tolist() == [
    [[0, 0, 0], [200, 0, 0]],
    [[0, 100, 50], list(GRAY)],
  ]


def test_overlays_blend_labeled_pixels_only():
  image = np.full((2, 2, 3), 100, np.uint8)
  assert overlays.blend_label_map(image, LABEL, PALETTE, 0.25).tolist() == [
    [[75, 75, 75], [125, 75, 75]],
    [[75, 100, 88], [100, 100, 100]],
  ]


def test_wrong_labeled_pixels_are_red():
  prediction = np.array([[0, 2], [2, 0]])
  assert panels.draw_errors(LABEL, prediction).tolist() == [
    [[255, 255, 255], list(panels.WRONG)],
    [[255, 255, 255], list(GRAY)],
  ]


def test_panels_show_every_map_and_the_classes_in_them():
  image = np.full((30, 60, 3), 120, np.uint8)
  label = np.zeros((30, 60), int)
  label[:, 30:] = 1
  prediction = np.zeros((30, 60), int)
  examples = [panels.Example(image, label, prediction)] * 2
  picture = panels.draw_panels(examples, ('a', 'b', 'c'), PALETTE)
  assert picture.dtype == np.uint8
  # Four tiles of 96 pixels beside one another, two rows of 48, below a line.
  assert picture.shape[1] == 4 * 96 + 3 * 4
  first_row = picture[14 : 14 + 48]
  assert (first_row[:, :96] == 120).all()
  assert (first_row[:, 100 + 48 : 100 + 96] == PALETTE[1]).all()
  assert (first_row[:, 200 : 200 + 96] == PALETTE[0]).all()
  assert (first_row[:, 300 + 48 : 300 + 96] == panels.WRONG).all()
  # The legend has the colors of classes in the maps, not the third one.
  legend = picture[14 + 2 * 52 :].reshape(-1, 3).tolist()
  assert list(PALETTE[1]) in legend
  assert list(PALETTE[2]) not in legend


def test_pictures_of_different_shapes_share_a_grid():
  wide, tall = np.zeros((10, 40, 3), np.uint8), np.zeros((120, 30, 3), np.uint8)
  picture = panels.draw_picture_grid([[wide, wide], [tall, tall]], ('x', 'y'))
  assert picture.shape == (18 + 30 + 120 + 2 * 4, 2 * 120 + 4, 3)


def test_shrinking_averages_and_enlarging_keeps_colors():
  fine = np.indices((512, 512)).sum(axis=0) % 2 * np.uint8(255)
  fine = np.repeat(fine[..., None].astype(np.uint8), 3, axis=2)
  shrunk = panels.draw_picture_grid([[fine]], ('x',))
  assert shrunk.shape[1] == 256
  assert np.abs(shrunk[38 : 38 + 256].astype(int) - 127).max() <= 1
  enlarged = panels.draw_picture_grid([[fine[:2, :2]]], ('x',))[14 : 14 + 96]
  assert enlarged.shape[1] == 96
  assert set(np.unique(enlarged)) == {0, 255}


def test_legend_of_many_classes_has_several_lines():
  names = [f'class {i}' for i in range(100)]
  legend = panels.draw_class_legend(
    names, [(i, 0, 0) for i in range(100)], 600, 120
  )
  assert legend.shape[1] == 600
  assert legend.shape[0] > 100


def test_evenly_spaced_positions():
  assert splits.evenly_spaced_image_indices(3, 8) == [0, 1, 2]
  assert splits.evenly_spaced_image_indices(100, 3) == [0, 49, 99]
  assert splits.evenly_spaced_image_indices(0, 4) == []


def test_pictures_are_written_without_loss(tmp_path):
  picture = np.random.default_rng(0).integers(0, 256, (5, 7, 3), np.uint8)
  panels.write_picture_png(tmp_path / 'x.png', picture)
  with PIL.Image.open(tmp_path / 'x.png') as image:
    np.testing.assert_array_equal(np.asarray(image), picture)


def test_overlays_have_a_legend_of_the_classes_that_occur():
  image = np.full((60, 200, 3), 120, np.uint8)
  label = np.zeros((60, 200), int)
  label[20:40, 50:90] = 1
  picture = panels.draw_overlay_with_legend(
    image, label, ('a', 'b', 'c'), PALETTE
  )
  assert picture.shape[1] == 200
  # The photograph, tinted, is above; outlines have the full color.
  assert (picture[30, 70] == [148, 78, 78]).all()
  assert (picture[20, 50:90] == PALETTE[1]).all()
  legend = picture[60:].reshape(-1, 3).tolist()
  assert list(PALETTE[0]) in legend and list(PALETTE[1]) in legend
  assert list(PALETTE[2]) not in legend
