"""How good the features of any encoder are on any data, without training.

Three protocols: nearest patches of labeled images, nearest regions of them, and
clusters of patches. By default those of EfficientNet-Lite0, from a package, on
generated images; `encoder=` takes a weight file or a finished stage, whose
network follows from it.

Data:  `source=` as in `ddep_folder.py`, or the name of a data set in `data=`.
Run:   python -m pass_luss.main \\
         --config=configs/pass_frozen.py:source=roads,encoder=dino_small16.pth
Cost:  a minute for 100 images on 2 CPU cores.
"""

from configs import options as options_lib
from configs import pretrained, shared

_STAGES = ('frozen_knn', 'frozen_distance', 'frozen_kmeans')

# Options of a folder and of labeled images but those of training.
_FOLDER = {k: v for k, v in shared.FOLDER.items() if k not in ('crop', 'size')}
_LABELED = {k: v for k, v in shared.LABELED.items() if k != 'class_weights'}
# Options that not all protocols have: the protocols, and the defaults.
_OF_PROTOCOLS = {
  'enlarge': (('distance',), 1),
  'passes': (('knn',), 0),
  'rows': (('knn', 'kmeans'), 0),
  'pixels': (('knn',), 'class_0'),
  'clusters': (('kmeans',), 0),
}


def get_config(argument=None):
  options = options_lib.parse(
    argument,
    **_FOLDER,
    **_LABELED,
    data='',  # name of a data set: camvid, voc2012; '': `source`, or shapes
    val='val',  # split that is scored
    encoder='auto',  # weight file, stage or package:NAME; auto: Lite0's package
    untrained=False,  # the same encoder with random parameters
    protocol=['all', 'knn', 'distance', 'kmeans'],
    stride=0,  # of the map; 0: the deepest one
    short_side=0,  # of images, in pixels; 0: 448, or 224 for cells of 8 pixels
    enlarge=1,  # factor by which `distance` enlarges maps
    passes=0,  # random crops of each image in the memory of `knn`; 0: whole
    rows=0,  # patches of an image in memory or clustering; 0: all
    pixels=['class_0', 'left_out'],  # those without a class, in the memory
    clusters=0,  # 0: one for each class
    tiny=False,  # the first 20 labeled images, at half the size
  )
  _check_protocol_options(options)
  common = {
    'data': _data(options),
    'subset': shared.subset(options, 20 if options.tiny else 0),
    'val_split': options.val,
    'start': {'path': _encoder(options), 'take': ('encoder',)},
    'untrained': options.untrained,
    'seed': options.seed,
    'stride': options.stride,
    'short_side': options.short_side or (224 if options.tiny else 0),
  }
  chosen = options.protocol
  return shared.block(
    program='pass_luss.main',
    notes=shared.folder_notes(options),
    network={'encoder': {'name': 'of_weights'}},
    stages=_STAGES if chosen == 'all' else (f'frozen_{chosen}',),
    frozen_knn={
      **common,
      'passes': options.passes,
      'rows_per_image': options.rows,
      'unlabeled': options.pixels,
    },
    frozen_distance={**common, 'enlarge': options.enlarge},
    frozen_kmeans={
      **common,
      'clusters': options.clusters,
      'rows_per_image': options.rows,
    },
  )


def _data(options):
  if options.unlabeled not in ('', 'same'):
    raise ValueError(
      f'config option unlabeled={options.unlabeled}: expected same, for images '
      'without a mask, as others are not read'
    )
  if options.source and not options.data:
    return shared.folder(options)
  # Data sets with a name have none of the options of a folder but `source`.
  given = [n for n in shared.given_folder_options(options) if n != 'source']
  if given:
    raise ValueError(
      f'config option {given[0]}={getattr(options, given[0])}: expected '
      'source=FOLDER without data, as only folders have it, got '
      + (f'data={options.data}' if options.data else 'no source')
    )
  source = {'source': options.source} if options.source else {}
  return {'name': options.data or 'shapes/scenes', **source}


def _check_protocol_options(options):
  for name, (protocols, default) in _OF_PROTOCOLS.items():
    value = getattr(options, name)
    if value != default and options.protocol not in ('all', *protocols):
      raise ValueError(
        f'config option {name}={value}: expected protocol='
        f'{" or ".join(protocols)}, got {options.protocol}'
      )


def _encoder(options):
  if options.encoder == 'auto':
    return f'package:{pretrained.PACKAGE}'
  return options.encoder
