import pytest

from pass_luss.pseudo_labels import label_options


def test_a_crop_larger_than_the_short_side_is_refused():
  with pytest.raises(ValueError, match='crop: expected at most the short side'):
    label_options.ClusterOptions(short_side=32, crop=64)


@pytest.mark.parametrize('name', ['iterations', 'restarts', 'batch_size'])
def test_numbers_below_1_are_refused(name):
  with pytest.raises(ValueError, match=f'{name}: expected 1 or more, got 0'):
    label_options.ClusterOptions(**{name: 0})
