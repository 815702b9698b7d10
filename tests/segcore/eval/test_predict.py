import numpy as np
import PIL.Image
import pytest

from runtime import errors
from segcore.eval import predict

CLASSES = ('ground', 'disc')
PALETTE = ((0, 0, 0), (128, 0, 0))


@pytest.mark.parametrize('num_classes', [256, 919])
def test_encoded_label_maps_are_lossless(tmp_path, num_classes):
  label = np.arange(num_classes, dtype=np.int16).reshape(1, -1)
  palette = [(i % 256, i // 256, 7) for i in range(num_classes)]
  predict.encode_predicted_label_map(label, palette).save(tmp_path / 'x.png')
  with PIL.Image.open(tmp_path / 'x.png') as image:
    np.testing.assert_array_equal(np.asarray(image), label)
    if num_classes == 256:
      np.testing.assert_array_equal(
        np.asarray(image.convert('RGB'))[0], palette
      )


def test_unwritable_folder_is_a_user_error(tmp_path):
  (tmp_path / 'file').touch()
  out = tmp_path / 'file' / 'out'
  with (
    pytest.raises(errors.UserError) as caught,
    predict.explaining_prediction_write_errors(out),
  ):
    predict._write_classes(out, CLASSES, PALETTE)
  assert str(caught.value) == (
    f'cannot write to {out} (Not a directory): free some space, or choose '
    'another --out'
  )


def test_only_folders_of_predictions_are_overwritten(tmp_path):
  images, out = tmp_path / 'images', tmp_path / 'out'
  images.mkdir()
  predict.Request(images, out)
  predict._write_classes(out, CLASSES, PALETTE)
  predict.Request(images, out)
  (tmp_path / 'roads').mkdir()
  (tmp_path / 'roads' / 'classes.txt').touch()
  with pytest.raises(
    errors.UserError, match='expected a new folder or one of predictions'
  ):
    predict.Request(images, tmp_path / 'roads')
