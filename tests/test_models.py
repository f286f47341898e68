"""The networks of the published study."""

import pytest
import torch
from torch import nn

import flatminima as fm


def count(network: nn.Module) -> int:
    return sum(value.numel() for value in network.parameters())


def test_sizes_are_the_published_ones():
    assert count(fm.build_model("mlp")) == 900_880
    assert count(fm.build_model("vgg16")) == 14_728_266


def test_logits_have_one_column_per_class():
    assert fm.build_model("mlp")(torch.zeros(3, 1, 28, 28)).shape == (3, 10)
    assert fm.build_model("vgg16", width=0.05).eval()(torch.zeros(2, 3, 32, 32)).shape == (2, 10)


@pytest.mark.parametrize(
    ("name", "settings", "complaint"),
    [
        ("resnet", {}, "expected a network among"),
        ("mlp", {"depth": 3}, "expected settings of 'mlp'"),
        ("mlp", {"sizes": [10]}, "at least two layers"),
        ("vgg16", {"width": 0.0}, "positive width"),
    ],
)
def test_unknown_networks_and_settings_are_refused(name, settings, complaint):
    with pytest.raises(ValueError, match=complaint):
        fm.build_model(name, **settings)
