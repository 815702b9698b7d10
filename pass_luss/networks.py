"""What each stage trains or looks with: the encoder, its heads, the method."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp

from input_pipeline import batch as batch_lib
from input_pipeline import transforms
from pass_luss import experiment as experiment_lib
from pass_luss import finetune
from pass_luss.pretrain import heads
from pass_luss.pretrain import method as method_lib
from pass_luss.pretrain import options as pretrain_options
from pass_luss.pseudo_labels import attention
from segcore.experiment import context as context_lib
from segcore.experiment import dry_run
from segcore.models import network, segmenter

# Classes of a data set that says how many only when it is read.
_ASSUMED_CLASSES = 50


@dataclasses.dataclass(frozen=True)
class Networks(context_lib.OnMesh):
  """The networks of an experiment, by the names of its stages."""

  experiment: experiment_lib.Experiment

  @property
  def exact_bench(self) -> context_lib.Bench:
    """The bench, in float32 throughout: for looking at images."""
    exact = dataclasses.replace(self.experiment.network, dtype='float32')
    return dataclasses.replace(self.bench, network=exact)

  @property
  def clustered(self) -> str:
    """The stage whose network clusters and labels."""
    attended = self.experiment.cluster.kind == 'attended'
    return 'attend' if attended else 'represent'

  def size(self, name: str) -> tuple[int, int]:
    """Height and width of the images of a training."""
    if name in ('represent', 'attend'):
      return getattr(self.experiment, name).large.size
    return self.augmentations(name)[0].size

  def augmentations(self, name: str) -> tuple[Any, transforms.RandomFlip]:
    """The crop and the mirrors of fine-tuning."""
    block = getattr(self.experiment, name)
    return context_lib.augmentations(block.crop, block.flips, f'config.{name}')

  def check(self, name: str) -> None:
    """Raises UserError unless images of all sizes fit, and stages exist."""
    block, path = getattr(self.experiment, name), f'config.{name}'
    net = self.of(name, self.bench, 2)  # Any number fits.
    what = 'large.size' if hasattr(block, 'large') else 'crop.size'
    network.check_image_size(net, self.size(name), f'{path}.{what}')
    if getattr(block, 'small', None):
      network.check_image_size(net, block.small.size, f'{path}.small.size')

  def plan(self, name: str) -> dry_run.Plan:
    """A training, as far as it is known without its data."""
    block = getattr(self.experiment, name)
    size = self.size(name)

    def spec(num_classes: int) -> Any:
      del num_classes
      if hasattr(block, 'large'):
        return block.crop.spec(block.recipe.batch_size)
      return batch_lib.spec(block.recipe.batch_size, size, label=True)

    data = self.experiment.represent.data
    if name != 'represent':
      data = self.experiment.images.data
    return self.bench.plan(
      functools.partial(self.method, name), block.recipe, size, spec, data
    )

  def method(
    self,
    name: str,
    bench: context_lib.Bench,
    num_classes: int = _ASSUMED_CLASSES,
  ) -> method_lib.Pretrain | attention.AttentionMethod | finetune.Finetune:
    """What a stage trains, and how."""
    block = getattr(self.experiment, name)
    net = self.of(name, bench, num_classes)
    update = block.recipe.make_update
    match name:
      case 'represent':
        return method_lib.Pretrain(
          net, update(('encoder', 'heads')), block.learn, block.colors
        )
      case 'attend':
        frozen = dataclasses.replace(
          block.recipe.optimizer,
          groups=(attention.FROZEN_PROJECTION, *block.recipe.optimizer.groups),
        )
        recipe = dataclasses.replace(block.recipe, optimizer=frozen)
        return attention.AttentionMethod(
          net, recipe.make_update(('heads',)), block.clusters, block.colors
        )
      case _:
        image_level = name == 'finetune' and (
          self.experiment.cluster.kind == 'image'
        )
        return finetune.Finetune(
          net,
          update(('encoder', 'heads')),
          'images' if image_level else 'pixels',
          block.reduction,
          block.repeated_upsampling,
          block.colors,
        )

  def of(
    self,
    name: str,
    bench: context_lib.Bench,
    num_classes: int = _ASSUMED_CLASSES,
  ) -> segmenter.Segmenter:
    """The encoder with the heads of a stage."""
    learned = self.experiment.represent
    dtype = jnp.dtype(bench.network.dtype)
    match name:
      case 'represent':
        found = pretrain_options.build_heads(
          learned.learn, learned.widths, dtype
        )
      case 'attend':
        all_heads = pretrain_options.build_heads(
          learned.learn, learned.widths, dtype
        )
        found = {
          'clusters': all_heads['clusters'],
          'attention': heads.Attention(
            self.experiment.attend.shared, dtype=dtype
          ),
        }
      case _:
        found = {'logits': heads.Classifier(num_classes, dtype=dtype)}
        stride = getattr(self.experiment, name).output_stride
        if stride:
          encoder = {**bench.network.encoder, 'output_stride': stride}
          net = dataclasses.replace(bench.network, encoder=encoder)
          bench = dataclasses.replace(bench, network=net)
    return bench.build(found, self.size(name))

  def clustered_network(self) -> segmenter.Segmenter:
    """The network that clusters and labels."""
    return self.of(self.clustered, self.exact_bench)

  def features_of_cells(self) -> tuple[int, int, int]:
    """Height, width and channels of the map that is clustered by cells."""
    side = self.experiment.cluster.crop
    net = self.clustered_network()
    images = jax.ShapeDtypeStruct((1, side, side, 3), jnp.float32)

    def deepest(images: jax.Array) -> jax.Array:
      found, _ = net.init_with_output(
        jax.random.PRNGKey(0), images, decode=False, method='features'
      )
      return found['encoder'].deepest.array

    return jax.eval_shape(deepest, images).shape[1:]
