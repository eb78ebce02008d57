"""What every backbone keeps to, over one small member of each supported family."""

from __future__ import annotations

import copy

import pytest
import torch

from tlray.models.backbone import Backbone

# family: (timm name, input px, number of stages)
FAMILIES = {
    "builtin": ("resnet10t-nano", 64, 5),
    "resnet": ("resnet10t", 64, 5),
    "regnet": ("regnetx_002", 64, 5),
    "convnext": ("convnext_atto", 64, 5),
    "mobilenetv3": ("mobilenetv3_small_050", 64, 5),
    "mobilenetv4": ("mobilenetv4_conv_small_050", 64, 5),
    "efficientnet": ("test_efficientnet", 64, 6),
    "vit": ("test_vit", 32, 7),
    "dinov2": ("vit_small_patch14_reg4_dinov2", 28, 13),
    "eva02": ("eva02_tiny_patch14_224", 28, 13),
    "levit": ("levit_128s", 64, 4),
    "hrnet (no chain)": ("hrnet_w18_small", 64, 1),
}
SLOW = {
    "convnextv2": ("convnextv2_atto", 64, 5),
    "efficientnet_b0": ("efficientnet_b0", 64, 6),
    "mobileone": ("mobileone_s0", 64, 5),
    "repvgg": ("repvgg_a0", 64, 5),
    "densenet": ("densenet121", 64, 5),
    "vit_tiny": ("vit_tiny_patch16_224", 32, 13),
    "swin": ("swin_tiny_patch4_window7_224", 64, 5),
    "maxvit": ("maxvit_rmlp_pico_rw_256", 64, 5),
}
PARAMS = [
    *(pytest.param(member, id=name) for name, member in FAMILIES.items()),
    *(pytest.param(member, id=name, marks=pytest.mark.slow) for name, member in SLOW.items()),
]


@pytest.fixture(scope="module", params=PARAMS)
def family(request: pytest.FixtureRequest) -> tuple[Backbone, int, int]:
    name, size, num_stages = request.param
    torch.manual_seed(0)
    return Backbone(name, size=size).eval(), size, num_stages


def pictures(size: int, count: int = 2) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randint(0, 256, (count, 3, size, size), dtype=torch.uint8, generator=generator)


def test_stages_are_described(family):
    backbone, _, num_stages = family
    assert len(backbone.stages) == len(set(backbone.stages)) == num_stages
    assert len(backbone.channels) == len(backbone.strides) == num_stages
    assert num_stages == 1 or backbone.stages[0] == "stem"
    assert sorted(backbone.strides) == backbone.strides


@torch.no_grad()
def test_suffix_of_prefix_is_forward_bit_for_bit(family):
    backbone, size, num_stages = family
    x = pictures(size)
    expected = backbone.model.forward_features(backbone.normalize(x))
    assert torch.equal(backbone(x), expected)
    for depth in range(num_stages + 1):
        assert torch.equal(backbone.suffix(depth)(backbone.prefix(depth)(x)), expected), depth
    pooled = backbone.embed(expected)
    assert pooled.shape == (2, backbone.num_features)
    assert torch.equal(pooled, backbone.model.forward_head(expected, pre_logits=True))


@torch.no_grad()
def test_pyramid_gives_maps_of_the_declared_shape(family):
    backbone, size, _ = family
    if backbone.stages == ["all"] and not backbone.strides[0]:
        pytest.skip("its output is no map")
    maps = backbone.pyramid(pictures(size))
    for x_BCHW, channels, stride in zip(maps, backbone.channels, backbone.strides, strict=True):
        side = -(-size // stride)
        assert x_BCHW.shape == (2, channels, side, side)


def test_a_frozen_prefix_stays_bit_identical_in_training(family):
    backbone, size, num_stages = family
    backbone = copy.deepcopy(backbone)
    depth = backbone.freeze(0.6) if num_stages > 1 else backbone.freeze("all")
    assert backbone.frozen_depth == depth == max(1, round(0.6 * num_stages))
    backbone.train()
    frozen, before = backbone.prefix(depth), copy.deepcopy(backbone)
    head = torch.nn.Linear(backbone.num_features, 2)
    trained = [p for _, group in backbone.parameter_groups() for p in group.values()]
    optimizer = torch.optim.SGD([*trained, *head.parameters()], lr=0.1, momentum=0.9, weight_decay=0.1)
    outputs = head(backbone.embed(backbone(pictures(size, 2))))
    torch.nn.functional.cross_entropy(outputs, torch.tensor([0, 1])).backward()
    optimizer.step()
    old, new = before.prefix(depth).state_dict(), frozen.state_dict()
    assert old.keys() == new.keys() and all(torch.equal(old[k], new[k]) for k in old)
    assert all(p.grad is None for p in frozen.parameters())
    rest_old, rest_new = before.suffix(depth).state_dict(), backbone.suffix(depth).state_dict()
    assert depth == num_stages or any(not torch.equal(rest_old[k], rest_new[k]) for k in rest_old)
    names = {n for _, group in backbone.parameter_groups() for n in group}
    assert names == {n for n, p in backbone.named_parameters() if p.requires_grad}
    assert all(i >= depth for i, _ in backbone.parameter_groups())


def test_gradient_reaches_every_trained_stage_and_no_other(family):
    backbone, size, num_stages = family
    backbone = copy.deepcopy(backbone)
    backbone.freeze(depth := 1 if num_stages > 1 else 0)
    backbone.embed(backbone(pictures(size))).square().sum().backward()
    reached = {i for i, g in backbone.parameter_groups() if any(p.grad is not None for p in g.values())}
    assert reached == set(range(depth, num_stages))
    assert all(p.grad is None for p in backbone.prefix(depth).parameters())


def test_all_frozen_leaves_nothing_to_train_and_zero_thaws_everything(family):
    backbone, _, num_stages = family
    backbone = copy.deepcopy(backbone)
    whole = {n for _, g in backbone.parameter_groups() for n in g}
    assert backbone.freeze("all") == backbone.freeze(1.0) == num_stages
    assert list(backbone.parameter_groups()) == []
    assert not any(module.training for module in backbone.train().model.modules())
    assert backbone.freeze(backbone.stages[0]) == 1
    assert backbone.freeze(0) == 0
    assert {n for _, g in backbone.parameter_groups() for n in g} == whole
    assert all(module.training for module in backbone.train().model.modules())


def test_spec_rebuilds_the_same_backbone(family):
    backbone, size, _ = family
    other = Backbone.from_spec(backbone.spec()).eval()
    other.load_state_dict(backbone.state_dict())
    assert (other.stages, other.channels, other.strides) == (
        backbone.stages,
        backbone.channels,
        backbone.strides,
    )
    assert other.spec() == backbone.spec()
    with torch.no_grad():
        assert torch.equal(other(pictures(size)), backbone(pictures(size)))
