"""Options that a config has no place for, or that contradict each other."""

import pytest

from tests.configs import loading

# What an objective of pretraining does not have.
OF_OBJECTIVES = [
  ('objective=moco,branch=pixpro', 'branch=pixpro: expected none with obj'),
  ('setting=official', 'expected luss with objective=pass'),
  (
    'objective=supervised,setting=official',
    'expected luss with objective=supervised',
  ),
  ('objective=byol,project=false', 'project=False: .* with p2p=regression'),
  ('objective=byol,d2s_view=same', 'd2s_view=same: objective=byol does not'),
  ('objective=byol,d2s_targets=own', 'expected it with d2s=3'),
  ('objective=byol,combine=sum', 'combine=sum: .* expected it with d2s=3'),
  ('objective=moco,adco=plain', 'adco=plain: expected it with objective=ad'),
  ('adco=multi_crop', 'expected it with objective=adco, got objective=pass'),
  ('objective=moko', 'expected one of pass, supervised, simclr, moco'),
  ('objective=moco,clusters=false,d2s=3', 'needs clusters=true'),
  ('objective=moco,predictor_statistics=per_view', 'p2p=off has no pred'),
]
# Options and the reason why they are refused, by config.
REFUSED = {
  'pass_imagenet_s300': [
    ('on=919', 'expected a smaller size than 300'),
    ('on=7', 'on=7: expected one of 50, 300, 919$'),
    ('on=50,protocol=distance', 'nothing that segments'),
    *OF_OBJECTIVES,
  ],
  'pass_imagenet_s50': [
    ('on=50', 'expected a smaller size than 50'),
  ],
  'pass_shapes': [
    ('clusters=false', 'has no other objective'),
    ('branch=pixpro,clusters=false,d2s=3', 'needs clusters=true'),
    ('branch=pixpro,clusters=false', 'attention is trained by clusters'),
    ('branch=moco', 'expected one of swav, pixpro'),
    ('p2p=off,predictor_statistics=per_view', 'no predictor'),
    ('epochs=3', 'is unknown'),
    ('on=50', 'is unknown'),
    ('threshold=low', 'threshold=low: expected a number'),
    ('objective=moco,setting=official', 'setting=official: expected luss, as'),
    ('choose=published', 'choose=published: expected val, .*threshold=NUMBER'),
    *OF_OBJECTIVES,
  ],
  'pass_wsss': [
    ('classifier=plain', 'classifier=plain: expected it with method=advcam'),
    ('maps=subcategories', 'maps=subcategories: expected it with method=sc_ca'),
    ('encoder=x,pretraining=moco', 'pretraining=moco: expected none with enco'),
  ],
  'u2pl_adapt_shapes': [
    ('system=source_only,mixing=on', 'no place for source pixels in target'),
    ('system=target_only,contrast=on', 'expected u2pl_plus or daformer'),
    ('system=daformer,negatives=all', 'negatives=all: expected contrast=on'),
    ('system=daformer,weighting=both', 'weighting=both: expected filter=on'),
    ('contrast=off,contrast_weight=1', 'contrast_weight=1.0: expected contr'),
  ],
  'u2pl_cityscapes': [
    (
      'system=cct,implementation=own',
      'expected one of cps, of which there are settings of system=cct',
    ),
  ],
  'u2pl_shapes': [
    ('system=cutmix,bank=on', 'earlier steps: expected one of u2pl, u2pl_plus'),
    ('system=sup_only,sce=on', 'expected one of u2pl_plus, u2pl, cutmix, cl'),
    ('system=mt,mp=on', 'one of u2pl, u2pl_plus, u2pl_ael, or pd=on'),
    ('system=sup_only,mp=on', 'expected one of u2pl, u2pl_plus, u2pl_ael$'),
    (
      'system=cps,confidence=0.8',
      'confidence=0.8: expected one of the systems ',
    ),
    ('system=unimatch,ema=0.9', 'mt, unimatch_v2, ael, u2pl_ael, got'),
    (
      'system=unimatch,bank=on',
      'earlier steps: expected one of u2pl, u2pl_plus',
    ),
    ('system=cps,sce=on', 'cutmix, classmix, mt, u2pl_ael$'),
    ('system=cps,contrast_weight=1.0', 'system=cps has no contrast'),
    ('system=ael,contrast_weight=1.0', 'system=ael has no contrast'),
    ('system=ael,jitter=0.5', 'jitter=0.5: expected one of the systems '),
    ('system=ael,pd=on', 'system=ael has no place for prototypical denoising'),
    ('system=cps,un=on', 'one of u2pl, u2pl_plus, u2pl_ael$'),
    ('system=cps,pair=self', 'with system=cps_cutmix, got system=cps$'),
  ],
  'u2pl_voc': [
    # Epochs that cannot be counted.
    ('labels=0', 'labels=0: expected 1 to 1464'),
    ('labels=1465', 'labels=1465: expected 1 to 1464'),
    ('partition=blender,labels=10582', 'labels=10582: expected 1 to 10566'),
    ('labels=0,list=mine.txt', 'with list=FILE, too'),
    ('batch=1', 'batch=1: expected 2 or more, as images are mixed'),
    ('system=sup_only,batch=0', 'batch=0: expected 1 or more$'),
    ('system=mt,equal_steps', 'equal_steps: expected .*, got system=mt'),
    ('system=unimatch,scales=listed', 'system=unimatch have a range'),
    ('scales=listed', 'authors of system=u2pl_plus have a range'),
    ('system=cps,implementation=own', 'there is one implementation of'),
  ],
  'u2pl_weak_voc': [
    ('system=cam,affinity=on', 'affinity=on: system=cam has no place for affi'),
    ('system=full,energy=on', 'energy=on: system=full has no place for dense'),
    ('system=afa,beta=0.5', 'beta=0.5: expected contrast=on, since it has no'),
  ],
}


@pytest.mark.parametrize(
  ('name', 'argument', 'message'),
  [(name, *row) for name, rows in REFUSED.items() for row in rows],
)
def test_refused_options(name, argument, message):
  with pytest.raises(ValueError, match=message):
    loading.load(name, argument)
