"""AFA and U2PL+ on it on your own images with tags of whole images.

Data:  a folder of images and tags: a table of FILE,LABEL;LABEL, a folder of
       NAME.txt, or a folder of images for each class (docs/own_data.md). Images
       that have a mask in `masks` are not trained on: they are evaluated.
Run:   python -m u2pl.main \\
         --config=configs/u2pl_weak_folder.py:source=animals,tags=tags.csv
Cost:  15 to 30 minutes on 2 CPU cores, by an estimate from `tiny`.
"""

from configs import options as options_lib
from configs import pretrained, shared, weak

# Fields of the data set that are options here as in `shared.FOLDER`.
_FOLDER = {
  name: shared.FOLDER[name]
  for name in (
    *('source', 'images', 'image_suffix', 'mask_suffix', 'ignore'),
    *('on_bad_example', 'mask_codes', 'follow_exif', 'image_depth'),
    *('max_megapixels',),
  )
}
# With the package of pretrained weights; its encoder has no attention.
_PRETRAINED = 'efficientnet+deeplabv3plus'


def get_config(argument=None):
  options = options_lib.parse(
    argument,
    **_FOLDER,
    tags='',  # table, or folder of text files; '': folders of classes
    masks='',  # folder of masks of a few images, which are evaluated
    classes='',  # class list, background first; '': the names of the tags
    size='128x128',  # HEIGHTxWIDTH of crops, in pixels
    steps=1500,
    lr=1e-3,
    **weak.OPTIONS | pretrained.OPTIONS,
  )
  network, encoder, notes = _choose_network(options)
  attends = network.encoder.name == 'mit'
  config = shared.block(
    program='u2pl.main',
    notes=notes,
    stages=('weak', 'evaluate') if options.masks else ('weak',),
    network=network,
    weak={
      'data': _data(options),
      'val_split': 'val' if options.masks else '',
      'learn': weak.small_losses(options, options.steps, attends),
      'heads': {'width': 64, 'representation': 64},
      'start': shared.encoder_start(encoder),
      'crop': {
        'name': 'inception',
        'size': shared.parse_size(options.size),
        'area': (0.3, 1.0),
      },
      'recipe': shared.recipe(
        8,
        options.steps,
        shared.adam(
          options.lr,
          warmup_steps=50,
          **({'groups': (('^encoder/', 0.1, 1.0),)} if encoder else {}),
        ),
        evaluate_every=options.steps // 5,
      ),
    },
    evaluate={
      'cam_refinement': weak.cam_refinement(options),
      'batch_size': 8,
      'training_scale': True,
      'protocol': {'flip': True, 'size_multiple': 64, 'crf': options.crf},
    },
  )
  config.weak.recipe.seed = options.seed
  if options.tiny:
    weak.shorten(config, options)
  return config


def _choose_network(options):
  """Returns network, weights of its encoder, and notes for the user."""
  installed = pretrained.is_installed(pretrained.PACKAGE) and not options.tiny
  if options.network == 'auto':
    if options.encoder not in ('auto', 'random') or not installed:
      given = options.encoder not in ('auto', 'random')
      encoder = options.encoder if given else ''
      note = 'network: a small MiT, whose attention gives affinities'
      return weak.small_mit(), encoder, () if options.tiny else (note,)
    options.network = _PRETRAINED
  chosen = pretrained.choose_network(options)
  if chosen.block.encoder.name == 'mit':
    # Of AFA: the last map has the stride of the one before.
    chosen.block.encoder.strides = (4, 2, 2, 1)
  return chosen.block, chosen.encoder, chosen.notes


def _data(options):
  """Builds the data set of the folder."""
  given = shared.given_folder_options(options)
  names = ('source', 'images', 'on_bad_example', 'tags', 'masks', 'classes')
  fields = {name: getattr(options, name) for name in names}
  fields |= {name: getattr(options, name) for name in _FOLDER if name in given}
  return {'name': 'image_tag_folder', **fields}
