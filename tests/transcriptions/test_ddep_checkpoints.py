"""Fake weights of DDeP have the public checkpoints' shapes."""

from tests.transcriptions import ddep_checkpoints


def test_public_shapes_of_the_hybrid_checkpoint(rng):
  weights = ddep_checkpoints.hybrid_vit_checkpoint(rng, std_scale=0)
  block = 'Transformer/encoderblock_11'
  for key, shape in {
    'conv_root/kernel': (7, 7, 3, 64),
    'gn_root/scale': (1, 1, 1, 64),
    'block1/unit1/conv_proj/kernel': (1, 1, 64, 256),
    'block3/unit9/conv1/kernel': (1, 1, 1024, 256),
    'block3/unit1/gn_proj/bias': (1, 1, 1, 1024),
    'Transformer/posembed_input/pos_embedding': (1, 197, 768),
    f'{block}/MultiHeadDotProductAttention_1/key/bias': (12, 64),
    f'{block}/MultiHeadDotProductAttention_1/out/kernel': (12, 64, 768),
    f'{block}/MlpBlock_3/Dense_1/kernel': (3072, 768),
    'head/kernel': (768, 21843),
    'pre_logits/kernel': (768, 768),
  }.items():
    assert weights[key].shape == shape, key
  assert sum(value.nbytes for value in weights.values()) // 10**6 == 461
  stem = {k: v for k, v in weights.items() if k[:2] in ('co', 'gn', 'bl')}
  assert ddep_checkpoints.count_parameters(stem) == 11_894_848
  assert ddep_checkpoints.count_parameters(weights) == 97_890_112


def test_public_shapes_of_the_bit_checkpoint(rng):
  weights = ddep_checkpoints.bit_checkpoint(rng, std_scale=0)
  for key, shape in {
    'resnet/root_block/standardized_conv2d/kernel': (7, 7, 3, 64),
    'resnet/block2/unit01/a/group_norm/gamma': (256,),
    'resnet/block4/unit01/a/proj/standardized_conv2d/kernel': (
      (1, 1, 1024, 2048)
    ),
    'resnet/block3/unit06/b/standardized_conv2d/kernel': (3, 3, 256, 256),
    'resnet/group_norm/beta': (2048,),
    'resnet/head/conv2d/kernel': (1, 1, 2048, 21843),
  }.items():
    assert weights[key].shape == shape, key
  assert ddep_checkpoints.count_parameters(weights) == 23_500_352
