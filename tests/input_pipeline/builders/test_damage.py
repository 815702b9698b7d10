"""Every kind of damage is reported in one line, with file and remedy."""

import contextlib
import io
import os
import pathlib
import re
import resource
import shutil
import struct
import tarfile
import types
import zipfile
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import cv2
import numpy as np
import PIL.Image
import pytest
import scipy.io

from input_pipeline import datasets, prepare, transforms
from input_pipeline.sources import archives, records

SKIP = "; repair or remove them, or set on_bad_example='skip'"
WHOLE = '; download that file again: records are made of all files or of none'
NOT_OFFICIAL = ': this is not the official archive, download that'
GET_AGAIN = ': download it again'
# Words of the part of a message that gives the remedy or the expectation.
REMEDY = re.compile(
  r'\b(choose|download|expected|free|give|keep|remove|rename|repair|save|take'
  r'|write)\b',
  re.IGNORECASE,
)

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


def photograph(width=32, height=24):
  """Noise, so that a JPEG of it is mostly compressed data, not tables."""
  rng = np.random.default_rng(1000 * width + height)
  return rng.integers(0, 256, (height, width, 3), np.uint8)


def mask_of(width=32, height=24):
  """Values 0, 1, 2 and 255 in columns."""
  columns = np.array([0, 1, 2, 255], np.uint8)[np.arange(width) % 4]
  return np.tile(columns, (height, 1))


def encoded(pixels, kind='PNG', **options):
  data = io.BytesIO()
  image = pixels
  if not isinstance(image, PIL.Image.Image):
    image = PIL.Image.fromarray(pixels)
  image.save(data, kind, **options)
  return data.getvalue()


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
  """Three photographs with masks and a class list."""
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
  """Offset and length of the content of a PNG's chunk."""
  at = png.index(kind)
  return at + 4, struct.unpack('>I', png[at - 4 : at])[0]


HEALTHY = {
  'image_mask_folder': write_folder,
  'camvid': write_camvid,
  'ade20k': write_ade,
  'voc2012': write_voc,
}


class Kind(NamedTuple):
  """A kind of damage, and the error message it must cause.

  Attributes:
    name: of the data set.
    damage: damages its source; returns another source, or None.
    file: in the source, which the message names.
    words: further parts of the message.
    limits: constants of `archives`, set low enough to be exceeded.
  """

  name: str
  damage: Callable[[pathlib.Path], pathlib.Path | None]
  file: str
  words: tuple[str, ...]
  limits: Mapping[str, Any]


KINDS: dict[str, Kind] = {}


def kind(name, file, *words, **limits):
  """Registers a function as a kind of damage, by its name."""

  def register(damage):
    assert damage.__name__ not in KINDS
    KINDS[damage.__name__] = Kind(name, damage, file, words, limits)
    return damage

  return register


of_folder = 'image_mask_folder'


# Images.


@kind(of_folder, 'images/b.jpg', 'cannot be decoded: ', 'truncated', SKIP)
def jpeg_cut_in_the_middle(source):
  truncate(source / 'images/b.jpg', 0.7)


@kind(of_folder, 'images/b.jpg', 'the JPEG has no end, truncated?', SKIP)
def jpeg_padded_with_zeros(source):
  data = (source / 'images/b.jpg').read_bytes()
  kept = data[: int(len(data) * 0.7)]
  write(source / 'images/b.jpg', kept.ljust(len(data), b'\0'))


@kind(of_folder, 'images/b.jpg', 'the JPEG has no end, truncated?', SKIP)
def jpeg_with_a_thumbnail_padded_with_zeros(source):
  data = jpeg(exif=b'Exif\0\0' + jpeg(8, 8))
  write(source / 'images/b.jpg', data[:-400] + bytes(400))


@kind(of_folder, 'images/b.jpg', 'is no JPEG or PNG file', SKIP)
def jpeg_of_no_bytes(source):
  write(source / 'images/b.jpg', b'')


@kind(of_folder, 'images/b.jpg', 'is no JPEG or PNG file', SKIP)
def text_called_jpg(source):
  write(source / 'images/b.jpg', b'<html>404 Not Found</html>\n')


@kind(of_folder, 'images/b.jpg', 'is no JPEG or PNG file', SKIP)
def gif_called_jpg(source):
  write(source / 'images/b.jpg', encoded(photograph(), 'GIF'))


@kind(of_folder, 'images/b.jpg', 'is no JPEG or PNG file', SKIP)
def bmp_called_jpg(source):
  write(source / 'images/b.jpg', encoded(photograph(), 'BMP'))


def replace_by_png(source, change):
  """Makes b a PNG of pixels that are stored as they are, and changes it."""
  (source / 'images/b.jpg').unlink()
  data = bytearray(encoded(photograph(), compress_level=0))
  write(source / 'images/b.png', change(data))


@kind(of_folder, 'images/b.png', 'cannot be decoded: ', SKIP)
def png_cut_off(source):
  replace_by_png(source, lambda data: data[: len(data) // 2])


@kind(of_folder, 'images/b.png', 'cannot be decoded', SKIP)
def png_with_a_wrong_checksum(source):
  def change(data):
    start, length = chunk_of(data)
    data[start + length] ^= 255
    return data

  replace_by_png(source, change)


@kind(of_folder, 'images/b.png', 'cannot be decoded', SKIP)
def png_with_a_wrong_pixel(source):
  def change(data):
    start, length = chunk_of(data)
    data[start + length // 2] ^= 255
    return data

  replace_by_png(source, change)


@kind(of_folder, 'images/b.png', 'or its header is damaged', SKIP)
def png_with_a_damaged_head(source):
  def change(data):
    data[chunk_of(data, b'IHDR')[0]] ^= 255
    return data

  replace_by_png(source, change)


@kind(of_folder, 'images/b.jpg', 'cannot be read: No such file', SKIP)
def image_that_is_a_link_to_nothing(source):
  (source / 'images/b.jpg').unlink()
  (source / 'images/b.jpg').symlink_to(source / 'moved/b.jpg')


@kind(of_folder, 'images/b.jpg', 'cannot be read: Input/output error', SKIP)
def image_that_cannot_be_read(source):
  (source / 'images/b.jpg').unlink()
  # Not by permissions: root may read everything.
  (source / 'images/b.jpg').symlink_to('/proc/self/mem')


@kind(of_folder, 'images/b.jpg', "b.jpg and b.png have the same id 'b'", SKIP)
def two_images_of_one_name(source):
  write(source / 'images/b.png', encoded(photograph()))


@kind(of_folder, 'images/\\udcff.jpg', 'its name is not UTF-8: rename it', SKIP)
def name_that_is_not_utf8(source):
  for name, suffix in (('images', '.jpg'), ('masks', '.png')):
    file = source / f'{name}/b{suffix}'
    file.rename(file.with_name(os.fsdecode(b'\xff') + suffix))


@kind(of_folder, 'images', 'expected images *.jpg, *.jpeg or *.png, got none')
def folder_without_images(source):
  shutil.rmtree(source / 'images')
  (source / 'images').mkdir()


@kind(of_folder, 'images', 'got no such folder')
def no_folder_of_images(source):
  shutil.rmtree(source / 'images')


@kind(of_folder, '', 'source: expected the folder of the images, got ')
def no_source(source):
  shutil.rmtree(source)


# Masks.


@kind(of_folder, 'masks/b.png', 'cannot be decoded: ', SKIP)
def mask_cut_off(source):
  truncate(source / 'masks/b.png', 0.6)


@kind(of_folder, 'masks/b.png', 'cannot be decoded', SKIP)
def mask_with_a_wrong_checksum(source):
  data = (source / 'masks/b.png').read_bytes()
  flip(source / 'masks/b.png', sum(chunk_of(data)))


@kind(of_folder, 'masks/b.png', 'cannot be decoded', SKIP)
def mask_with_a_wrong_pixel(source):
  data = bytearray(encoded(np.zeros((24, 32), np.uint8), compress_level=0))
  start, length = chunk_of(data)
  data[start + length // 2] ^= 1  # Another class, in the middle.
  write(source / 'masks/b.png', data)


@kind(of_folder, 'masks/b.png', 'is no PNG file', SKIP)
def mask_as_jpeg(source):
  write(source / 'masks/b.png', encoded(mask_of(), 'JPEG'))


@kind(
  of_folder,
  'masks/b.png',
  'a mask of 32x24 pixels as its image, got 33x24',
  SKIP,
)
def mask_of_another_size(source):
  write(source / 'masks/b.png', encoded(mask_of(33, 24)))


@kind(
  of_folder, 'masks/b.png', 'a mask of 32x24 pixels as its image, got 1x1', SKIP
)
def mask_of_one_pixel(source):
  write(source / 'masks/b.png', encoded(np.zeros((1, 1), np.uint8)))


@kind(
  of_folder,
  'masks/b.png',
  'expected a mask of 32x24 pixels as its image, got 24x32; the rotation in '
  'the EXIF tag of the image is not applied',
  SKIP,
)
def mask_rotated_as_exif_says(source):
  write(source / 'images/b.jpg', rotated_jpeg())
  write(source / 'masks/b.png', encoded(mask_of(24, 32)))


@kind(
  of_folder,
  'masks/b.png',
  'expected values 0…2, 255 (ignored), got 3 (1 pixels)',
  SKIP,
)
def mask_value_out_of_range(source):
  pixels = mask_of()
  pixels[5, 7] = 3
  write(source / 'masks/b.png', encoded(pixels))


@kind(of_folder, 'masks/b.png', '255 (ignored), got 300 (1 pixels)', SKIP)
def mask_value_of_16_bits_out_of_range(source):
  pixels = mask_of().astype(np.uint16)
  pixels[5, 7] = 300
  write(source / 'masks/b.png', encoded(pixels))


@kind(
  of_folder,
  'masks/b.png',
  'expected values, as the class list has no colors, got an RGB mask: write '
  'the lines of the list as `name R,G,B`, or save the mask with a palette',
  SKIP,
)
def mask_of_colors(source):
  pixels = np.stack([mask_of()] * 3, axis=-1)
  write(source / 'masks/b.png', encoded(pixels))


@kind('ade20k', ADE, ADE_MASK, 'got an RGB mask', 'take the official file')
def mask_of_colors_in_a_benchmark(source):
  pixels = np.full((4, 5, 3), 120, np.uint8)
  pack_zip(source / ADE, {**ade_files(), ADE_MASK: encoded(pixels)})


@kind(
  of_folder,
  'masks/b.png',
  'expected a palette, gray of 8 or 16 bits, or RGB without transparency, got '
  "pixels of PIL mode 'RGBA'",
  SKIP,
)
def mask_with_alpha(source):
  pixels = np.stack([mask_of()] * 4, axis=-1)
  write(source / 'masks/b.png', encoded(pixels))


@kind(of_folder, 'images/b.jpg', 'has no mask ', 'masks/b.png', SKIP)
def no_mask(source):
  (source / 'masks/b.png').unlink()


@kind(of_folder, 'images/b.jpg', 'has no mask ', 'masks/b.png', SKIP)
def mask_that_is_a_folder(source):
  (source / 'masks/b.png').unlink()
  (source / 'masks/b.png').mkdir()


@kind(of_folder, 'masks/b.png', 'cannot be read: No such file', SKIP)
def mask_that_is_a_link_to_nothing(source):
  (source / 'masks/b.png').unlink()
  (source / 'masks/b.png').symlink_to(source / 'moved/b.png')


@kind(of_folder, 'masks/b.png', 'cannot be read: Input/output error', SKIP)
def mask_that_cannot_be_read(source):
  (source / 'masks/b.png').unlink()
  (source / 'masks/b.png').symlink_to('/proc/self/mem')


@kind(of_folder, 'masks', 'got no such folder')
def no_folder_of_masks(source):
  shutil.rmtree(source / 'masks')


# Class lists.


@kind(of_folder, 'classes.txt', 'classes: cannot read ', 'No such file')
def no_class_list(source):
  (source / 'classes.txt').unlink()


@kind(of_folder, 'classes.txt', 'expected 1 to 32766 classes in ')
def class_list_of_no_bytes(source):
  write(source / 'classes.txt', b'')


@kind(of_folder, 'classes.txt', 'is not UTF-8 text')
def class_list_that_is_not_utf8(source):
  write(source / 'classes.txt', 'sky\nähre\ncar\n'.encode('latin-1'))


@kind(of_folder, 'classes.txt', "line 3: 'sky' is listed twice")
def class_named_twice(source):
  write(source / 'classes.txt', b'sky\nroad\nsky\n')


@kind(of_folder, 'classes.txt', 'classes: cannot read ', 'Is a directory')
def class_list_that_is_a_folder(source):
  (source / 'classes.txt').unlink()
  (source / 'classes.txt').mkdir()


# Folders of a benchmark.


@kind('camvid', 'train/images/0001.png', "has the same id '0001'", 'keep one')
def two_images_of_one_name_in_a_benchmark(source):
  write(source / 'train/images/0001.png', encoded(photograph(5, 4)))


@kind('camvid', 'train/images/0001.jpg', 'has no mask', WHOLE)
def no_mask_in_a_benchmark(source):
  (source / 'train/labels/0001.png').unlink()


@kind('camvid', '', ' without val/labels', '{train,val}/{images,labels}')
def no_folder_in_a_benchmark(source):
  shutil.rmtree(source / 'val/labels')


@kind('camvid', 'train/images/0001.jpg', 'cannot be read: No such file', WHOLE)
def image_that_is_a_link_to_nothing_in_a_benchmark(source):
  (source / 'train/images/0001.jpg').unlink()
  (source / 'train/images/0001.jpg').symlink_to(source / 'moved.jpg')


@kind('camvid', 'train/images/\\udcff.jpg', 'not UTF-8')
def name_that_is_not_utf8_in_a_benchmark(source):
  for name, suffix in (('images', '.jpg'), ('labels', '.png')):
    file = source / f'train/{name}/0001{suffix}'
    file.rename(file.with_name(os.fsdecode(b'\xff') + suffix))


# Archives.


@kind('camvid', '', '.tar:camvid/train/images/\\udcff.jpg', 'not UTF-8')
def name_in_a_tar_that_is_not_utf8(source):
  name_that_is_not_utf8_in_a_benchmark(source)
  packed = source / 'camvid.tar'
  with tarfile.open(packed, 'w') as archive:
    for split in ('train', 'val'):
      archive.add(source / split, f'camvid/{split}')
  return packed


@kind('ade20k', '', ' without images/training/*', f'{ADE}, or its content')
def no_archive(source):
  (source / ADE).unlink()


@kind('ade20k', '', 'source: expected a folder or an archive, got ')
def no_source_of_a_benchmark(source):
  shutil.rmtree(source)


@kind('ade20k', '', 'expected a folder or an archive (.zip, .tar, ')
def source_that_is_no_archive(source):
  shutil.rmtree(source)
  write(source, b'Not an archive.')


@kind('ade20k', '', ' without images/training/*', f'{ADE}, or its content')
def another_archive_of_that_name(source):
  pack_zip(source / ADE, {'holiday/1.jpg': jpeg(5, 4)})


@kind('ade20k', ADE, 'cannot be read as an archive', GET_AGAIN)
def page_saved_as_zip(source):
  write(source / ADE, b'<html>Please log in</html>\n')


@kind('ade20k', ADE, 'cannot be read as an archive', GET_AGAIN)
def zip_that_is_a_link_to_nothing(source):
  (source / ADE).unlink()
  (source / ADE).symlink_to(source / 'moved.zip')


@kind('ade20k', ADE, 'cannot be read as an archive', GET_AGAIN)
def zip_cut_off(source):
  truncate(source / ADE, 0.5)


@kind('ade20k', ADE, ADE_IMAGE, 'damaged in its archive', WHOLE)
def zip_with_a_flipped_byte(source):
  at = (source / ADE).read_bytes().index(jpeg(5, 4))
  flip(source / ADE, at + 200)


@kind('ade20k', ADE, 'ADE_train_00000001.png', 'cannot be decoded: ', WHOLE)
def mask_in_a_zip_cut_off(source):
  data = ade_files()[ADE_MASK]
  pack_zip(source / ADE, {**ade_files(), ADE_MASK: data[:50]})


@kind('ade20k', ADE, ADE_MASK, '0 (ignored), got 151 (20 pixels)', WHOLE)
def mask_in_a_zip_out_of_range(source):
  pixels = np.full((4, 5), 151, np.uint8)
  pack_zip(source / ADE, {**ade_files(), ADE_MASK: encoded(pixels)})


@kind('ade20k', ADE, "'../evil.jpg'", 'path outside of it', NOT_OFFICIAL)
def zip_that_points_out_of_itself(source):
  pack_zip(source / ADE, {**ade_files(), '../evil.jpg': jpeg(5, 4)})


@kind('ade20k', ADE, "'/tmp/evil.jpg'", 'path outside of it', NOT_OFFICIAL)
def zip_of_an_absolute_path(source):
  pack_zip(source / ADE, {**ade_files(), '/tmp/evil.jpg': jpeg(5, 4)})


@kind('ade20k', ADE, 'evil.jpg', 'path outside of it', NOT_OFFICIAL)
def zip_of_a_path_on_another_drive(source):
  pack_zip(source / ADE, {**ade_files(), 'C:\\evil.jpg': jpeg(5, 4)})


@kind('ade20k', ADE, NOT_OFFICIAL)
def zip_of_a_member_without_a_name(source):
  pack_zip(source / ADE, {**ade_files(), '.': jpeg(5, 4)})


@kind('ade20k', ADE, ADE_IMAGE)
def zip_with_a_member_twice(source):
  with (
    zipfile.ZipFile(source / ADE, 'a') as archive,
    pytest.warns(UserWarning, match='Duplicate name'),
  ):
    archive.writestr(ADE_IMAGE, jpeg(5, 4, quality=50))
  return source / ADE


@kind(
  *('ade20k', ADE, 'bomb.jpg decompresses from ', NOT_OFFICIAL),
  _HARMLESS=100_000,
)
def zip_bomb(source):
  bomb = {**ade_files(), 'bomb.jpg': bytes(200_000)}
  pack_zip(source / ADE, bomb, zipfile.ZIP_DEFLATED)


@kind('voc2012', '', ' without VOC2012/JPEGImages/*.jpg', f'{VOC} and {SBD}')
def no_tar(source):
  (source / VOC).unlink()


@kind('voc2012', '', ' without dataset/cls/*.mat (of SBD)', SBD)
def one_archive_of_two(source):
  (source / SBD).unlink()


@kind('voc2012', VOC, 'cannot be read as an archive', GET_AGAIN)
def tar_of_no_bytes(source):
  write(source / VOC, b'')


@kind('voc2012', VOC, 'cannot be read as an archive', GET_AGAIN)
def tar_cut_off_in_a_file(source):
  data = (source / VOC).read_bytes()
  write(source / VOC, data[: data.index(jpeg(5, 4)) + 100])


def cut_sbd(source, after):
  """SBD as a plain tar file of two masks, of which the second is truncated."""
  mask = sbd_files()[SBD_MASK]
  second = SBD_MASK.replace('3.mat', '4.mat')
  pack_tar(source / 'benchmark.tar', {SBD_MASK: mask, second: mask})
  (source / SBD).unlink()
  data = (source / 'benchmark.tar').read_bytes()
  write(source / 'benchmark.tar', data[: data.index(second.encode()) + after])


@kind('voc2012', 'benchmark.tar', 'cannot be read as an archive', GET_AGAIN)
def tar_cut_off_in_a_header(source):
  cut_sbd(source, 100)


@kind('voc2012', 'benchmark.tar', 'cannot be read as an archive', GET_AGAIN)
def tar_cut_off_between_files(source):
  cut_sbd(source, 0)


@kind('voc2012', VOC, "'../evil.jpg'", 'path outside of it', NOT_OFFICIAL)
def tar_that_points_out_of_itself(source):
  pack_tar(source / VOC, {**voc_files(), '../evil.jpg': jpeg(5, 4)})


@kind('voc2012', VOC, "'/tmp/evil.jpg'", 'path outside of it', NOT_OFFICIAL)
def tar_of_an_absolute_path(source):
  pack_tar(source / VOC, {**voc_files(), '/tmp/evil.jpg': jpeg(5, 4)})


@kind(
  *(
    'voc2012',
    VOC,
    'bomb.jpg: expected at most 100,000 bytes, got 200,000',
    NOT_OFFICIAL,
  ),
  MAX_MEMBER=100_000,
)
def tar_with_a_huge_file(source):
  pack_tar(source / VOC, {**voc_files(), 'bomb.jpg': bytes(200_000)})


@kind(
  *('voc2012', SBD, 'decompresses to more than ', NOT_OFFICIAL),
  _HARMLESS=1_000_000,
)
def tgz_bomb(source):
  bomb = {**sbd_files(), 'bomb.mat': bytes(5_000_000)}
  pack_tar(source / SBD, bomb, 'w:gz')


@kind('voc2012', SBD, 'cannot be read as an archive', GET_AGAIN)
def tgz_that_is_no_gzip(source):
  pack_tar(source / SBD, sbd_files())


@kind('voc2012', SBD, 'cannot be read as an archive', GET_AGAIN)
def tgz_cut_off(source):
  truncate(source / SBD, 0.5)


@kind('voc2012', SBD, 'cannot be read as an archive', GET_AGAIN)
def tgz_with_a_flipped_byte(source):
  flip(source / SBD, -6)  # Of the checksum.


@kind('voc2012', SBD, SBD_MASK, 'cannot be read', WHOLE)
def mat_cut_off(source):
  pack_tar(source / SBD, {SBD_MASK: sbd_files()[SBD_MASK][:200]}, 'w:gz')


@kind('voc2012', SBD, SBD_MASK, 'has no variable GTcls', WHOLE)
def mat_of_another_variable(source):
  data = mat(GTinst={'Segmentation': np.ones((4, 5), np.uint8)})
  pack_tar(source / SBD, {SBD_MASK: data}, 'w:gz')


@kind('voc2012', SBD, SBD_MASK, 'Segmentation', WHOLE)
def mat_without_a_segmentation(source):
  data = mat(GTcls={'Boundaries': np.ones((4, 5), np.uint8)})
  pack_tar(source / SBD, {SBD_MASK: data}, 'w:gz')


@kind('voc2012', SBD, SBD_MASK, 'expected numbers in rows and columns', WHOLE)
def mat_of_text(source):
  data = mat(GTcls={'Segmentation': 'sky'})
  pack_tar(source / SBD, {SBD_MASK: data}, 'w:gz')


@kind('voc2012', VOC, VOC_TRAIN, 'is empty: download it again')
def list_of_nothing(source):
  pack_tar(source / VOC, {**voc_files(), VOC_TRAIN: b'\n'})


@kind('voc2012', VOC, VOC_TRAIN, "lists '2007_000001' twice: download it again")
def list_with_a_line_twice(source):
  lines = b'2007_000001\n2008_000003\n2007_000001\n'
  pack_tar(source / VOC, {**voc_files(), VOC_TRAIN: lines})


@kind(
  *('voc2012', VOC, VOC_TRAIN),
  'lists 2007_999999, which has no image',
  WHOLE,
)
def list_of_an_image_that_is_not_there(source):
  lines = b'2007_000001\n2007_999999\n'
  pack_tar(source / VOC, {**voc_files(), VOC_TRAIN: lines})


@kind('voc2012', VOC, VOC_TRAIN, 'is not UTF-8 text: download it again')
def list_that_is_not_utf8(source):
  pack_tar(source / VOC, {**voc_files(), VOC_TRAIN: b'\xff\xfe'})


def arguments_of(name, source, data_dir):
  return [
    name,
    f'--source={source}',
    f'--data_dir={data_dir}',
    *(FOLDER_OPTIONS if name == of_folder else ()),
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
    **(folder if name == of_folder else {}),
    **more,
  )


class Before:
  """A data set that was prepared before and must stay intact."""

  def __init__(self, source, data_dir):
    self.source = source
    self.data_dir = data_dir
    self.files = self._read()

  def moved_to(self, data_dir):
    shutil.copytree(self.data_dir, data_dir)
    return Before(self.source, data_dir)

  def check(self):
    """Checks that its files are the same, and that its records open."""
    files = self._read()
    assert {name: files.get(name) for name in self.files} == self.files
    options = options_of(of_folder, self.source)
    split = datasets.open_split(options, 'train', str(self.data_dir))
    for name, record in zip('abc', split.records, strict=True):
      assert record['id'] == name.encode()
      image = (self.source / f'images/{name}.jpg').read_bytes()
      assert record['image'] == image
      label = mask_of().astype(np.int16)
      label[label == 255] = -1
      np.testing.assert_array_equal(
        records.decode_label(record['label']), label
      )

  def _read(self):
    return {
      path.relative_to(self.data_dir): path.read_bytes()
      for path in self.data_dir.rglob('*')
      if path.is_file()
    }


@pytest.fixture(scope='module')
def prepared_before(tmp_path_factory):
  source = tmp_path_factory.mktemp('earlier') / 'source'
  write_folder(source)
  data_dir = source.parent / 'data'
  assert prepare.main(arguments_of(of_folder, source, data_dir)) == 0
  return Before(source, data_dir)


@pytest.fixture
def before(prepared_before, tmp_path):
  return prepared_before.moved_to(tmp_path / 'data')


def refusal(capfd, arguments):
  """The error line that `prepare` prints, and nothing else."""
  capfd.readouterr()
  status = prepare.main(arguments)
  out, err = capfd.readouterr()
  assert 'Traceback' not in out + err
  lines = (out + err).splitlines()
  [line] = [line for line in lines if line.startswith('error: ')]
  assert status == 2
  return line


@pytest.mark.parametrize('damage', KINDS)
def test_damage_is_reported_in_one_line(
  damage, before, tmp_path, monkeypatch, capfd
):
  name, spoil, file, words, limits = KINDS[damage]
  for limit, value in limits.items():
    monkeypatch.setattr(archives, limit, value)
  source = tmp_path / 'source'
  HEALTHY[name](source)
  named = source / file
  source = spoil(source) or source
  arguments = arguments_of(name, source, before.data_dir)
  line = refusal(capfd, arguments)
  for word in (str(named), *words):
    assert word in line
  message = line.replace(str(tmp_path), '')
  assert REMEDY.search(message), message
  assert refusal(capfd, [*arguments, '--check']) == line
  before.check()


@pytest.mark.parametrize('name', HEALTHY)
def test_undamaged_sources_pass(name, tmp_path, capfd):
  HEALTHY[name](tmp_path / 'source')
  arguments = arguments_of(name, tmp_path / 'source', tmp_path / 'data')
  assert prepare.main([*arguments, '--check']) == 0
  assert 'error: ' not in ''.join(capfd.readouterr())


def test_bad_files_can_be_skipped(before, tmp_path, capfd):
  """One folder with an image, or two, of every kind of damage."""
  source = tmp_path / 'source'
  write_folder(source)
  bad = []
  for damage, case in KINDS.items():
    if SKIP not in case.words:
      continue
    write_folder(tmp_path / damage)
    case.damage(tmp_path / damage)
    for folder in ('images', 'masks'):
      for file in sorted((tmp_path / damage / folder).iterdir()):
        if file.stem not in ('a', 'c'):
          name = f'{folder}/{damage}{file.name.removeprefix("b")}'
          file.rename(source / name)
          if name.startswith(case.file.partition('/')[0]):
            bad.append(str(source / name))
  assert len(bad) > 20

  arguments = arguments_of(of_folder, source, before.data_dir)
  assert prepare.main([*arguments, '--on_bad_example=skip']) == 0
  out, err = capfd.readouterr()
  assert 'error: ' not in out + err
  assert f'{len(bad)} files are skipped:\n' in out
  for name in bad:
    assert f'\n  {name.encode(errors="backslashreplace").decode()}: ' in out
  options = options_of(of_folder, source, on_bad_example='skip')
  split = datasets.open_split(options, 'train', str(before.data_dir))
  assert split.ids() == ['a', 'b', 'c']
  before.check()


def test_a_split_must_keep_an_image(before, tmp_path, capfd):
  source = tmp_path / 'source'
  write_folder(source)
  for name in ('a', 'b', 'c'):
    truncate(source / f'images/{name}.jpg', 0.7)
  arguments = arguments_of(of_folder, source, before.data_dir)
  line = refusal(capfd, [*arguments, '--on_bad_example=skip'])
  assert "no image of split 'train' is usable; " in line
  assert f'{source}/images/a.jpg: cannot be decoded' in line
  before.check()


@pytest.mark.parametrize('skip', [False, True], ids=['error', 'skip'])
def test_files_that_become_bad_later_are_reported(
  skip, before, tmp_path, capfd
):
  source = tmp_path / 'source'
  write_folder(source)
  arguments = arguments_of(of_folder, source, before.data_dir)
  if skip:
    arguments.append('--on_bad_example=skip')
  assert prepare.main(arguments) == 0
  write(source / 'images/d.jpg', jpeg())
  if skip:
    capfd.readouterr()
    assert prepare.main(arguments) == 0
    assert f'\n  {source}/images/d.jpg: has no mask' in capfd.readouterr().out
  else:
    line = refusal(capfd, arguments)
    assert f'{source}/images/d.jpg: has no mask' in line
  before.check()


# Disks.


@contextlib.contextmanager
def largest_file(size):
  """No file can grow beyond so many bytes, as if the disk were full."""
  soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
  resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
  try:
    yield
  finally:
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize('below', ['', 'sub'])
@pytest.mark.parametrize('check', [False, True], ids=['prepare', 'check'])
def test_a_data_dir_that_is_a_file_is_refused(check, below, tmp_path, capfd):
  write_folder(tmp_path / 'source')
  write(tmp_path / 'file', b'Not a folder.')
  data_dir = tmp_path / 'file' / below
  arguments = arguments_of(of_folder, tmp_path / 'source', data_dir)
  line = refusal(capfd, [*arguments, *['--check'] * check])
  assert f'{tmp_path}/file' in line
  assert 'Not a directory' in line
  message = line.replace(str(tmp_path), '')
  assert REMEDY.search(message), message
  assert (tmp_path / 'file').read_bytes() == b'Not a folder.'


def test_a_disk_that_is_too_small_is_reported(
  before, tmp_path, monkeypatch, capfd
):
  source = tmp_path / 'source'
  write_folder(source)
  images = [path.stat().st_size for path in (source / 'images').iterdir()]
  arguments = arguments_of(of_folder, source, before.data_dir)
  usage = types.SimpleNamespace(total=10**6, used=10**6, free=sum(images) - 1)
  with monkeypatch.context() as patch:
    patch.setattr(shutil, 'disk_usage', lambda path: usage)
    line = refusal(capfd, arguments)
  assert f'{before.data_dir}/' in line
  assert 'GB are free' in line
  assert ': free some space, or choose another --data_dir' in line
  before.check()
  assert prepare.main(arguments) == 0
  before.check()


def test_a_disk_that_fills_up_with_records_is_reported(before, tmp_path, capfd):
  source = tmp_path / 'source'
  write_folder(source)
  arguments = arguments_of(of_folder, source, before.data_dir)
  with largest_file(10_000):  # The three records take ten times that.
    line = refusal(capfd, arguments)
  assert f'{before.data_dir}/' in line
  assert 'File too large' in line
  assert 'free some space or correct the path' in line
  before.check()
  assert prepare.main(arguments) == 0
  before.check()
  options = options_of(of_folder, source)
  split = datasets.open_split(options, 'train', str(before.data_dir))
  assert split.ids() == ['a', 'b', 'c']


def test_a_disk_that_fills_up_with_an_archive_is_reported(
  before, tmp_path, capfd
):
  source = tmp_path / 'source'
  write_voc(source)
  arguments = arguments_of('voc2012', source, before.data_dir)
  with largest_file(4000):
    line = refusal(capfd, arguments)
  assert f'{before.data_dir}/' in line
  assert 'File too large' in line
  assert 'free some space' in line
  assert 'download' not in line  # The archive is whole.
  before.check()
  assert prepare.main(arguments) == 0
  before.check()


def test_a_disk_that_fills_up_with_the_picture_is_reported(before, capfd):
  [page] = before.data_dir.rglob('report.png')
  page.unlink()
  arguments = arguments_of(of_folder, before.source, before.data_dir)
  with largest_file(4000):
    line = refusal(capfd, arguments)
  assert str(page) in line
  assert 'File too large' in line
  assert 'free some space' in line
  assert prepare.main(arguments) == 0
  assert PIL.Image.open(page).convert('L').getextrema() == (0, 255)
  before.check()


def test_a_disk_that_fills_up_in_a_check_is_reported(before, tmp_path, capfd):
  arguments = arguments_of(of_folder, before.source, before.data_dir)
  with largest_file(4000):
    line = refusal(capfd, [*arguments, '--check'])
  assert f'{before.data_dir}/reports/image_mask_folder.png' in line
  assert 'File too large' in line
  assert 'free some space' in line
  before.check()


# Images that are odd but not damaged.


def halves(left, right, height=24, width=32):
  """Two colors, which JPEG keeps."""
  pixels = np.empty((height, width, len(left)), np.uint8)
  pixels[:, : width // 2] = left
  pixels[:, width // 2 :] = right
  return pixels


RED_BLUE = halves((200, 30, 40), (20, 60, 210))


def smooth_jpeg(**options):
  return encoded(RED_BLUE, 'JPEG', subsampling=0, **options)


# A start of scan, as any long video has somewhere.
VIDEO = b'ftypmp42' + bytes(100) + b'\xff\xda' + bytes(100)


def phone_jpeg():
  """A JPEG of several pictures, as phones write them."""
  data = io.BytesIO()
  first = PIL.Image.fromarray(RED_BLUE)
  others = [first.resize((8, 8))]
  first.save(data, 'MPO', save_all=True, append_images=others, subsampling=0)
  return data.getvalue()


def rotated_smooth_jpeg():
  exif = PIL.Image.Exif()
  exif[EXIF_ORIENTATION] = 6
  return smooth_jpeg(exif=exif)


def png_of_16_bits(pixels):
  _, data = cv2.imencode('.png', pixels.astype(np.uint16) * 257)
  return data.tobytes()


def png_of_a_palette():
  image = PIL.Image.fromarray(np.arange(768, dtype=np.uint8).reshape(24, 32))
  image.putpalette([255 - i // 3 for i in range(768)])
  return encoded(image)


GRAY = halves((50,), (180,))[..., 0]
NOISE = photograph()
ALPHA = np.random.default_rng(0).integers(0, 256, (24, 32, 1), np.uint8)

# Files, and the pixels they decode to. Inks are subtracted from white one after
# the other: (255 - cyan) (255 - black) / 255, and so on.
ODD = {
  'cmyk.jpg': (
    encoded(
      PIL.Image.fromarray(halves((100, 0, 50, 128), (0, 255, 255, 0)), 'CMYK'),
      'JPEG',
    ),
    halves((77, 127, 102), (255, 0, 0)),
  ),
  'gray.jpg': (encoded(GRAY, 'JPEG'), np.stack([GRAY] * 3, -1)),
  'progressive.jpg': (smooth_jpeg(progressive=True), RED_BLUE),
  'rotated_by_exif.jpg': (rotated_smooth_jpeg(), RED_BLUE),
  'of_a_phone.jpg': (phone_jpeg(), RED_BLUE),
  'with_text_behind.jpg': (smooth_jpeg() + b'Hello', RED_BLUE),
  'with_zeros_behind.jpg': (smooth_jpeg() + bytes(99), RED_BLUE),
  'with_a_video_behind.jpg': (smooth_jpeg() + VIDEO, RED_BLUE),
  'of_one_pixel.jpg': (
    encoded(RED_BLUE[:1, :1], 'JPEG'),
    RED_BLUE[:1, :1],
  ),
  'png_in_truth.jpg': (encoded(NOISE), NOISE),
  'of_16_bits.png': (png_of_16_bits(NOISE[..., ::-1]), NOISE),
  'gray_of_16_bits.png': (
    png_of_16_bits(NOISE[..., 0]),
    np.stack([NOISE[..., 0]] * 3, -1),
  ),
  # What is transparent has a color, too.
  'with_alpha.png': (encoded(np.concatenate([NOISE, ALPHA], -1)), NOISE),
  'gray_with_alpha.png': (
    encoded(np.concatenate([NOISE[..., :1], ALPHA], -1)),
    np.stack([NOISE[..., 0]] * 3, -1),
  ),
  'of_a_palette.png': (
    png_of_a_palette(),
    np.stack([255 - np.arange(768).reshape(24, 32) % 256] * 3, -1),
  ),
}


@pytest.fixture(scope='module')
def odd_examples(tmp_path_factory):
  """The decoded examples of the odd images, by id; and what was printed."""
  source = tmp_path_factory.mktemp('odd') / 'source'
  for name, (data, pixels) in ODD.items():
    height, width = pixels.shape[:2]
    write(source / f'images/{name}', data)
    mask = (source / f'masks/{name}').with_suffix('.png')
    write(mask, encoded(mask_of(width, height)))
  (source / 'classes.txt').write_text('sky\nroad\ncar\n')
  data_dir = source.parent / 'data'
  arguments = arguments_of(of_folder, source, data_dir)
  with contextlib.redirect_stdout(io.StringIO()) as out:
    assert prepare.main([*arguments, '--on_bad_example=skip']) == 0
  options = options_of(of_folder, source, on_bad_example='skip')
  split = datasets.open_split(options, 'train', str(data_dir))
  decode = transforms.Decode(len(split.classes))
  examples = (decode(record) for record in split.records)
  return {e['id'].decode(): e for e in examples}, out.getvalue()


@pytest.mark.parametrize('name', ODD)
def test_odd_images_decode_to_the_intended_pixels(name, odd_examples):
  examples, printed = odd_examples
  assert f'/{name}: ' not in printed
  example = examples[pathlib.Path(name).stem]
  expected = ODD[name][1].astype(int)
  pixels = example['image'].astype(int)
  assert pixels.shape == expected.shape
  # JPEG is not exact.
  tolerance = 0 if ODD[name][0].startswith(b'\x89PNG') else 3
  assert np.abs(pixels - expected).max() <= tolerance
  label = mask_of(*expected.shape[1::-1]).astype(int)
  np.testing.assert_array_equal(
    example['label'], np.where(label == 255, -1, label)
  )


def test_a_folder_named_like_an_image_is_not_an_image(tmp_path, capfd):
  source = tmp_path / 'source'
  write_folder(source)
  (source / 'images/b.jpg').unlink()
  (source / 'images/b.jpg').mkdir()
  arguments = arguments_of(of_folder, source, tmp_path / 'data')
  assert prepare.main([*arguments, '--check']) == 0
  out = capfd.readouterr().out
  assert out.startswith('train: 2 images\n')
  assert f'warning: {source}/masks/b.png: a mask without an image\n' in out


@pytest.mark.filterwarnings('error')
def test_masks_may_be_wholly_ignored(tmp_path, capfd):
  """No class has a bar on the page then."""
  source = tmp_path / 'source'
  write_folder(source)
  for file in (source / 'masks').iterdir():
    write(file, encoded(np.full((24, 32), 255, np.uint8)))
  arguments = arguments_of(of_folder, source, tmp_path / 'data')
  assert prepare.main([*arguments, '--check']) == 0
  assert "warning: class 'sky' occurs in no image" in capfd.readouterr().out


@pytest.mark.parametrize('name', ['a b', 'ähre', '5$_{$ or 6', '%s {0} \\x'])
def test_names_may_have_any_characters(name, tmp_path, capfd):
  """Even those that matplotlib would interpret as mathematics."""
  source = tmp_path / 'source'
  write(source / f'images/{name}.jpg', jpeg())
  write(source / f'masks/{name}.png', encoded(mask_of()))
  (source / 'classes.txt').write_text(f'{name}\nroad\ncar\n', 'utf-8')
  arguments = arguments_of(of_folder, source, tmp_path / 'data')
  assert prepare.main(arguments) == 0
  options = options_of(of_folder, source)
  split = datasets.open_split(options, 'train', str(tmp_path / 'data'))
  assert split.ids() == [name]
  assert split.classes == (name, 'road', 'car')
