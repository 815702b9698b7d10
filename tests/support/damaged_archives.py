"""Kinds of damage to the archives of a benchmark; registered on import."""

import shutil
import tarfile
import zipfile

import numpy as np
import pytest

from tests.support import damage
from tests.support import healthy_sources as sources


@damage.kind('camvid', '', '.tar:camvid/train/images/\\udcff.jpg', 'not UTF-8')
def name_in_a_tar_that_is_not_utf8(source):
  damage.name_that_is_not_utf8_in_a_benchmark(source)
  packed = source / 'camvid.tar'
  with tarfile.open(packed, 'w') as archive:
    for split in ('train', 'val'):
      archive.add(source / split, f'camvid/{split}')
  return packed


@damage.kind(
  'ade20k', '', ' without images/training/*', f'{sources.ADE}, or its content'
)
def no_archive(source):
  (source / sources.ADE).unlink()


@damage.kind('ade20k', '', 'source: expected a folder or an archive, got ')
def no_source_of_a_benchmark(source):
  shutil.rmtree(source)


def unreadable_archive(name, file):
  """Registers a function as damage by which an archive cannot be read."""
  return damage.kind(
    name, file, 'cannot be read as an archive', damage.GET_AGAIN
  )


@damage.kind('ade20k', '', 'expected a folder or an archive (.zip, .tar, ')
def source_that_is_no_archive(source):
  shutil.rmtree(source)
  sources.write(source, b'Not an archive.')


@damage.kind(
  'ade20k', '', ' without images/training/*', f'{sources.ADE}, or its content'
)
def another_archive_of_that_name(source):
  sources.pack_zip(source / sources.ADE, {'holiday/1.jpg': sources.jpeg(5, 4)})


@unreadable_archive('ade20k', sources.ADE)
def page_saved_as_zip(source):
  sources.write(source / sources.ADE, b'<html>Please log in</html>\n')


@unreadable_archive('ade20k', sources.ADE)
def zip_that_is_a_link_to_nothing(source):
  (source / sources.ADE).unlink()
  (source / sources.ADE).symlink_to(source / 'moved.zip')


@unreadable_archive('ade20k', sources.ADE)
def zip_cut_off(source):
  sources.truncate(source / sources.ADE, 0.5)


@damage.kind(
  'ade20k',
  sources.ADE,
  sources.ADE_IMAGE,
  'damaged in its archive',
  damage.WHOLE,
)
def zip_with_a_flipped_byte(source):
  at = (source / sources.ADE).read_bytes().index(sources.jpeg(5, 4))
  sources.flip(source / sources.ADE, at + 200)


@damage.kind(
  'ade20k',
  sources.ADE,
  'ADE_train_00000001.png',
  'cannot be decoded: ',
  damage.WHOLE,
)
def mask_in_a_zip_cut_off(source):
  data = sources.ade_files()[sources.ADE_MASK]
  sources.pack_zip(
    source / sources.ADE, {**sources.ade_files(), sources.ADE_MASK: data[:50]}
  )


@damage.kind(
  'ade20k',
  sources.ADE,
  sources.ADE_MASK,
  '0 (ignored), got 151 (20 pixels)',
  damage.WHOLE,
)
def mask_in_a_zip_out_of_range(source):
  pixels = np.full((4, 5), 151, np.uint8)
  sources.pack_zip(
    source / sources.ADE,
    {**sources.ade_files(), sources.ADE_MASK: sources.encoded(pixels)},
  )


@damage.kind(
  'ade20k',
  sources.ADE,
  "'../evil.jpg'",
  'path outside of it',
  damage.NOT_OFFICIAL,
)
def zip_that_points_out_of_itself(source):
  sources.pack_zip(
    source / sources.ADE,
    {**sources.ade_files(), '../evil.jpg': sources.jpeg(5, 4)},
  )


@damage.kind(
  'ade20k',
  sources.ADE,
  "'/tmp/evil.jpg'",
  'path outside of it',
  damage.NOT_OFFICIAL,
)
def zip_of_an_absolute_path(source):
  sources.pack_zip(
    source / sources.ADE,
    {**sources.ade_files(), '/tmp/evil.jpg': sources.jpeg(5, 4)},
  )


@damage.kind(
  'ade20k', sources.ADE, 'evil.jpg', 'path outside of it', damage.NOT_OFFICIAL
)
def zip_of_a_path_on_another_drive(source):
  sources.pack_zip(
    source / sources.ADE,
    {**sources.ade_files(), 'C:\\evil.jpg': sources.jpeg(5, 4)},
  )


@damage.kind('ade20k', sources.ADE, damage.NOT_OFFICIAL)
def zip_of_a_member_without_a_name(source):
  sources.pack_zip(
    source / sources.ADE, {**sources.ade_files(), '.': sources.jpeg(5, 4)}
  )


@damage.kind('ade20k', sources.ADE, sources.ADE_IMAGE)
def zip_with_a_member_twice(source):
  with (
    zipfile.ZipFile(source / sources.ADE, 'a') as archive,
    pytest.warns(UserWarning, match='Duplicate name'),
  ):
    archive.writestr(sources.ADE_IMAGE, sources.jpeg(5, 4, quality=50))
  return source / sources.ADE


@damage.kind(
  *('ade20k', sources.ADE, 'bomb.jpg decompresses from ', damage.NOT_OFFICIAL),
  _HARMLESS=100_000,
)
def zip_bomb(source):
  bomb = {**sources.ade_files(), 'bomb.jpg': bytes(200_000)}
  sources.pack_zip(source / sources.ADE, bomb, zipfile.ZIP_DEFLATED)


@damage.kind(
  'voc2012',
  '',
  ' without VOC2012/JPEGImages/*.jpg',
  f'{sources.VOC} and {sources.SBD}',
)
def no_tar(source):
  (source / sources.VOC).unlink()


@damage.kind('voc2012', '', ' without dataset/cls/*.mat (of SBD)', sources.SBD)
def one_archive_of_two(source):
  (source / sources.SBD).unlink()


@unreadable_archive('voc2012', sources.VOC)
def tar_of_no_bytes(source):
  sources.write(source / sources.VOC, b'')


@unreadable_archive('voc2012', sources.VOC)
def tar_cut_off_in_a_file(source):
  data = (source / sources.VOC).read_bytes()
  sources.write(
    source / sources.VOC, data[: data.index(sources.jpeg(5, 4)) + 100]
  )


def cut_sbd(source, after):
  """Writes SBD as a plain tar file of two masks, truncated in the second."""
  mask = sources.sbd_files()[sources.SBD_MASK]
  second = sources.SBD_MASK.replace('3.mat', '4.mat')
  sources.pack_tar(
    source / 'benchmark.tar', {sources.SBD_MASK: mask, second: mask}
  )
  (source / sources.SBD).unlink()
  data = (source / 'benchmark.tar').read_bytes()
  sources.write(
    source / 'benchmark.tar', data[: data.index(second.encode()) + after]
  )


@unreadable_archive('voc2012', 'benchmark.tar')
def tar_cut_off_in_a_header(source):
  cut_sbd(source, 100)


@unreadable_archive('voc2012', 'benchmark.tar')
def tar_cut_off_between_files(source):
  cut_sbd(source, 0)


@damage.kind(
  'voc2012',
  sources.VOC,
  "'../evil.jpg'",
  'path outside of it',
  damage.NOT_OFFICIAL,
)
def tar_that_points_out_of_itself(source):
  sources.pack_tar(
    source / sources.VOC,
    {**sources.voc_files(), '../evil.jpg': sources.jpeg(5, 4)},
  )


@damage.kind(
  'voc2012',
  sources.VOC,
  "'/tmp/evil.jpg'",
  'path outside of it',
  damage.NOT_OFFICIAL,
)
def tar_of_an_absolute_path(source):
  sources.pack_tar(
    source / sources.VOC,
    {**sources.voc_files(), '/tmp/evil.jpg': sources.jpeg(5, 4)},
  )


@damage.kind(
  *(
    'voc2012',
    sources.VOC,
    'bomb.jpg: expected at most 100,000 bytes, got 200,000',
    damage.NOT_OFFICIAL,
  ),
  MAX_MEMBER=100_000,
)
def tar_with_a_huge_file(source):
  sources.pack_tar(
    source / sources.VOC, {**sources.voc_files(), 'bomb.jpg': bytes(200_000)}
  )


@damage.kind(
  *('voc2012', sources.SBD, 'decompresses to more than ', damage.NOT_OFFICIAL),
  _HARMLESS=1_000_000,
)
def tgz_bomb(source):
  bomb = {**sources.sbd_files(), 'bomb.mat': bytes(5_000_000)}
  sources.pack_tar(source / sources.SBD, bomb, 'w:gz')


@damage.kind(
  'voc2012', sources.SBD, 'cannot be read as an archive', damage.GET_AGAIN
)
def tgz_that_is_no_gzip(source):
  sources.pack_tar(source / sources.SBD, sources.sbd_files())


@damage.kind(
  'voc2012', sources.SBD, 'cannot be read as an archive', damage.GET_AGAIN
)
def tgz_cut_off(source):
  sources.truncate(source / sources.SBD, 0.5)


@damage.kind(
  'voc2012', sources.SBD, 'cannot be read as an archive', damage.GET_AGAIN
)
def tgz_with_a_flipped_byte(source):
  sources.flip(source / sources.SBD, -6)  # Of the checksum.


@damage.kind(
  'voc2012', sources.SBD, sources.SBD_MASK, 'cannot be read', damage.WHOLE
)
def mat_cut_off(source):
  sources.pack_tar(
    source / sources.SBD,
    {sources.SBD_MASK: sources.sbd_files()[sources.SBD_MASK][:200]},
    'w:gz',
  )


@damage.kind(
  'voc2012',
  sources.SBD,
  sources.SBD_MASK,
  'has no variable GTcls',
  damage.WHOLE,
)
def mat_of_another_variable(source):
  data = sources.mat(GTinst={'Segmentation': np.ones((4, 5), np.uint8)})
  sources.pack_tar(source / sources.SBD, {sources.SBD_MASK: data}, 'w:gz')


@damage.kind(
  'voc2012', sources.SBD, sources.SBD_MASK, 'Segmentation', damage.WHOLE
)
def mat_without_a_segmentation(source):
  data = sources.mat(GTcls={'Boundaries': np.ones((4, 5), np.uint8)})
  sources.pack_tar(source / sources.SBD, {sources.SBD_MASK: data}, 'w:gz')


@damage.kind(
  'voc2012',
  sources.SBD,
  sources.SBD_MASK,
  'expected numbers in rows and columns',
  damage.WHOLE,
)
def mat_of_text(source):
  data = sources.mat(GTcls={'Segmentation': 'sky'})
  sources.pack_tar(source / sources.SBD, {sources.SBD_MASK: data}, 'w:gz')


def pack_train_list(source, lines):
  """Writes the archive of VOC with another list of train."""
  sources.pack_tar(
    source / sources.VOC, {**sources.voc_files(), sources.VOC_TRAIN: lines}
  )


@damage.kind(
  'voc2012', sources.VOC, sources.VOC_TRAIN, 'is empty: download it again'
)
def list_of_nothing(source):
  pack_train_list(source, b'\n')


@damage.kind(
  'voc2012',
  sources.VOC,
  sources.VOC_TRAIN,
  "lists '2007_000001' twice: download it again",
)
def list_with_a_line_twice(source):
  pack_train_list(source, b'2007_000001\n2008_000003\n2007_000001\n')


@damage.kind(
  *('voc2012', sources.VOC, sources.VOC_TRAIN),
  'lists 2007_999999, which has no image',
  damage.WHOLE,
)
def list_of_an_image_that_is_not_there(source):
  pack_train_list(source, b'2007_000001\n2007_999999\n')


@damage.kind(
  'voc2012',
  sources.VOC,
  sources.VOC_TRAIN,
  'is not UTF-8 text: download it again',
)
def list_that_is_not_utf8(source):
  pack_train_list(source, b'\xff\xfea')
