"""Small undamaged data sets, in folders and in archives, and their options."""

import io
import struct
import tarfile
import zipfile

import numpy as np
import PIL.Image
import scipy.io

from benchmarks import image_folders
from input_pipeline import datasets, prepare

ADE = 'ADEChallengeData2016.zip'
VOC = 'VOCtrainval_11-May-2012.tar'
SBD = 'benchmark.tgz'
ADE_IMAGE = 'ADEChallengeData2016/images/training/ADE_train_00000001.jpg'
ADE_MASK = 'ADEChallengeData2016/annotations/training/ADE_train_00000001.png'
VOC_FOLDER = 'VOCdevkit/VOC2012'
VOC_TRAIN = f'{VOC_FOLDER}/ImageSets/Segmentation/train.txt'
SBD_MASK = 'benchmark_RELEASE/dataset/cls/2008_000003.mat'

FOLDER_OPTIONS = (
  '--images=images',
  '--masks=masks',
  '--classes=classes.txt',
  '--ignore=255',
)
EXIF_ORIENTATION = 0x0112
FOLDER = 'image_mask_folder'


def photograph(width=32, height=24):
  """Returns noise, so that a JPEG is mostly compressed data, not tables."""
  rng = np.random.default_rng(1000 * width + height)
  return rng.integers(0, 256, (height, width, 3), np.uint8)


def mask_of(width=32, height=24):
  """Returns columns of the values 0, 1, 2 and 255."""
  columns = np.array([0, 1, 2, 255], np.uint8)[np.arange(width) % 4]
  return np.tile(columns, (height, 1))


encoded = image_folders.encoded


def jpeg(width=32, height=24, **options):
  return encoded(photograph(width, height), 'JPEG', **options)


def rotated_jpeg(width=32, height=24):
  exif = PIL.Image.Exif()
  exif[EXIF_ORIENTATION] = 6  # Viewers rotate it by 90 degrees.
  return jpeg(width, height, exif=exif)


def write(path, data):
  path.parent.mkdir(parents=True, exist_ok=True)
  path.write_bytes(data)


def write_folder(source):
  """Writes three photographs with masks and a class list."""
  for name in ('a', 'b', 'c'):
    write(source / f'images/{name}.jpg', jpeg())
    write(source / f'masks/{name}.png', encoded(mask_of()))
  (source / 'classes.txt').write_text('sky\nroad\ncar\n')


def write_camvid(source):
  for split in ('train', 'val'):
    for name in ('0001', '0002'):
      write(source / f'{split}/images/{name}.jpg', jpeg(5, 4))
      pixels = np.full((4, 5), 11, np.uint8)
      write(source / f'{split}/labels/{name}.png', encoded(pixels))


def ade_files():
  files = {}
  for folder, name in (('training', 'train'), ('validation', 'val')):
    for number in (1, 2):
      stem = f'{folder}/ADE_{name}_{number:08}'
      files[f'ADEChallengeData2016/images/{stem}.jpg'] = jpeg(5, 4)
      files[f'ADEChallengeData2016/annotations/{stem}.png'] = encoded(
        np.full((4, 5), 150, np.uint8)
      )
  return files


def write_ade(source):
  source.mkdir()
  pack_zip(source / ADE, ade_files())


def voc_files():
  files = {
    VOC_TRAIN: b'2007_000001\n',
    f'{VOC_FOLDER}/ImageSets/Segmentation/val.txt': b'2007_000002\n',
  }
  for name in ('2007_000001', '2007_000002', '2008_000003'):
    files[f'{VOC_FOLDER}/JPEGImages/{name}.jpg'] = jpeg(5, 4)
  for name in ('2007_000001', '2007_000002'):
    files[f'{VOC_FOLDER}/SegmentationClass/{name}.png'] = encoded(
      np.full((4, 5), 20, np.uint8)
    )
  return files


def mat(**variables):
  data = io.BytesIO()
  scipy.io.savemat(data, variables)
  return data.getvalue()


def sbd_files():
  return {SBD_MASK: mat(GTcls={'Segmentation': np.ones((4, 5), np.uint8)})}


def write_voc(source):
  source.mkdir()
  pack_tar(source / VOC, voc_files())
  pack_tar(source / SBD, sbd_files(), 'w:gz')


def pack_zip(path, files, compression=zipfile.ZIP_STORED):
  with zipfile.ZipFile(path, 'w', compression) as archive:
    for name, data in files.items():
      archive.writestr(name, data)


def pack_tar(path, files, mode='w'):
  with tarfile.open(path, mode) as archive:
    for name, data in files.items():
      entry = tarfile.TarInfo(name)
      entry.size = len(data)
      archive.addfile(entry, io.BytesIO(data))


def truncate(path, part):
  """Keeps the first part of a file."""
  data = path.read_bytes()
  path.write_bytes(data[: int(len(data) * part)])


def flip(path, at):
  """Inverts a byte of a file."""
  data = bytearray(path.read_bytes())
  data[at] ^= 255
  path.write_bytes(data)


def chunk_of(png, kind=b'IDAT'):
  """Returns offset and length of the content of a PNG's chunk."""
  at = png.index(kind)
  return at + 4, struct.unpack('>I', png[at - 4 : at])[0]


HEALTHY = {
  'image_mask_folder': write_folder,
  'camvid': write_camvid,
  'ade20k': write_ade,
  'voc2012': write_voc,
}


def arguments_of(name, source, data_dir):
  return [
    name,
    f'--source={source}',
    f'--data_dir={data_dir}',
    *(FOLDER_OPTIONS if name == FOLDER else ()),
  ]


def options_of(name, source, **more):
  folder = {
    'images': 'images',
    'masks': 'masks',
    'classes': 'classes.txt',
    'ignore': '255',
  }
  return datasets.DataOptions(
    name,
    source=str(source),
    **(folder if name == FOLDER else {}),
    **more,
  )


def refusal(capfd, arguments):
  """Returns the only error that `prepare` prints, of a line or several."""
  capfd.readouterr()
  status = prepare.main(arguments)
  out, err = capfd.readouterr()
  assert 'Traceback' not in out + err
  lines = (out + err).splitlines()
  [at] = [i for i, line in enumerate(lines) if line.startswith('error: ')]
  assert status == 2
  return '\n'.join(lines[at:])
