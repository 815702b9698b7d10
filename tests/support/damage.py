"""Kinds of damage to the images, masks and lists of a data set."""

import os
import pathlib
import re
import shutil
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

from tests.support import healthy_sources as sources

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


# Images.


@kind(sources.FOLDER, 'images/b.jpg', 'cannot be decoded: ', 'truncated', SKIP)
def jpeg_cut_in_the_middle(source):
  sources.truncate(source / 'images/b.jpg', 0.7)


@kind(sources.FOLDER, 'images/b.jpg', 'the JPEG has no end, truncated?', SKIP)
def jpeg_padded_with_zeros(source):
  data = (source / 'images/b.jpg').read_bytes()
  kept = data[: int(len(data) * 0.7)]
  sources.write(source / 'images/b.jpg', kept.ljust(len(data), b'\0'))


@kind(sources.FOLDER, 'images/b.jpg', 'the JPEG has no end, truncated?', SKIP)
def jpeg_with_a_thumbnail_padded_with_zeros(source):
  data = sources.jpeg(exif=b'Exif\0\0' + sources.jpeg(8, 8))
  sources.write(source / 'images/b.jpg', data[:-400] + bytes(400))


@kind(
  sources.FOLDER,
  'images/b.jpg',
  'is no JPEG, PNG, TIFF, BMP, WEBP or GIF file',
  SKIP,
)
def jpeg_of_no_bytes(source):
  sources.write(source / 'images/b.jpg', b'')


@kind(
  sources.FOLDER,
  'images/b.jpg',
  'is no JPEG, PNG, TIFF, BMP, WEBP or GIF file',
  SKIP,
)
def text_called_jpg(source):
  sources.write(source / 'images/b.jpg', b'<html>404 Not Found</html>\n')


@kind(
  sources.FOLDER,
  'images/b.jpg',
  'is no JPEG, PNG, TIFF, BMP, WEBP or GIF file',
  SKIP,
)
def ppm_called_jpg(source):
  sources.write(
    source / 'images/b.jpg', sources.encoded(sources.photograph(), 'PPM')
  )


@kind(
  sources.FOLDER,
  'images/b.jpg',
  'is no JPEG, PNG, TIFF, BMP, WEBP or GIF file',
  SKIP,
)
def tga_called_jpg(source):
  sources.write(
    source / 'images/b.jpg', sources.encoded(sources.photograph(), 'TGA')
  )


def replace_by_png(source, change):
  """Replaces b by a PNG of uncompressed pixels, and changes its bytes."""
  (source / 'images/b.jpg').unlink()
  data = bytearray(sources.encoded(sources.photograph(), compress_level=0))
  sources.write(source / 'images/b.png', change(data))


@kind(sources.FOLDER, 'images/b.png', 'cannot be decoded: ', SKIP)
def png_cut_off(source):
  replace_by_png(source, lambda data: data[: len(data) // 2])


@kind(sources.FOLDER, 'images/b.png', 'cannot be decoded', SKIP)
def png_with_a_wrong_checksum(source):
  def change(data):
    start, length = sources.chunk_of(data)
    data[start + length] ^= 255
    return data

  replace_by_png(source, change)


@kind(sources.FOLDER, 'images/b.png', 'cannot be decoded', SKIP)
def png_with_a_wrong_pixel(source):
  def change(data):
    start, length = sources.chunk_of(data)
    data[start + length // 2] ^= 255
    return data

  replace_by_png(source, change)


@kind(sources.FOLDER, 'images/b.png', 'or its header is damaged', SKIP)
def png_with_a_damaged_head(source):
  def change(data):
    data[sources.chunk_of(data, b'IHDR')[0]] ^= 255
    return data

  replace_by_png(source, change)


@kind(sources.FOLDER, 'images/b.jpg', 'cannot be read: No such file', SKIP)
def image_that_is_a_link_to_nothing(source):
  (source / 'images/b.jpg').unlink()
  (source / 'images/b.jpg').symlink_to(source / 'moved/b.jpg')


@kind(
  sources.FOLDER, 'images/b.jpg', 'cannot be read: Input/output error', SKIP
)
def image_that_cannot_be_read(source):
  (source / 'images/b.jpg').unlink()
  # Not by permissions: root may read everything.
  (source / 'images/b.jpg').symlink_to('/proc/self/mem')


@kind(
  sources.FOLDER, 'images/b.jpg', "b.jpg and b.png have the same id 'b'", SKIP
)
def two_images_of_one_name(source):
  sources.write(source / 'images/b.png', sources.encoded(sources.photograph()))


@kind(
  sources.FOLDER, 'images/\\udcff.jpg', 'its name is not UTF-8: rename it', SKIP
)
def name_that_is_not_utf8(source):
  for name, suffix in (('images', '.jpg'), ('masks', '.png')):
    file = source / f'{name}/b{suffix}'
    file.rename(file.with_name(os.fsdecode(b'\xff') + suffix))


@kind(sources.FOLDER, 'images', 'expected images (*.jpg, *.jpeg, *.png, ')
def folder_without_images(source):
  shutil.rmtree(source / 'images')
  (source / 'images').mkdir()


@kind(sources.FOLDER, 'images', 'got no such folder')
def no_folder_of_images(source):
  shutil.rmtree(source / 'images')


@kind(sources.FOLDER, '', 'source: expected the folder of the images, got ')
def no_source(source):
  shutil.rmtree(source)


# Masks.


@kind(sources.FOLDER, 'masks/b.png', 'cannot be decoded: ', SKIP)
def mask_cut_off(source):
  sources.truncate(source / 'masks/b.png', 0.6)


@kind(sources.FOLDER, 'masks/b.png', 'cannot be decoded', SKIP)
def mask_with_a_wrong_checksum(source):
  data = (source / 'masks/b.png').read_bytes()
  sources.flip(source / 'masks/b.png', sum(sources.chunk_of(data)))


@kind(sources.FOLDER, 'masks/b.png', 'cannot be decoded', SKIP)
def mask_with_a_wrong_pixel(source):
  data = bytearray(
    sources.encoded(np.zeros((24, 32), np.uint8), compress_level=0)
  )
  start, length = sources.chunk_of(data)
  data[start + length // 2] ^= 1  # Another class, in the middle.
  sources.write(source / 'masks/b.png', data)


@kind(sources.FOLDER, 'masks/b.png', 'is compressed as JPEG', SKIP)
def mask_as_jpeg(source):
  sources.write(
    source / 'masks/b.png', sources.encoded(sources.mask_of(), 'JPEG')
  )


@kind(
  sources.FOLDER,
  'masks/b.png',
  'a mask of 32x24 pixels as its image, got 33x24',
  SKIP,
)
def mask_of_another_size(source):
  sources.write(
    source / 'masks/b.png', sources.encoded(sources.mask_of(33, 24))
  )


@kind(
  sources.FOLDER,
  'masks/b.png',
  'a mask of 32x24 pixels as its image, got 1x1',
  SKIP,
)
def mask_of_one_pixel(source):
  sources.write(
    source / 'masks/b.png', sources.encoded(np.zeros((1, 1), np.uint8))
  )


@kind(
  sources.FOLDER,
  'masks/b.png',
  'expected a mask of 32x24 pixels as its image, got 24x32; the rotation in '
  'the EXIF tag of the image is not applied',
  SKIP,
)
def mask_rotated_as_exif_says(source):
  sources.write(source / 'images/b.jpg', sources.rotated_jpeg())
  sources.write(
    source / 'masks/b.png', sources.encoded(sources.mask_of(24, 32))
  )


@kind(
  sources.FOLDER,
  'masks/b.png',
  'expected values 0…2, 255 (ignored), got 3 (1 pixel)',
  SKIP,
)
def mask_value_out_of_range(source):
  pixels = sources.mask_of()
  pixels[5, 7] = 3
  sources.write(source / 'masks/b.png', sources.encoded(pixels))


@kind(sources.FOLDER, 'masks/b.png', '255 (ignored), got 300 (1 pixel)', SKIP)
def mask_value_of_16_bits_out_of_range(source):
  pixels = sources.mask_of().astype(np.uint16)
  pixels[5, 7] = 300
  sources.write(source / 'masks/b.png', sources.encoded(pixels))


def write_channels(source, count):
  """Writes a mask whose ids are repeated in each of its channels."""
  pixels = np.stack([sources.mask_of()] * count, axis=-1)
  sources.write(source / 'masks/b.png', sources.encoded(pixels))


@kind(
  sources.FOLDER,
  'masks/b.png',
  'expected values, as the class list has no colors, got an RGB mask: write '
  'the lines of the list as `name R,G,B`, or save the mask with a palette',
  SKIP,
)
def mask_of_colors(source):
  write_channels(source, 3)


@kind(
  'ade20k',
  sources.ADE,
  sources.ADE_MASK,
  'got an RGB mask',
  'take the official file',
)
def mask_of_colors_in_a_benchmark(source):
  pixels = np.full((4, 5, 3), 120, np.uint8)
  sources.pack_zip(
    source / sources.ADE,
    {**sources.ade_files(), sources.ADE_MASK: sources.encoded(pixels)},
  )


@kind(
  sources.FOLDER,
  'masks/b.png',
  'expected a palette, gray of 8 or 16 bits, or RGB without transparency, got '
  "pixels of PIL mode 'RGBA'",
  SKIP,
)
def mask_with_alpha(source):
  write_channels(source, 4)


@kind(sources.FOLDER, 'images/b.jpg', 'has no mask ', 'masks/b.png', SKIP)
def no_mask(source):
  (source / 'masks/b.png').unlink()


@kind(sources.FOLDER, 'images/b.jpg', 'has no mask ', 'masks/b.png', SKIP)
def mask_that_is_a_folder(source):
  (source / 'masks/b.png').unlink()
  (source / 'masks/b.png').mkdir()


@kind(sources.FOLDER, 'masks/b.png', 'cannot be read: No such file', SKIP)
def mask_that_is_a_link_to_nothing(source):
  (source / 'masks/b.png').unlink()
  (source / 'masks/b.png').symlink_to(source / 'moved/b.png')


@kind(sources.FOLDER, 'masks/b.png', 'cannot be read: Input/output error', SKIP)
def mask_that_cannot_be_read(source):
  (source / 'masks/b.png').unlink()
  (source / 'masks/b.png').symlink_to('/proc/self/mem')


@kind(sources.FOLDER, 'masks', 'got no such folder')
def no_folder_of_masks(source):
  shutil.rmtree(source / 'masks')


# Class lists.


@kind(sources.FOLDER, 'classes.txt', 'classes: cannot read ', 'No such file')
def no_class_list(source):
  (source / 'classes.txt').unlink()


@kind(sources.FOLDER, 'classes.txt', 'expected 1 to 32766 classes in ')
def class_list_of_no_bytes(source):
  sources.write(source / 'classes.txt', b'')


@kind(sources.FOLDER, 'classes.txt', 'is not UTF-8 text')
def class_list_that_is_not_utf8(source):
  sources.write(source / 'classes.txt', 'sky\nähre\ncar\n'.encode('latin-1'))


@kind(sources.FOLDER, 'classes.txt', "line 3: 'sky' is listed twice")
def class_named_twice(source):
  sources.write(source / 'classes.txt', b'sky\nroad\nsky\n')


@kind(sources.FOLDER, 'classes.txt', 'classes: cannot read ', 'Is a directory')
def class_list_that_is_a_folder(source):
  (source / 'classes.txt').unlink()
  (source / 'classes.txt').mkdir()


# Folders of a benchmark.


@kind('camvid', 'train/images/0001.png', "has the same id '0001'", 'keep one')
def two_images_of_one_name_in_a_benchmark(source):
  sources.write(
    source / 'train/images/0001.png', sources.encoded(sources.photograph(5, 4))
  )


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
