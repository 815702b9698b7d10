"""Every image is evaluated once, with all of its classes."""

import collections
import dataclasses

import jax.numpy as jnp
import numpy as np

from input_pipeline import loader, transforms
from segcore.distributed import sharding
from segcore.eval import evaluator as evaluator_lib
from segcore.eval import inference, metrics
from segcore.train import train_state
from tests.support import fake_data, fake_network
from tests.support.evaluation import SIZES, evaluator
from tests.support.meshes import mesh_of


@dataclasses.dataclass(frozen=True)
class Seen:
  """The images that a metric was shown, instead of counts."""

  ids: tuple[bytes, ...] = ()

  def update(self, prediction, label, id):
    assert prediction.shape == label.shape
    return Seen((*self.ids, id))

  def merge(self, other):
    return Seen(self.ids + other.ids)

  def compute(self):
    return {'ids': np.array(self.ids)}


@dataclasses.dataclass(frozen=True)
class Drawn:
  """Predicts what a function of uint8 images gives."""

  function: object

  group = inference.ImageScores.group
  prepare = inference.ImageScores.prepare
  multiple = fake_network.STRIDE

  def __call__(self, state, inputs):
    return self.function(inputs['images'])


def test_every_image_is_evaluated_once():
  split = fake_data.labeled_split(SIZES)
  for num_devices in (1, 8):
    mesh = mesh_of(num_devices)
    state = train_state.inference_train_state({'params': {}}, mesh)
    predictor = Drawn(lambda images: images[..., 0])
    seen = evaluator(split, predictor, Seen(), mesh)(state).values
    expected = [f'image{i:02}'.encode() for i in range(len(SIZES))]
    assert sorted(seen['ids'].tolist()) == expected


def test_few_images_of_a_group_make_small_batches():
  sizes = [(8, 8)] * 9 + [(4, 4)] * 3 + [(2, 2)] * 100

  def rows_of_batches(multiple):
    planned = evaluator_lib.plan_evaluation_batches(
      sizes, 8, lambda size: inference.Group(size, (size,)), multiple
    )
    assert sorted(i for b in planned for i in b.indices if i >= 0) == [
      *range(len(sizes))
    ]
    rows = collections.defaultdict(list)
    for batch in planned:
      rows[batch.group.padded_size].append(len(batch.indices))
    return rows

  rows = rows_of_batches(1)
  # 12 rows for 9 images, not 16; 4 for 3; large batches where there are many.
  assert rows[8, 8] == [4] * 3 and rows[4, 4] == [4]
  assert rows[2, 2] == [8] * 13
  assert {n for each in rows_of_batches(8).values() for n in each} == {8}


def test_groups_of_one_input_have_batches_of_as_many_rows():
  # 3 images would have a batch of 4 by themselves, as those of the third size.
  planned = evaluator_lib.plan_evaluation_batches(
    [(8, 8)] * 3 + [(16, 16)] * 100 + [(4, 8)] * 3,
    8,
    lambda size: inference.Group(size, ((min(8, size[0]), 8),)),
  )
  rows = collections.defaultdict(set)
  for batch in planned:
    rows[batch.group.padded_size].add(len(batch.indices))
  assert rows == {(8, 8): {8}, (16, 16): {8}, (4, 8): {4}}


def test_means_over_some_classes():
  split = fake_data.labeled_split(SIZES[:2])
  mesh = mesh_of(1)
  state = train_state.inference_train_state({'params': {}}, mesh)
  matrix = metrics.ConfusionMatrix.empty(4)
  drawn = Drawn(lambda images: (images[..., 0] % 4).astype(jnp.int16))
  whole = evaluator(split, drawn, matrix, mesh)
  some = dataclasses.replace(whole, class_subsets={'two': (0, 3)})
  values, expected = some(state).values, whole(state).values
  iou = expected['iou']
  np.testing.assert_allclose(values['two'], (iou[0] + iou[3]) / 2)
  assert values.keys() - expected.keys() == {'two'}
  assert values['miou'] == expected['miou']


def test_random_crops_follow_from_the_seed_and_the_index():
  split = fake_data.labeled_split(SIZES)
  mesh = mesh_of(1)
  state = train_state.inference_train_state({'params': {}}, mesh)

  def crops(batch_size, seed):
    predictions = evaluator_lib.Predictions(
      split,
      Drawn(lambda images: images[..., 0]),
      batch_size,
      mesh,
      ('label',),
      augmentation=evaluator_lib.Augmentation(
        transforms.RandomCrop((16, 24)), (seed,)
      ),
    )
    prediction_by_id = {}
    for prediction, example in predictions(state):
      assert example['label'].shape == (16, 24)
      np.testing.assert_array_equal(prediction, example['image'][..., 0])
      prediction_by_id[example['id'].item()] = prediction.tobytes()
    return prediction_by_id

  first = crops(2, seed=0)
  assert len(first) == len(SIZES)
  assert crops(8, seed=0) == first
  assert crops(2, seed=1) != first


def test_919_classes_survive(tmp_path):
  """The class of each pixel is written in red and green of the image."""
  results = []
  for i, size in enumerate([(31, 37), (40, 30), (33, 31), (31, 37)]):
    label = (np.arange(size[0] * size[1]).reshape(size) + i) % 920 - 1
    shown = np.maximum(label, 0)
    image = np.stack([shown // 256, shown % 256, shown * 0], -1)
    results.append(fake_data.make_record(i, image, label, 919))
  split = fake_data.make_split(results, 919)

  def predict(images):
    images = images.astype(jnp.int16)
    return images[..., 0] * 256 + images[..., 1]

  matrix = metrics.ConfusionMatrix.empty(919)
  mesh = mesh_of()
  state = train_state.inference_train_state({'params': {}}, mesh)
  values = evaluator(split, Drawn(predict), matrix, mesh)(state).values
  np.testing.assert_array_equal(values['iou'], np.ones(919))

  decode = transforms.Decode(919)
  crop = transforms.RandomCrop((30, 30))
  stream = loader.Stream(split.records, transforms.Compose((decode, crop)))
  with loader.Loader({'': stream}, 8, seed=0).start(0) as batches:
    put = sharding.make_batch_sharder(mesh)
    batch = put(loader.drop_host_only_keys(next(batches)))
  assert batch['label'].dtype == jnp.int16
  assert int(batch['label'].max()) == 918
  known = predict(batch['image'])
  np.testing.assert_array_equal(known, jnp.maximum(batch['label'], 0))
