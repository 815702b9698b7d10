"""Small archives with the names, layouts and formats of the official ones.

  official.ade20k(folder, {'train': {'ADE_train_00000001': (jpeg, values)}})

Images are the bytes of a file, masks are rows of stored values. Besides the
given files, every archive holds some of the other files of the official one.
"""

import io
import json
import pathlib
import re
import shutil
import tarfile
import zipfile

import cv2
import numpy as np
import PIL.Image
import scipy.io
import scipy.sparse
from pycocotools import mask as coco

# Names of the mask zips of ImageNet-S, as released.
IMAGENET_S_ZIPS = {
  50: 'ImageNetS50-a0fe9d82231f9bc4787ee76e304dfa51.zip',
  300: 'ImageNetS300-dd8e42e156bac415a35c3c239de297bf.zip',
  919: 'ImageNetS919-5f7f58ae1003d21da9409a8576bf7680.zip',
}
_RAR = 'RAND_CITYSCAPES'
_SUFFIXES = ('.tar', '.tgz', '.gz', '.zip')


def image(kind, seed, height=4, width=5, mode='RGB'):
  """Returns the bytes of a small image of noise.

  Args:
    kind: 'JPEG' or 'PNG'.
    seed: of the noise.
    height: in pixels.
    width: in pixels.
    mode: of PIL, as 'CMYK'.
  """
  noise = np.random.default_rng(seed).bytes(height * width * len(mode))
  buffer = io.BytesIO()
  PIL.Image.frombytes(mode, (width, height), noise).save(buffer, kind)
  return buffer.getvalue()


def gray_png(values):
  """Encodes values as a gray PNG of 8 bits."""
  buffer = io.BytesIO()
  PIL.Image.fromarray(np.array(values, np.uint8)).save(buffer, 'PNG')
  return buffer.getvalue()


def palette_png(values):
  """Encodes values as indices of a palette in which two share each color.

  The indices cannot be recovered from the colors.
  """
  indices = PIL.Image.fromarray(np.array(values, np.uint8), 'L')
  indices.putpalette([level // 2 for level in range(256) for _ in 'RGB'])
  buffer = io.BytesIO()
  indices.save(buffer, 'PNG')
  opened = PIL.Image.open(buffer)
  assert (opened.mode, buffer.getvalue()[24]) == ('P', 8)
  return buffer.getvalue()


def rgb_coded_png(values):
  """Encodes values as ImageNet-S does: R + 256 G."""
  values = np.array(values)
  pixels = np.stack([values % 256, values // 256, 0 * values], -1)
  buffer = io.BytesIO()
  PIL.Image.fromarray(pixels.astype(np.uint8)).save(buffer, 'PNG')
  return buffer.getvalue()


def synthia_png(values):
  """Encodes values as SYNTHIA does: 16 bits, class ids in the red channel.

  The green channel has ids of instances, which need all 16 bits.
  """
  values = np.array(values, np.uint16)
  instances = np.arange(values.size, dtype=np.uint16).reshape(values.shape)
  pixels = np.stack([0 * values, 1000 + instances, values], -1)
  _, png = cv2.imencode('.png', pixels)
  assert png[24] == 16
  return png.tobytes()


def sbd_mat(values):
  """Encodes values as SBD's `cls/*.mat`: the struct GTcls."""
  values = np.array(values, np.uint8)
  boundaries = np.empty((20, 1), object)
  for i in range(20):
    edges = np.zeros(values.shape, bool)
    edges[0, 0] = True
    boundaries[i, 0] = scipy.sparse.csc_matrix(edges)
  present = np.unique(values[(values > 0) & (values < 255)])
  return _mat(
    GTcls={
      'Boundaries': boundaries,
      'Segmentation': values,
      'CategoriesPresent': present[:, None],
    }
  )


def label_map_mat(values):
  """Encodes ids of the 459 classes as Pascal Context's `.mat`."""
  return _mat(LabelMap=np.array(values, np.uint16))


def voc2012(folder, images, masks, lists, sbd):
  """Writes VOCtrainval_11-May-2012.tar, and SBD's benchmark.tgz.

  Args:
    folder: of the archives.
    images: bytes of a JPEG by id.
    masks: VOC's values by id.
    lists: ids of 'train' and of 'val'.
    sbd: SBD's values by id; these images are in both archives.
  """
  root = 'VOCdevkit/VOC2012'
  segmentation = {**lists, 'trainval': [*lists['train'], *lists['val']]}
  write_archive(
    folder / 'VOCtrainval_11-May-2012.tar',
    {
      **{f'{root}/Annotations/{name}.xml': b'<a/>' for name in images},
      f'{root}/ImageSets/Main/train.txt': _lines(images),
      f'{root}/ImageSets/Main/aeroplane_train.txt': _lines(
        f'{name} -1' for name in images
      ),
      **{
        f'{root}/ImageSets/Segmentation/{split}.txt': _lines(names)
        for split, names in segmentation.items()
      },
      **{f'{root}/JPEGImages/{name}.jpg': images[name] for name in images},
      **{
        f'{root}/SegmentationClass/{name}.png': palette_png(values)
        for name, values in masks.items()
      },
      **{
        f'{root}/SegmentationObject/{name}.png': palette_png(
          np.ones_like(values)
        )
        for name, values in masks.items()
      },
    },
  )
  root = 'benchmark_RELEASE/dataset'
  write_archive(
    folder / 'benchmark.tgz',
    {
      'benchmark_RELEASE/README': b'Semantic Boundaries Dataset\n',
      **{f'{root}/cls/{name}.mat': sbd_mat(sbd[name]) for name in sbd},
      **{f'{root}/img/{name}.jpg': images[name] for name in sbd},
      **{
        f'{root}/inst/{name}.mat': _mat(GTinst={'Segmentation': sbd[name]})
        for name in sbd
      },
      f'{root}/train.txt': _lines(sbd),
      f'{root}/val.txt': _lines(sbd),
    },
  )


def voc2010(folder, images, lists):
  """Writes VOCtrainval_03-May-2010.tar, with the images of Pascal Context.

  Args:
    folder: of the archive.
    images: bytes of a JPEG by id.
    lists: ids of 'train' and of 'val'.
  """
  root = 'VOCdevkit/VOC2010'
  main = {
    **{split: _lines(names) for split, names in lists.items()},
    'trainval': _lines([*lists['train'], *lists['val']]),
    'cow_train': _lines(f'{name} -1' for name in lists['train']),
    'cow_val': _lines(f'{name}  1' for name in lists['val']),
  }
  write_archive(
    folder / 'VOCtrainval_03-May-2010.tar',
    {
      **{f'{root}/Annotations/{name}.xml': b'<a/>' for name in images},
      **{
        f'{root}/ImageSets/Main/{name}.txt': text for name, text in main.items()
      },
      f'{root}/ImageSets/Segmentation/train.txt': _lines(lists['train'][:1]),
      f'{root}/ImageSets/Segmentation/val.txt': _lines(lists['val'][:1]),
      **{f'{root}/JPEGImages/{name}.jpg': images[name] for name in images},
    },
  )


def label_maps(folder, masks):
  """Writes Pascal Context's trainval.tar.gz from values by id."""
  write_archive(
    folder / 'trainval.tar.gz',
    {
      f'trainval/{name}.mat': label_map_mat(values)
      for name, values in masks.items()
    },
  )


def detail_json(folder, masks, phases):
  """Writes the Detail API's trainval_merged.json.

  Args:
    folder: of the list.
    masks: values by id; 0 has no segment.
    phases: 'train' or 'val' by id.
  """
  images, segments = [], []
  for name, values in masks.items():
    values = np.array(values)
    images.append(
      {
        'file_name': f'{name}.jpg',
        'image_id': int(name.replace('_', '')),
        'height': values.shape[0],
        'width': values.shape[1],
        'phase': phases[name],
        'date_captured': '31-Oct-2007',
      }
    )
    for class_id in np.unique(values[values > 0]).tolist():
      mask = np.asfortranarray(values == class_id, np.uint8)
      encoded = coco.encode(mask)
      segments.append(
        {
          'id': len(segments) + 1,
          'image_id': images[-1]['image_id'],
          'category_id': class_id,
          'area': int(mask.sum()),
          'iscrowd': 0,
          'segmentation': {
            'size': [int(side) for side in encoded['size']],
            'counts': encoded['counts'].decode(),
          },
        }
      )
  content = {
    'info': {'description': 'PASCAL in Detail Dataset'},
    'images': images,
    'annos_segmentation': segments,
    'annos_boundary': [],
    'categories': [{'category_id': 2, 'name': 'aeroplane'}],
  }
  folder.mkdir(parents=True, exist_ok=True)
  (folder / 'trainval_merged.json').write_text(json.dumps(content))


def ade20k(folder, splits):
  """Writes ADEChallengeData2016.zip from (JPEG, values) by split and id."""
  root = 'ADEChallengeData2016'
  members = {
    f'{root}/objectInfo150.txt': b'Idx\tRatio\n',
    f'{root}/sceneCategories.txt': b'ADE_train_00000001 airport_terminal\n',
  }
  for split, examples in splits.items():
    part = {'train': 'training', 'val': 'validation'}[split]
    for name, (jpeg, values) in examples.items():
      members[f'{root}/annotations/{part}/{name}.png'] = gray_png(values)
      members[f'{root}/images/{part}/{name}.jpg'] = jpeg
  write_archive(folder / f'{root}.zip', members)


def cityscapes(folder, splits, kind='gtFine'):
  """Writes leftImg8bit_trainvaltest.zip and gtFine_trainvaltest.zip, or coarse.

  Args:
    folder: of the archives.
    splits: (PNG, values) by official name, split by split.
    kind: 'gtFine'; or 'gtCoarse' for leftImg8bit_trainextra.zip, which has
      train_extra only, and gtCoarse.zip.
  """
  about = {'README': b'Cityscapes\n', 'license.txt': b'Terms\n'}
  images, labels = {**about}, {**about}
  for split, examples in splits.items():
    for name, (png, values) in examples.items():
      place = f'{split}/{name.split("_")[0]}/{name}'
      if kind == 'gtFine' or split == 'train_extra':
        images[f'leftImg8bit/{place}_leftImg8bit.png'] = png
      label = f'{kind}/{place}_{kind}'
      labels[f'{label}_color.png'] = png
      labels[f'{label}_instanceIds.png'] = gray_png(np.zeros_like(values))
      labels[f'{label}_labelIds.png'] = gray_png(values)
      labels[f'{label}_polygons.json'] = b'{}'
  first, second = {
    'gtFine': ('leftImg8bit_trainvaltest.zip', 'gtFine_trainvaltest.zip'),
    'gtCoarse': ('leftImg8bit_trainextra.zip', 'gtCoarse.zip'),
  }[kind]
  write_archive(folder / first, images)
  write_archive(folder / second, labels)


def gta5(folder, parts):
  """Writes 01_images.zip, 01_labels.zip, 02_images.zip, …

  Args:
    folder: of the archives.
    parts: (PNG, values) by official name, archive by archive.
  """
  for i, examples in enumerate(parts, 1):
    write_archive(
      folder / f'{i:02}_images.zip',
      {f'images/{name}.png': png for name, (png, _) in examples.items()},
    )
    write_archive(
      folder / f'{i:02}_labels.zip',
      {
        f'labels/{name}.png': palette_png(values)
        for name, (_, values) in examples.items()
      },
    )


def synthia(folder, examples):
  """Writes the unpacked content of SYNTHIA_RAND_CITYSCAPES.rar.

  Args:
    folder: of the folder RAND_CITYSCAPES.
    examples: (PNG, values) by official name.
  """
  members = {}
  for name, (png, values) in examples.items():
    members[f'{_RAR}/Depth/Depth/{name}.png'] = synthia_png(values)
    members[f'{_RAR}/GT/COLOR/{name}.png'] = png
    members[f'{_RAR}/GT/LABELS/{name}.png'] = synthia_png(values)
    members[f'{_RAR}/RGB/{name}.png'] = png
  write_files(folder, members)


def imagenet_train(folder, images, name='ILSVRC2012_img_train.tar'):
  """Writes a tar file of tar files of classes; JPEGs by 'n01440764_10026'."""
  classes = {}
  for key, jpeg in images.items():
    classes.setdefault(key.split('_')[0], {})[f'{key}.JPEG'] = jpeg
  write_archive(
    folder / name,
    {f'{wnid}.tar': tar(members) for wnid, members in classes.items()},
  )


def imagenet_val(folder, images):
  """Writes ILSVRC2012_img_val.tar from JPEGs by their number, from 1."""
  write_archive(
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
  write_archive(
    folder / f'{root}.tar.gz',
    {
      f'{root}/readme.txt': b'ILSVRC2012\n',
      f'{root}/data/ILSVRC2012_validation_ground_truth.txt': numbers.encode(),
      f'{root}/data/meta.mat': _mat(synsets=synsets),
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
  write_files(folder, members)


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
  write_files(
    folder, {f'data/{name}': _lines(lines) for name, lines in members.items()}
  )


def imagenet_s_masks(folder, size, semi, val):
  """Writes the zip file of masks from values by 'CLASS/NAME'."""
  parts = {'train-semi-segmentation': semi, 'validation-segmentation': val}
  write_archive(
    folder / IMAGENET_S_ZIPS[size],
    {
      f'ImageNetS{size}/{part}/{name}.png': rgb_coded_png(values)
      for part, masks in parts.items()
      for name, values in masks.items()
    },
  )


def tar(members, mode='w'):
  """Returns the bytes of a tar file."""
  buffer = io.BytesIO()
  with tarfile.open(fileobj=buffer, mode=mode) as archive:
    for name in _folders(members):
      entry = tarfile.TarInfo(name)
      entry.type = tarfile.DIRTYPE
      archive.addfile(entry)
    for name, content in members.items():
      entry = tarfile.TarInfo(name)
      entry.size = len(content)
      archive.addfile(entry, io.BytesIO(content))
  return buffer.getvalue()


def write_archive(path, members):
  """Writes a zip or tar file, with an entry for each folder.

  Args:
    path: its suffix determines the format.
    members: bytes by path.
  """
  path.parent.mkdir(parents=True, exist_ok=True)
  if path.suffix != '.zip':
    path.write_bytes(tar(members, 'w' if path.suffix == '.tar' else 'w:gz'))
    return
  with zipfile.ZipFile(path, 'w', zipfile.ZIP_DEFLATED) as archive:
    for name in _folders(members):
      archive.writestr(f'{name}/', b'')
    for name, content in members.items():
      archive.writestr(name, content)


def write_files(folder, members):
  """Writes files from bytes by path."""
  for name, content in members.items():
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    (folder / name).write_bytes(content)


def extract(source, target):
  """Copies a folder with its archives unpacked, tar files in tar files, too.

  The tar file of a class of ImageNet is unpacked to a folder of its name, as is
  customary.
  """
  shutil.copytree(source, target)
  while archives := [p for p in target.rglob('*') if p.suffix in _SUFFIXES]:
    for archive in archives:
      folder = archive.parent
      if re.fullmatch(r'n\d{8}', archive.stem):
        folder /= archive.stem
      shutil.unpack_archive(archive, folder)
      archive.unlink()


def _mat(**variables):
  buffer = io.BytesIO()
  scipy.io.savemat(buffer, variables, do_compression=True)
  return buffer.getvalue()


def _lines(lines):
  return ''.join(f'{line}\n' for line in lines).encode()


def _folders(members):
  """Returns the folders of the members, outermost first."""
  parents = {p for name in members for p in pathlib.PurePosixPath(name).parents}
  return sorted(str(path) for path in parents if path.name)
