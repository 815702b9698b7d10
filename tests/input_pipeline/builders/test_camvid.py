import os
import pathlib
import pickle

import numpy as np
import PIL.Image
import pytest
import tensorflow_datasets as tfds

from input_pipeline.builders import camvid
from input_pipeline.sources import records
from runtime import errors

DECODERS = {
  'image': tfds.decode.SkipDecoding(),
  'label': tfds.decode.SkipDecoding(),
}

needs_photographs = pytest.mark.skipif(
  'SEG_DATA_DIR' not in os.environ,
  reason='SEG_DATA_DIR, the folder with camvid in it, is not set',
)


def write_pair(source, name, mask):
  split, stem = name.split('/')
  for part in ('images', 'labels'):
    (source / split / part).mkdir(parents=True, exist_ok=True)
  mask = np.array(mask, np.uint8)
  photograph = np.full((*mask.shape, 3), 90, np.uint8)
  PIL.Image.fromarray(photograph).save(source / split / f'images/{stem}.jpg')
  PIL.Image.fromarray(mask).save(source / split / f'labels/{stem}.png')


@pytest.fixture
def source(tmp_path):
  source = tmp_path / 'camvid'
  write_pair(source, 'train/0002', [[11, 11, 11]])
  write_pair(source, 'train/0001', [[10, 0, 11, 3], [3, 3, 11, 10]])
  write_pair(source, 'val/0001', [[8], [8], [4]])
  return source


def test_records_in_the_order_of_their_names(source, tmp_path):
  builder = camvid.Camvid(str(source), data_dir=tmp_path / 'prepared')
  builder.download_and_prepare()
  train = builder.as_data_source('train', decoders=DECODERS)
  val = builder.as_data_source('val', decoders=DECODERS)
  actual = [
    (
      record['id'],
      records.decode_record_label(record['label']).tolist(),
      [int(tag) for tag in record['tags']],
    )
    for record in [*train, *val]
  ]
  assert actual == [
    (b'train/0001', [[10, 0, -1, 3], [3, 3, -1, 10]], [0, 3, 10]),
    (b'train/0002', [[-1, -1, -1]], []),
    (b'val/0001', [[8], [8], [4]], [4, 8]),
  ]
  jpeg = (source / 'train/images/0001.jpg').read_bytes()
  assert train[0]['image'] == jpeg


def test_prepared_records_need_no_source(source, tmp_path):
  data_dir = tmp_path / 'prepared'
  camvid.Camvid(str(source), data_dir=data_dir).download_and_prepare()
  builder = camvid.Camvid(data_dir=data_dir)
  builder.download_and_prepare()  # Does nothing.
  sent = pickle.dumps(builder.as_data_source('val', decoders=DECODERS))
  assert pickle.loads(sent)[0]['id'] == b'val/0001'


def message_of(builder):
  with pytest.raises(errors.UserError) as caught:
    builder.check()
  message = str(caught.value)
  assert '\n' not in message
  return message


def test_an_unknown_mask_value_is_refused(source, tmp_path):
  write_pair(source, 'val/0007', [[12, 12], [0, 1]])
  builder = camvid.Camvid(str(source), data_dir=tmp_path)
  assert message_of(builder) == (
    f'{source}/val/labels/0007.png: expected values 0…10, 11 (ignored), got 12 '
    '(2 pixels); download that file again: records are made of all files or of '
    'none'
  )


def test_another_folder_is_refused(source, tmp_path):
  builder = camvid.Camvid(str(source / 'train'), data_dir=tmp_path)
  assert message_of(builder) == (
    'source: expected camvid as {train,val}/{images,labels}, got '
    f'{source}/train without train/images'
  )


def test_an_empty_source_is_refused(tmp_path):
  assert message_of(camvid.Camvid(data_dir=tmp_path)) == (
    'source is empty: give the folder of camvid '
    '({train,val}/{images,labels}), or set SEG_DATA_DIR to the folder that '
    'holds a folder camvid'
  )


def photographs():
  return pathlib.Path(os.environ['SEG_DATA_DIR']) / 'camvid'


@pytest.mark.slow
@needs_photographs
def test_class_frequencies_of_the_photographs_are_the_published_ones(tmp_path):
  builder = camvid.Camvid(str(photographs()), data_dir=tmp_path)
  result, _ = builder.check()
  train = result.counts['train']
  assert (train.num_images, result.counts['val'].num_images) == (367, 101)
  shares = 100 * np.array([*train.pixels, train.ignored]) / (367 * 480 * 360)
  # Stated by the folder's README, in per cent.
  published = '16.85 23.26 .98 31.66 4.49 9.72 1.17 1.13 5.87 .64 .29 3.95'
  np.testing.assert_allclose(
    shares, [float(share) for share in published.split()], atol=0.005
  )
  assert result.skipped == result.warnings == ()


@needs_photographs
def test_photographs_are_prepared_unchanged(tmp_path):
  names = {}
  for split in ('train', 'val'):
    images = sorted((photographs() / split / 'images').glob('*.jpg'))[::40]
    names[split] = [path.stem for path in images]
    for part, suffix in (('images', 'jpg'), ('labels', 'png')):
      (tmp_path / split / part).mkdir(parents=True)
      for stem in names[split]:
        name = f'{split}/{part}/{stem}.{suffix}'
        (tmp_path / name).symlink_to(photographs() / name)
  builder = camvid.Camvid(str(tmp_path), data_dir=tmp_path / 'prepared')
  builder.download_and_prepare()
  for split, stems in names.items():
    source = builder.as_data_source(split, decoders=DECODERS)
    assert [record['id'].decode() for record in source] == [
      f'{split}/{stem}' for stem in stems
    ]
    for record in source:
      stem = photographs() / record['id'].decode().replace('/', '/images/', 1)
      assert record['image'] == stem.with_suffix('.jpg').read_bytes()
      stem = photographs() / record['id'].decode().replace('/', '/labels/', 1)
      mask = np.asarray(PIL.Image.open(stem.with_suffix('.png'))).astype(int)
      label = records.decode_record_label(record['label'])
      np.testing.assert_array_equal(label, np.where(mask == 11, -1, mask))
      assert list(record['tags']) == sorted(set(mask.ravel()) - {11})
