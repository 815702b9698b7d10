import numpy as np
import PIL.Image

from input_pipeline import splits
from segcore.eval import panels

PALETTE = ((0, 0, 0), (200, 0, 0), (0, 100, 50))
LABEL = np.array([[0, 1], [2, -1]])
GRAY = panels.IGNORED


def test_colors_of_classes():
  assert panels.colorize(LABEL, PALETTE).tolist() == [
    [[0, 0, 0], [200, 0, 0]],
    [[0, 100, 50], list(GRAY)],
  ]


def test_overlays_mix_and_leave_pixels_without_a_label():
  image = np.full((2, 2, 3), 100, np.uint8)
  assert panels.draw_overlay(image, LABEL, PALETTE, 0.25).tolist() == [
    [[75, 75, 75], [125, 75, 75]],
    [[75, 100, 88], [100, 100, 100]],
  ]


def test_errors_are_red_where_there_is_a_label():
  prediction = np.array([[0, 2], [2, 0]])
  assert panels.draw_errors(LABEL, prediction).tolist() == [
    [[255, 255, 255], list(panels.WRONG)],
    [[255, 255, 255], list(GRAY)],
  ]


def test_panels_show_every_map_and_name_what_is_in_it():
  image = np.full((30, 60, 3), 120, np.uint8)
  label = np.zeros((30, 60), int)
  label[:, 30:] = 1
  prediction = np.zeros((30, 60), int)
  examples = [panels.Example(image, label, prediction)] * 2
  found = panels.draw_panels(examples, ('a', 'b', 'c'), PALETTE)
  assert found.dtype == np.uint8
  # Four tiles of 96 pixels beside one another, two rows of 48, below a line.
  assert found.shape[1] == 4 * 96 + 3 * 4
  first_row = found[14 : 14 + 48]
  assert (first_row[:, :96] == 120).all()
  assert (first_row[:, 100 + 48 : 100 + 96] == PALETTE[1]).all()
  assert (first_row[:, 200 : 200 + 96] == PALETTE[0]).all()
  assert (first_row[:, 300 + 48 : 300 + 96] == panels.WRONG).all()
  # The legend has the colors that were seen, not the third one.
  below = found[14 + 2 * 52 :].reshape(-1, 3).tolist()
  assert list(PALETTE[1]) in below
  assert list(PALETTE[2]) not in below


def test_pictures_of_other_shapes_share_a_grid():
  wide, tall = np.zeros((10, 40, 3), np.uint8), np.zeros((120, 30, 3), np.uint8)
  found = panels.draw_grid([[wide, wide], [tall, tall]], ('x', 'y'))
  assert found.shape == (18 + 30 + 120 + 2 * 4, 2 * 120 + 4, 3)


def test_shrunk_pictures_are_averaged_and_enlarged_ones_stay():
  fine = np.indices((512, 512)).sum(axis=0) % 2 * np.uint8(255)
  fine = np.repeat(fine[..., None].astype(np.uint8), 3, axis=2)
  shrunk = panels.draw_grid([[fine]], ('x',))
  assert shrunk.shape[1] == 256
  assert np.abs(shrunk[38 : 38 + 256].astype(int) - 127).max() <= 1
  grown = panels.draw_grid([[fine[:2, :2]]], ('x',))[14 : 14 + 96]
  assert grown.shape[1] == 96
  assert set(np.unique(grown)) == {0, 255}


def test_a_legend_of_many_classes_stays_legible():
  names = [f'class {i}' for i in range(100)]
  found = panels.draw_legend(names, [(i, 0, 0) for i in range(100)], 600, 120)
  assert found.shape[1] == 600
  assert found.shape[0] > 100


def test_positions_are_spread():
  assert splits.evenly_spaced(3, 8) == [0, 1, 2]
  assert splits.evenly_spaced(100, 3) == [0, 49, 99]
  assert splits.evenly_spaced(0, 4) == []


def test_a_picture_is_written_as_it_is(tmp_path):
  picture = np.random.default_rng(0).integers(0, 256, (5, 7, 3), np.uint8)
  panels.write_png(tmp_path / 'x.png', picture)
  with PIL.Image.open(tmp_path / 'x.png') as image:
    np.testing.assert_array_equal(np.asarray(image), picture)
