"""Names, sizes, channels, weights and messages; tests of all backbones are in tests/contract."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from tlray.errors import BundleError, ConfigError, StorageError
from tlray.models import weights
from tlray.models.backbone import Backbone, Normalize

NANO = Path(weights.__file__).parent / "backbones" / weights.BUILTIN["resnet10t-nano"].file


def one_line(raised: pytest.ExceptionInfo[BaseException]) -> str:
    text = str(raised.value)
    assert "\n" not in text
    return text


def same_features(a: Backbone, b: Backbone, x: torch.Tensor) -> bool:
    with torch.no_grad():
        return torch.equal(a.eval()(x), b.eval()(x))


@pytest.fixture(scope="module")
def nano() -> Backbone:
    return Backbone("resnet10t-nano", "builtin")


@pytest.fixture(scope="module")
def vit() -> Backbone:
    torch.manual_seed(0)
    return Backbone("test_vit", size=64)


@pytest.fixture
def x() -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8, generator=generator)


# ---- the model


def test_builtin_weights_load_whole(nano, x):
    file, state = load_file(NANO), nano.model.state_dict()
    assert {k for k in state if k not in file} == {k for k in state if k.endswith("num_batches_tracked")}
    assert all(torch.equal(state[k], v.float()) for k, v in file.items())
    assert all(v.dtype == torch.float32 for v in state.values() if v.is_floating_point())
    assert nano.stages == ["stem", "layer1", "layer2", "layer3", "layer4"]
    assert (nano.channels, nano.strides) == ([32, 32, 64, 160, 320], [4, 4, 8, 16, 32])
    assert nano.num_features == 320 and nano.data_config.size == nano.size == 64
    assert nano.interpolation == "bilinear"


def test_two_models_of_one_architecture_are_cut_apart(nano):
    assert Backbone("resnet10t").channels == [64, 64, 128, 256, 512] != nano.channels


def test_normalize_takes_bytes_and_floats_alike_and_keeps_the_memory_format(x):
    normalize = Normalize((0.5, 0.4, 0.3), (0.2, 0.3, 0.4))
    expected = (x / 255 - torch.tensor([0.5, 0.4, 0.3]).view(1, 3, 1, 1)) / torch.tensor(
        [0.2, 0.3, 0.4]
    ).view(1, 3, 1, 1)
    torch.testing.assert_close(normalize(x), expected)
    assert torch.equal(normalize(x), normalize(x.float()))
    last = normalize(x.contiguous(memory_format=torch.channels_last))
    assert last.is_contiguous(memory_format=torch.channels_last)
    assert normalize.state_dict() == {}


def test_mean_and_std_come_from_weights_settings_and_spec(nano):
    assert nano.mean == weights.IMAGENET_MEAN
    other = Backbone("resnet10t-nano", mean=(0.1, 0.2, 0.3), std=(1, 1, 1))
    again = Backbone.from_spec(other.spec())
    assert again.mean == (0.1, 0.2, 0.3) and torch.equal(again.normalize.mean, other.normalize.mean)
    with pytest.raises(ConfigError, match=r"input\.mean = .*accepted: 3 numbers"):
        Backbone("resnet10t-nano", mean=(0.5,))


def test_making_a_backbone_leaves_zero_gates_at_zero():
    gates = [p for n, p in Backbone("resnet10t").named_parameters() if n.endswith("bn2.weight")]
    assert gates and all(bool((p == 0).all()) for p in gates)  # the probe changes them and restores them


def test_dropout_on_the_embedding_works_at_every_depth(x):
    backbone = Backbone("resnet10t-nano", "builtin", drop_rate=0.5)
    backbone.freeze("all")
    features = backbone.train()(x)
    assert (backbone.embed(features) == 0).float().mean() > 0.3
    pooled = backbone.model.forward_head(features, pre_logits=True)
    assert torch.equal(backbone.eval().embed(features), pooled)


def test_stochastic_depth_is_a_setting_where_the_architecture_has_it():
    assert Backbone("resnet10t-nano", drop_path_rate=0.2).spec()["kwargs"]["drop_path_rate"] == 0.2
    with pytest.raises(ConfigError, match=r"model\.drop_path_rate = 0\.2 \(vgg11\): accepted: 0"):
        Backbone("vgg11", drop_path_rate=0.2)


def test_a_copied_suffix_trains_alone(nano, x):
    backbone = copy.deepcopy(nano)
    backbone.freeze("layer2")
    suffix = copy.deepcopy(backbone.suffix("layer2")).train()
    suffix(backbone.prefix("layer2")(x)).sum().backward()
    assert all(p.grad is not None for p in suffix.parameters())
    assert all(p.grad is None for p in backbone.parameters())


# ---- freeze depth


@pytest.mark.parametrize(
    ("depth", "number"),
    [(0, 0), (1, 1), (5, 5), (0.0, 0), (0.5, 3), (0.6, 3), (1.0, 5), ("stem", 1), ("layer3", 4), ("all", 5)],
)
def test_freeze_depths(nano, depth, number):
    assert nano.resolve(depth) == number


@pytest.mark.parametrize("depth", [-1, 6, 1.5, -0.1, float("nan"), "layer9", "", True])
def test_other_freeze_depths_are_refused_with_what_is_accepted(nano, depth):
    with pytest.raises(ConfigError) as raised:
        nano.freeze(depth)
    assert repr(depth) in one_line(raised)
    assert "accepted: 0 to 5, a fraction 0.0 to 1.0, 'all' or a stage: stem, layer1" in one_line(raised)


def test_stale_gradients_do_not_move_what_is_frozen_later(nano, x):
    backbone = copy.deepcopy(nano)
    optimizer = torch.optim.SGD(backbone.parameters(), lr=0.1, weight_decay=0.5, momentum=0.9)
    backbone.train()(x).sum().backward()
    optimizer.step()
    backbone.freeze("all")
    before = copy.deepcopy(backbone.state_dict())
    optimizer.step()
    assert all(torch.equal(v, before[k]) for k, v in backbone.state_dict().items())


def test_a_pyramid_of_tokens_leaves_class_tokens_out(vit, x):
    last = vit.pyramid(x, ["blocks.5"])[0]
    assert last.shape == (2, vit.channels[-1], 4, 4)
    with torch.no_grad():
        tokens = vit.eval()(x)
        maps = vit.pyramid(x, [0, -1])
    assert torch.equal(maps[1][:, :, 1, 2], tokens[:, vit.model.num_prefix_tokens + 6])
    with pytest.raises(ConfigError, match=r"stage 'blocks\.99'"):
        vit.pyramid(x, ["blocks.99"])


# ---- names and sizes


def test_an_unknown_name_names_the_nearest():
    with pytest.raises(ConfigError, match=r"model\.backbone = 'resnet81': unknown; did you mean 'resnet18'"):
        Backbone("resnet81")
    with pytest.raises(ConfigError, match=r"resnet18 has no weights 'a1_in2k'; did you mean 'a1_in1k'"):
        Backbone("resnet18.a1_in2k")


def test_a_size_that_cuts_a_patch_names_the_nearest_multiples():
    with pytest.raises(ConfigError) as raised:
        Backbone("test_vit", size=70)
    assert "input.size = 70 (test_vit): accepted: multiples of 16, such as 64 or 80" in one_line(raised)


def test_position_embeddings_are_resampled_to_the_size(vit, tmp_path, x):
    save_file(vit.model.state_dict(), tmp_path / "vit.safetensors")
    larger = Backbone("test_vit", str(tmp_path / "vit.safetensors"), size=96)
    assert larger.model.pos_embed.shape[1] > vit.model.pos_embed.shape[1]
    assert torch.equal(larger.model.blocks[0].attn.qkv.weight, vit.model.blocks[0].attn.qkv.weight)
    assert larger(torch.zeros(1, 3, 96, 96)).shape[1] == 36 + larger.model.num_prefix_tokens


@pytest.mark.parametrize(("in_chans", "scale"), [(1, None), (4, 0.75), (6, 0.5)])
def test_pretrained_weights_take_other_channel_counts(nano, in_chans, scale):
    other = Backbone("resnet10t-nano", "builtin", in_chans=in_chans)
    first, theirs = other.model.conv1[0].weight, nano.model.conv1[0].weight
    if scale is None:
        torch.testing.assert_close(first, theirs.sum(1, keepdim=True))
    else:
        torch.testing.assert_close(first[:, :3], theirs * scale)
    assert len(other.mean) == len(other.std) == in_chans
    assert other(torch.zeros(1, in_chans, 64, 64)).shape == (1, 320, 2, 2)


# ---- weights


def test_a_file_with_a_classifier_and_a_prefix_fits(nano, tmp_path, x):
    state = {f"backbone.model.{k}": v for k, v in nano.model.state_dict().items()}
    save_file({**state, "head.weight": torch.zeros(10, 320)}, tmp_path / "a.safetensors")
    assert same_features(Backbone("resnet10t-nano", str(tmp_path / "a.safetensors")), nano, x)
    state = {**nano.model.state_dict(), "fc.weight": torch.zeros(10, 320), "fc.bias": torch.zeros(10)}
    save_file(state, tmp_path / "b.safetensors")
    assert same_features(Backbone("resnet10t-nano", str(tmp_path / "b.safetensors")), nano, x)


def test_weights_that_do_not_fit_say_what_and_why(nano, tmp_path):
    state = nano.model.state_dict()
    del state["bn1.weight"], state["bn1.bias"]
    state["conv1.0.weight"] = torch.zeros(8, 3, 5, 5)
    state["extra.weight"] = torch.zeros(1)
    save_file(state, tmp_path / "a.safetensors")
    with pytest.raises(ConfigError) as raised:
        Backbone("resnet10t-nano", str(tmp_path / "a.safetensors"))
    text = one_line(raised)
    assert "2 tensors missing (first: bn1.weight)" in text
    assert "1 not expected (first: extra.weight)" in text
    assert "1 of another shape (first: conv1.0.weight is (8, 3, 5, 5), the model has (12, 3, 3, 3))" in text
    with pytest.raises(ConfigError, match="tensors missing"):
        Backbone("test_vit", str(NANO))


def test_a_pickle_is_refused_by_name_and_by_content(tmp_path):
    torch.save({"a": torch.zeros(1)}, tmp_path / "zip.safetensors")
    (tmp_path / "raw.safetensors").write_bytes(pickle.dumps({"a": 1}))
    for name in ("weights.pth", "weights.bin", "s3://bucket/weights.pt"):
        with pytest.raises(BundleError, match="a pickle can run code"):
            Backbone("resnet10t-nano", name)
    for name in ("zip", "raw"):
        with pytest.raises(BundleError, match="holds a pickle"):
            Backbone("resnet10t-nano", str(tmp_path / f"{name}.safetensors"))


def test_damaged_and_missing_files_say_so(tmp_path):
    (tmp_path / "half.safetensors").write_bytes(NANO.read_bytes()[:100_000])
    with pytest.raises(BundleError, match="no whole safetensors file") as raised:
        Backbone("resnet10t-nano", str(tmp_path / "half.safetensors"))
    one_line(raised)
    with pytest.raises(StorageError, match="not found"):
        Backbone("resnet10t-nano", str(tmp_path / "none.safetensors"))


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("resnet18", "builtin", "model.backbone = 'resnet18' has none"),
        ("resnet10t-nano", "timm", "accepted: builtin or none"),
        ("resnet10t-nano", "imagenet", "accepted: builtin, timm, none"),
        ("resnet18", "hf-hub:resnet18", "accepted: hf-hub:OWNER/NAME"),
    ],
)
def test_other_values_of_weights_are_refused(name, value, message):
    with pytest.raises(ConfigError) as raised:
        Backbone(name, value)
    assert message in one_line(raised) and repr(value) in one_line(raised)


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """A hub with the files of the returned table: (repository, file) -> path."""
    import huggingface_hub
    from huggingface_hub.errors import EntryNotFoundError

    files: dict[tuple[str, str], Path] = {}

    def download(repository, filename, revision=None, **_):
        if not files:
            raise ConnectionError("no route to host")
        if (repository, filename) not in files:
            raise EntryNotFoundError(filename)
        return str(files[repository, filename])

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    return files


def test_timm_weights_come_from_the_hub(hub, tmp_path, x):
    source = Backbone("resnet18")
    save_file(
        {**source.model.state_dict(), "fc.weight": torch.zeros(1000, 512), "fc.bias": torch.zeros(1000)},
        tmp_path / "w.safetensors",
    )
    hub["timm/resnet18.a1_in1k", "model.safetensors"] = tmp_path / "w.safetensors"
    backbone = Backbone("resnet18", "timm")
    assert same_features(backbone, source, x)
    assert (backbone.size, backbone.interpolation, backbone.mean) == (224, "bicubic", weights.IMAGENET_MEAN)
    hub.clear()
    hub["other/repository", "x"] = tmp_path
    with pytest.raises(StorageError, match=r"has no \.safetensors file"):
        Backbone("resnet18", "timm")


def test_without_a_network_one_line_says_what_works(hub):
    for value in ("timm", "hf-hub:timm/resnet18.a1_in1k"):  # the second fails at its config.json
        with pytest.raises(StorageError) as raised:
            Backbone("resnet18", value)
        assert "could not be downloaded" in one_line(raised)
        assert "these work without a network: builtin (with backbone resnet10t-nano)" in one_line(raised)


# ---- real pictures


@pytest.mark.realdata
def test_builtin_features_tell_real_clothes_apart(nano, realdata):
    from PIL import Image

    def features(backbone: Backbone, split: str, per_class: int) -> tuple[torch.Tensor, torch.Tensor]:
        pictures, labels = [], []
        for label, folder in enumerate(sorted((realdata / "clothing" / split).iterdir())):
            for path in sorted(folder.glob("*.jpg"))[:per_class]:
                with Image.open(path) as picture:
                    square = picture.convert("RGB").resize((64, 64), Image.Resampling.BILINEAR)
                pixels = torch.frombuffer(bytearray(square.tobytes()), dtype=torch.uint8)
                pictures.append(pixels.view(64, 64, 3))
                labels.append(label)
        with torch.no_grad():
            backbone.eval()
            chunks = torch.stack(pictures).permute(0, 3, 1, 2).split(128)
            z = torch.cat([backbone.embed(backbone(x_BCHW)) for x_BCHW in chunks])
        return torch.nn.functional.normalize(z, dim=1), torch.tensor(labels)

    def accuracy(backbone: Backbone) -> float:
        z, y = features(backbone, "train", 60)
        centres = torch.stack([z[y == c].mean(0) for c in range(10)])
        z, y = features(backbone, "test", 1000)
        return float(((z @ torch.nn.functional.normalize(centres, dim=1).T).argmax(1) == y).float().mean())

    torch.manual_seed(0)
    pretrained, random = accuracy(nano), accuracy(Backbone("resnet10t-nano"))
    # With all training pictures: 0.49, random weights 0.09 to 0.13 (nearest mean, 10 classes).
    assert pretrained > 0.35 and pretrained > random + 0.15, (pretrained, random)
