"""ImageNet and ImageNet-S in archives as the official ones (see `official`)."""

import numpy as np

from tests.support import archive_files, official

# Names of the mask zips of ImageNet-S, as released.
IMAGENET_S_ZIPS = {
  50: 'ImageNetS50-a0fe9d82231f9bc4787ee76e304dfa51.zip',
  300: 'ImageNetS300-dd8e42e156bac415a35c3c239de297bf.zip',
  919: 'ImageNetS919-5f7f58ae1003d21da9409a8576bf7680.zip',
}


def imagenet_train(folder, images, name='ILSVRC2012_img_train.tar'):
  """Writes a tar file of tar files of classes; JPEGs by 'n01440764_10026'."""
  classes = {}
  for key, jpeg in images.items():
    classes.setdefault(key.split('_')[0], {})[f'{key}.JPEG'] = jpeg
  archive_files.write_archive(
    folder / name,
    {
      f'{wnid}.tar': archive_files.tar(members)
      for wnid, members in classes.items()
    },
  )


def imagenet_val(folder, images):
  """Writes ILSVRC2012_img_val.tar from JPEGs by their number, from 1."""
  archive_files.write_archive(
    folder / 'ILSVRC2012_img_val.tar',
    {f'{val_name(i)}.JPEG': jpeg for i, jpeg in images.items()},
  )


def imagenet_devkit(folder, wnids, truth):
  """Writes ILSVRC2012_devkit_t12.tar.gz.

  Args:
    folder: of the archive.
    wnids: of the classes with ILSVRC2012_ID 1, 2, …
    truth: ILSVRC2012_ID of each image of val.
  """
  fields = [
    *('ILSVRC2012_ID', 'WNID', 'words', 'gloss', 'num_children', 'children'),
    *('wordnet_height', 'num_train_images'),
  ]
  # After the classes come other nodes of WordNet.
  nodes = [*wnids, 'n00001740', 'n00021939']
  synsets = np.zeros((len(nodes), 1), [(name, object) for name in fields])
  for i, wnid in enumerate(nodes):
    children = np.zeros((1, 0)) if i < len(wnids) else np.array([[1.0, 2.0]])
    synsets[i, 0] = (
      *(float(i + 1), wnid, 'name', 'a thing', float(children.size), children),
      *(0.0 if i < len(wnids) else 9.0, 1300.0 if i < len(wnids) else 0.0),
    )
  root = 'ILSVRC2012_devkit_t12'
  numbers = ''.join(f'{number}\n' for number in truth)
  archive_files.write_archive(
    folder / f'{root}.tar.gz',
    {
      f'{root}/readme.txt': b'ILSVRC2012\n',
      f'{root}/data/ILSVRC2012_validation_ground_truth.txt': numbers.encode(),
      f'{root}/data/meta.mat': archive_files.mat_bytes(synsets=synsets),
      f'{root}/evaluation/demo_eval.m': b'%\n',
    },
  )


def imagenet_folders(folder, train, val):
  """Writes ImageNet as folders of classes.

  Args:
    folder: of the folders 'train' and 'val'.
    train: JPEGs by 'n01440764_10026'.
    val: JPEGs by (class, number).
  """
  members = {}
  for key, jpeg in train.items():
    members[f'train/{key.split("_")[0]}/{key}.JPEG'] = jpeg
  for (wnid, number), jpeg in val.items():
    members[f'val/{wnid}/{val_name(number)}.JPEG'] = jpeg
  archive_files.write_files(folder, members)


def val_name(number):
  """Returns the name of an image of ImageNet's val, without suffix."""
  return f'ILSVRC2012_val_{number:08}'


def imagenet_s(folder, size, wnids, semi, mappings, older=False):
  """Writes the lists of the ImageNet-S repository.

  Args:
    folder: of the folder 'data'.
    size: 50, 300 or 919.
    wnids: of its classes.
    semi: 'CLASS/NAME' of train-semi, without suffix.
    mappings: pairs (from, to) of such names, of 'validation' and 'test'.
    older: whether the list of train-semi has its older name and format.
  """
  if older:
    listed = {
      f'ImageNetSemi_im{size}_train.txt': [f'{name}.JPEG' for name in semi]
    }
  else:
    listed = {
      f'ImageNetS_im{size}_train_semi.txt': [
        f'{name}.JPEG {name}.png' for name in semi
      ]
    }
  members = {f'categories/ImageNetS_categories_im{size}.txt': wnids}
  for name, lines in listed.items():
    members[f'names/{name}'] = lines
  for split, pairs in mappings.items():
    members[f'mapping/ImageNetS_im{size}_mapping_{split}.txt'] = [
      f'{before}.JPEG {after}.JPEG' for before, after in pairs
    ]
  archive_files.write_files(
    folder,
    {
      f'data/{name}': archive_files.line_bytes(lines)
      for name, lines in members.items()
    },
  )


def imagenet_s_masks(folder, size, semi, val):
  """Writes the zip file of masks from values by 'CLASS/NAME'."""
  parts = {'train-semi-segmentation': semi, 'validation-segmentation': val}
  archive_files.write_archive(
    folder / IMAGENET_S_ZIPS[size],
    {
      f'ImageNetS{size}/{part}/{name}.png': official.rgb_coded_png(values)
      for part, masks in parts.items()
      for name, values in masks.items()
    },
  )
