"""ToST is the released code: states and logits of golden cases, and in float64 a literal form of its equations."""

from itertools import pairwise
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from golden_data import Case, load_case
from torch import Tensor

from whitebox_crate import capture, create_model, list_models
from whitebox_crate.convert.rename import convert_state_dict
from whitebox_crate.errors import InputError, UnknownNameError
from whitebox_crate.models import ToST

CASES = ["tost_p8", "tost_p16", "tost_small_scale", "tost_cls_norm_only"]
TOKENS_IN, PATCHES = "output/tokens_in", "output/patch_tokens"


def tost_of(case: Case, **options: Any) -> ToST:
    kwargs = {"init_values" if key == "eta" else key: value for key, value in case.kwargs.items()}
    size = kwargs.pop("img_size")
    model = ToST(img_size=tuple(size) if isinstance(size, list) else size, **kwargs, **options).eval()
    model.load_state_dict(convert_state_dict(case.group("state")))
    return model


def close(have: Tensor, want: Tensor) -> None:
    """Within 1e-5 in float32, within 1e-10 in float64."""
    torch.testing.assert_close(have, want, rtol=0, atol=1e-10 if want.dtype == torch.float64 else 1e-5)


@pytest.mark.parametrize("name", CASES)
@torch.no_grad()
def test_all_states_are_those_of_the_released_code(name: str) -> None:
    case = load_case(name)
    model, images = tost_of(case), case["input/img"]
    close(model.patch_embed(images), case[PATCHES])
    positions = case["output/pos_encoding"].flatten(2).mT
    close(model.pos_embed(model.grid_of(images)).expand_as(positions), positions)
    tssa: list[Tensor] = []
    for block in model.blocks:
        block.tssa.register_forward_hook(lambda _, __, out: tssa.append(out))
    with (
        capture(model, "tokens", "output") as every,
        capture(model, "projections", "membership") as of_blocks,
        capture(model, "attention") as of_cls,
    ):
        logits = model(images)
    close(logits, case["output/logits"])
    close(every["tokens", 0], case[TOKENS_IN])
    for layer in range(len(model.blocks)):
        close(tssa[layer], case[f"output/block{layer}.tssa"])
        close(every["output", layer], case[f"output/block{layer}.tokens"])
        close(of_blocks["membership", layer], case[f"output/block{layer}.pi"])
        close(of_blocks["projections", layer].transpose(1, 2).flatten(2), case[f"output/block{layer}.qkv"])
    for index in range(2):
        layer = len(model.blocks) + index
        close(of_cls["attention", layer][:, :, 0], case[f"output/cls_block{index}.attn"])
        close(every["output", layer], case[f"output/cls_block{index}.tokens"])


class Literal:
    """The equations as the released code has them, on its own names; in training the batch normalises itself."""

    def __init__(self, case: Case, training: bool) -> None:
        self.kwargs, self.training = case.kwargs, training
        self.state = {
            name: value.double().requires_grad_(training) if value.is_floating_point() else value
            for name, value in case.group("state").items()
        }
        self.buffers = {name: value.detach().clone() for name, value in self.state.items() if "running" in name}

    def linear(self, name: str, x: Tensor) -> Tensor:
        return F.linear(x, self.state[f"{name}.weight"], self.state.get(f"{name}.bias"))

    def norm(self, name: str, x: Tensor) -> Tensor:
        return F.layer_norm(x, x.shape[-1:], self.state[f"{name}.weight"], self.state[f"{name}.bias"], 1e-6)

    def mlp(self, name: str, x: Tensor) -> Tensor:
        return self.linear(f"{name}.fc2", F.gelu(self.linear(f"{name}.fc1", x)))

    def stem(self, x: Tensor) -> Tensor:
        for index in range(0, 8 if self.kwargs["patch_size"] == 16 else 6, 2):
            x = F.gelu(x) if index else x
            x = F.conv2d(x, self.state[f"patch_embed.proj.{index}.0.weight"], stride=2, padding=1)
            norm = f"patch_embed.proj.{index}.1"
            moving = (self.buffers[f"{norm}.running_mean"], self.buffers[f"{norm}.running_var"])
            scale, shift = self.state[f"{norm}.weight"], self.state[f"{norm}.bias"]
            x = F.batch_norm(x, *moving, scale, shift, training=self.training)
        return x

    def positions(self, rows: int, columns: int) -> Tensor:
        frequencies = 10000 ** (2 * (torch.arange(32) // 2).double() / 32)

        def along(side: int) -> Tensor:
            angles = torch.arange(1, side + 1).double()[:, None] / (side + 1e-6) * 2 * torch.pi / frequencies
            return torch.stack([angles[:, 0::2].sin(), angles[:, 1::2].cos()], dim=2).flatten(1)

        y, x = along(rows)[:, None].expand(-1, columns, -1), along(columns)[None].expand(rows, -1, -1)
        weight = self.state["pos_embeder.token_projection.weight"][:, :, 0, 0]
        return torch.cat([y, x], dim=2) @ weight.T + self.state["pos_embeder.token_projection.bias"]

    def tssa(self, name: str, x: Tensor) -> Tensor:
        heads = self.kwargs["num_heads"]
        w = self.linear(f"{name}.qkv", x).unflatten(2, (heads, -1)).transpose(1, 2)
        logits = (F.normalize(w, dim=-2) ** 2).sum(-1) * self.state[f"{name}.temp"]
        pi = logits.softmax(dim=1)
        m = (pi / (pi.sum(-1, keepdim=True) + 1e-8)).unsqueeze(-2) @ w**2
        out = -(w * pi[..., None]) / (1 + m)
        return self.linear(f"{name}.to_out.0", out.transpose(1, 2).flatten(2))

    def class_attention(self, name: str, x: Tensor) -> Tensor:
        heads = self.kwargs["num_heads"]
        q, k, v = self.linear(f"{name}.qkv", x).unflatten(2, (3, heads, -1)).permute(2, 0, 3, 1, 4)
        attention = (q[:, :, :1] @ k.mT * q.shape[-1] ** -0.5).softmax(-1)
        return self.linear(f"{name}.proj", (attention @ v).transpose(1, 2).flatten(2))

    def __call__(self, images: Tensor) -> Tensor:
        features = self.stem(images)
        x = features.flatten(2).mT + self.positions(*features.shape[2:]).flatten(0, 1)
        for index in range(self.kwargs["depth"]):
            name = f"blocks.{index}"
            x = x + self.state[f"{name}.gamma1"] * self.tssa(f"{name}.attn", self.norm(f"{name}.norm1", x))
            x = x + self.state[f"{name}.gamma2"] * self.mlp(f"{name}.mlp", self.norm(f"{name}.norm2", x))
        x = torch.cat([self.state["cls_token"].expand(len(x), -1, -1), x], dim=1)
        for index in range(2):
            name = f"cls_attn_blocks.{index}"
            z = self.norm(f"{name}.norm1", x)
            x = x + self.state[f"{name}.gamma1"] * torch.cat([self.class_attention(f"{name}.attn", z), z[:, 1:]], dim=1)
            normed = self.norm(f"{name}.norm2", x)
            x = normed if self.kwargs["tokens_norm"] else torch.cat([normed[:, :1], x[:, 1:]], dim=1)
            coded = self.state[f"{name}.gamma2"] * self.mlp(f"{name}.mlp", x[:, :1])
            x = x + torch.cat([coded, x[:, 1:]], dim=1)
        return self.linear("head", self.norm("norm", x)[:, 0])


@pytest.mark.parametrize("name", CASES)
@torch.no_grad()
def test_logits_are_those_of_the_literal_form_in_float64(name: str) -> None:
    case = load_case(name)
    images = case["input/img"].double()
    expected = Literal(case, training=False)(images)
    close(expected.float(), case["output/logits"])
    close(tost_of(case).double()(images), expected)


@pytest.mark.parametrize("name", CASES)
def test_a_training_step_is_that_of_the_literal_form_in_float64(name: str) -> None:
    case = load_case(name)
    images, labels = case["input/img"].double(), torch.tensor([3, 1])
    literal, model = Literal(case, training=True), tost_of(case).double().train()
    logits = model(images)
    assert isinstance(logits, Tensor)  # once: the released code gives them twice
    close(logits, literal(images))
    F.cross_entropy(logits, labels).backward()
    F.cross_entropy(literal(images), labels).backward()
    gradients = {name: value.grad for name, value in literal.state.items() if value.grad is not None}
    theirs = convert_state_dict(gradients)
    ours = {name: parameter.grad for name, parameter in model.named_parameters()}
    assert ours.keys() == theirs.keys()
    for key, gradient in ours.items():
        assert gradient is not None, key
        close(gradient, theirs[key])
    once = Literal(case, training=True)
    once(images)
    for key, value in once.buffers.items():
        close(model.get_buffer(key), value)
        assert not torch.equal(value, case[f"state/{key}"].double()), key


@torch.no_grad()
def test_cls_joins_after_the_blocks_and_is_not_seen_by_them() -> None:
    case = load_case("tost_p8")
    model, images = tost_of(case), case["input/img"]
    maps, tokens = model.forward_intermediates(images), model.forward_features(images)
    model.cls_token += torch.randn(24)
    changed = model.forward_intermediates(images)
    assert all(torch.equal(a, b) for a, b in zip(maps[1], changed[1], strict=True))
    assert not torch.allclose(changed[0][:, 0], tokens[:, 0])
    assert torch.equal(changed[0][:, 1:], tokens[:, 1:])
    assert tokens.shape == (2, 17, 24)
    assert model.embed(images).shape == (2, 16, 24)


@torch.no_grad()
def test_positions_are_of_the_grid_and_the_same_for_all_models_of_it() -> None:
    case = load_case("tost_p8")
    model = tost_of(case, dynamic_img_size=True)
    wide = torch.randn(1, 3, 24, 56)
    out = model(wide)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    model.set_input_size((24, 56))
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    model.patch_embed.dynamic_img_size = False
    assert torch.equal(model(wide), out)


def test_states_of_other_layers_are_refused_with_those_that_there_are() -> None:
    model = tost_of(load_case("tost_p8"))
    for state, layer in (("attention", 0), ("membership", -1), ("statistics", 2)):
        with pytest.raises(UnknownNameError, match="projections"), capture(model, state, layers=[layer]):
            pass
    with capture(model, "attention") as trace:
        assert trace.layers == (2, 3)
    with capture(model, "membership", "statistics") as trace:
        assert trace.layers == (0, 1)


def test_gradients_of_logits_reach_membership_and_statistics() -> None:
    case = load_case("tost_p8")
    model = tost_of(case)
    with capture(model, "membership", "statistics", "projections") as trace:
        logits = model(case["input/img"])
    states = [trace[state, layer] for state in trace.states for layer in trace.layers]
    for gradient in torch.autograd.grad(logits.square().sum(), states):
        assert gradient.any()


def test_it_needs_a_layer_of_class_attention() -> None:
    with pytest.raises(InputError, match="cls_attn_layers"):
        ToST(img_size=32, patch_size=8, embed_dim=24, depth=1, num_heads=3, cls_attn_layers=0)


@pytest.mark.parametrize("init_values", [1.0, 1e-5])
def test_it_begins_as_released(init_values: float) -> None:
    torch.manual_seed(0)
    model = ToST(img_size=32, embed_dim=192, depth=2, num_heads=4, init_values=init_values)
    for name, value in model.named_parameters():
        if name.endswith(("ls1.gamma", "ls2.gamma")):
            assert (value == init_values).all(), name
        elif name.endswith("temperature") or ".norm" in name or name.startswith("norm."):
            assert (value == (1 if name.endswith(("weight", "temperature")) else 0)).all(), name
        elif not name.startswith(("patch_embed", "pos_embed")):
            assert not value.any() if name.endswith("bias") else 0.017 < value.std() < 0.023, name
    bound = 64**-0.5  # PyTorch's of a convolution that reads 64 numbers
    assert model.pos_embed.token_projection.weight.abs().max() <= bound
    assert model.pos_embed.token_projection.weight.std() > bound / 2


@pytest.mark.parametrize("name", list_models("tost_*_patch8_224"))
def test_at_patch_8_the_stem_has_three_convolutions_of_other_widths(name: str) -> None:
    """Those of patch 16 are counted in the released code; here the difference is that of the two stems."""
    with torch.device("meta"):
        eight, sixteen = (create_model(named) for named in (name, name.replace("patch8", "patch16")))
    widths = {4: (3, 8, 4, 2, 1), 3: (3, 4, 2, 1)}
    dim = eight.embed_dim

    def stem(channels: tuple[int, ...]) -> int:
        real = [channels[0], *(dim // share for share in channels[1:])]
        return sum(9 * before * after + 2 * after for before, after in pairwise(real))

    counts = [sum(parameter.numel() for parameter in model.parameters()) for model in (eight, sixteen)]
    assert counts[1] - counts[0] == stem(widths[4]) - stem(widths[3])


def test_all_layers_leave_out_as_many_samples() -> None:
    model = ToST(img_size=32, patch_size=8, embed_dim=24, depth=3, num_heads=3, drop_path_rate=0.05)
    assert [block.drop_path.rate for block in model.blocks] == [0.05] * 3
