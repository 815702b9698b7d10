"""Options of a folder that contradict each other are refused."""

import pytest

from input_pipeline.builders import folders
from tests.support import messages


@pytest.mark.parametrize(
  ('changes', 'message'),
  [
    ({'source': ''}, 'source is empty: give the folder of the images'),
    (
      {'val_fraction': 1.0},
      'val_fraction: expected 0 or more, and below 1, got 1.0',
    ),
    (
      {'on_bad_example': 'stop'},
      "on_bad_example: expected one of ('error', 'skip'), got 'stop'",
    ),
    (
      {'images': 'x{split}', 'masks': '{split}'},
      'images: expected {split} once, as the whole name of a folder, got '
      "'x{split}'",
    ),
    (
      {'images': '{split}/a', 'masks': '{split}/b', 'val_fraction': 0.1},
      "val_fraction: expected 0, as images='{split}/a' has its splits in "
      'folders, got 0.1',
    ),
    ({'masks': ''}, 'masks is empty: give the folder of the masks'),
    ({'classes': ''}, 'classes is empty: give the file of the class list'),
    (
      {'images': '{split}/images'},
      'masks: expected {split} in both images and masks or in neither, got '
      "'masks' with images='{split}/images'",
    ),
    (
      {'images': ''},
      'masks: expected a folder outside of the images, as every PNG there is '
      "an image, got 'masks' with images='': move the masks, or set "
      'mask_suffix to the end of their names',
    ),
    (
      {'without_mask': 'skip'},
      "without_mask: expected one of ('error', 'unlabeled'), got 'skip'",
    ),
    (
      {'ignore': -1},
      'ignore: expected a value of 0 to 65535, a color of three values of 0 to '
      '255, or None, got -1',
    ),
    (
      {'ignore': (0, 0, 256)},
      'ignore: expected a value of 0 to 65535, a color of three values of 0 to '
      '255, or None, got (0, 0, 256)',
    ),
  ],
)
def test_invalid_options_are_refused(changes, message):
  options = {
    'source': 'x',
    'images': 'images',
    'masks': 'masks',
    'classes': 'classes.txt',
    **changes,
  }
  assert (
    messages.message_of(folders.ImageMaskFolderOptions, **options) == message
  )
