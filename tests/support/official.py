"""Small archives with the names, layouts and formats of the official ones.

  official.ade20k(folder, {'train': {'ADE_train_00000001': (jpeg, values)}})

Images are the bytes of a file, masks are rows of stored values. Besides the
given files, every archive holds some of the other files of the official one.
"""

import io
import json

import cv2
import numpy as np
import PIL.Image
import scipy.sparse
from pycocotools import mask as coco

from tests.support import archive_files

_RAR = 'RAND_CITYSCAPES'


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
  return archive_files.mat_bytes(
    GTcls={
      'Boundaries': boundaries,
      'Segmentation': values,
      'CategoriesPresent': present[:, None],
    }
  )


def label_map_mat(values):
  """Encodes ids of the 459 classes as Pascal Context's `.mat`."""
  return archive_files.mat_bytes(LabelMap=np.array(values, np.uint16))


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
  archive_files.write_archive(
    folder / 'VOCtrainval_11-May-2012.tar',
    {
      **{f'{root}/Annotations/{name}.xml': b'<a/>' for name in images},
      f'{root}/ImageSets/Main/train.txt': archive_files.line_bytes(images),
      f'{root}/ImageSets/Main/aeroplane_train.txt': archive_files.line_bytes(
        f'{name} -1' for name in images
      ),
      **{
        f'{root}/ImageSets/Segmentation/{split}.txt': archive_files.line_bytes(
          names
        )
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
  archive_files.write_archive(
    folder / 'benchmark.tgz',
    {
      'benchmark_RELEASE/README': b'Semantic Boundaries Dataset\n',
      **{f'{root}/cls/{name}.mat': sbd_mat(sbd[name]) for name in sbd},
      **{f'{root}/img/{name}.jpg': images[name] for name in sbd},
      **{
        f'{root}/inst/{name}.mat': archive_files.mat_bytes(
          GTinst={'Segmentation': sbd[name]}
        )
        for name in sbd
      },
      f'{root}/train.txt': archive_files.line_bytes(sbd),
      f'{root}/val.txt': archive_files.line_bytes(sbd),
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
    **{
      split: archive_files.line_bytes(names) for split, names in lists.items()
    },
    'trainval': archive_files.line_bytes([*lists['train'], *lists['val']]),
    'cow_train': archive_files.line_bytes(
      f'{name} -1' for name in lists['train']
    ),
    'cow_val': archive_files.line_bytes(f'{name}  1' for name in lists['val']),
  }
  archive_files.write_archive(
    folder / 'VOCtrainval_03-May-2010.tar',
    {
      **{f'{root}/Annotations/{name}.xml': b'<a/>' for name in images},
      **{
        f'{root}/ImageSets/Main/{name}.txt': text for name, text in main.items()
      },
      f'{root}/ImageSets/Segmentation/train.txt': archive_files.line_bytes(
        lists['train'][:1]
      ),
      f'{root}/ImageSets/Segmentation/val.txt': archive_files.line_bytes(
        lists['val'][:1]
      ),
      **{f'{root}/JPEGImages/{name}.jpg': images[name] for name in images},
    },
  )


def label_maps(folder, masks):
  """Writes Pascal Context's trainval.tar.gz from values by id."""
  archive_files.write_archive(
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
  archive_files.write_archive(folder / f'{root}.zip', members)


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
  archive_files.write_archive(folder / first, images)
  archive_files.write_archive(folder / second, labels)


def gta5(folder, parts):
  """Writes 01_images.zip, 01_labels.zip, 02_images.zip, …

  Args:
    folder: of the archives.
    parts: (PNG, values) by official name, archive by archive.
  """
  for i, examples in enumerate(parts, 1):
    archive_files.write_archive(
      folder / f'{i:02}_images.zip',
      {f'images/{name}.png': png for name, (png, _) in examples.items()},
    )
    archive_files.write_archive(
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
  archive_files.write_files(folder, members)
