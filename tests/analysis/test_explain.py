import inspect
import re
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from small_models import small_model, small_options
from torch import nn

from whitebox_crate import (
    ImageTransformer,
    InputError,
    UnknownNameError,
    capture,
    create_model,
    list_models,
    model_entrypoint,
)
from whitebox_crate.analysis import explain, intervene
from whitebox_crate.layers import ISTA, MSSA, ODL
from whitebox_crate.models import Crate, CrateBlock

NAME = re.compile(r"(?<![\w.{])(?:[a-z]\w*(?:\.\{\d+\.\.\d+\}|\.\w+)*)(?![\w.}])")


def names_in(text: str, model: ImageTransformer) -> Counter[str]:
    """How often each entry of the state dict is named, with `blocks.{0..2}.x` for three of them."""
    counts: Counter[str] = Counter()
    known = model.state_dict()
    for word in NAME.findall(text):
        span = re.search(r"\{(\d+)\.\.(\d+)\}", word)
        layers = [""] if span is None else [str(i) for i in range(int(span[1]), int(span[2]) + 1)]
        for layer in layers:
            name = word if span is None else word.replace(span[0], layer)
            if name in known:
                counts[name] += 1
    return counts


@pytest.mark.parametrize("name", list_models())
def test_every_parameter_is_named_once_and_counted(name: str) -> None:
    model = small_model(name, depth=2)
    for text in (explain(model), explain(model, "markdown")):
        assert names_in(text, model) == Counter(dict.fromkeys(model.state_dict(), 1))
        total = sum(parameter.numel() for parameter in model.parameters())
        assert f"{name}: {total:,} parameters" in text.splitlines()[0]
        assert "not known here" not in text and "Other parameters" not in text
    rows = re.findall(
        r"^  \S.*?  +[\w.{}]+  +[\dx ]*?\d  +(?:(\d+) x )?([\d,]+)(?: fixed)?$", explain(model), flags=re.M
    )
    assert sum(int(times or 1) * int(count.replace(",", "")) for times, count in rows) == total


@pytest.mark.parametrize("name", ["crate_tiny_patch16_224", "crate_mae_tiny_patch16_224", "vit_tiny_patch16_224"])
@pytest.mark.parametrize("format", ["text", "markdown"])
def test_every_parameter_has_a_symbol_and_every_symbol_is_used(name: str, format: str) -> None:
    model = small_model(name)
    text = explain(model, format)  # type: ignore[arg-type]
    if format == "text":
        assert text.isascii() and not re.search(r"^   +[a-z_]+\.", text, flags=re.M)
    else:
        assert "|  |" not in text and text.count("$$") % 2 == 0 and text.count(r"\begin") == text.count(r"\end")
        assert text.count("{") == text.count("}")


@pytest.mark.parametrize("name", list_models())
def test_constants_are_those_of_the_modules(name: str) -> None:
    known = inspect.signature(model_entrypoint(name)).parameters
    constants = {"step_size": 0.375, "sparsity": 0.625}
    model = small_model(name, depth=1, **{key: value for key, value in constants.items() if key in known})
    text = explain(model)
    for module in model.blocks[0].modules():
        if isinstance(module, ISTA | ODL):
            assert f"eta = {module.step_size}, lambda = {module.sparsity}" in text
    norms = {"1": model.blocks[0].norm1, "c": model.norm}
    if hasattr(model.blocks[0], "norm2"):
        norms["2"] = model.blocks[0].norm2
    for index, norm in norms.items():
        assert f"eps of LN_{index} = {norm.eps:g}" in text
    assert f"k = 1, 2: heads of p = {model.blocks[0].attention.head_dim} dimensions" in text


def test_layers_that_are_alike_are_folded_and_others_are_not() -> None:
    model = small_model("crate_tiny_patch16_224", depth=5)
    assert "Layers 0 to 4: MSSA, then ISTA" in explain(model)
    with intervene(model, sparsity=0.5, layers=[2]):
        text = explain(model)
    assert re.findall(r"^Layers? .*:", text, flags=re.M) == ["Layers 0 to 1:", "Layer 2:", "Layers 3 to 4:"]
    assert "lambda = 0.5, so eta lambda = 0.05" in text
    assert names_in(text, model) == Counter(dict.fromkeys(model.state_dict(), 1))


VARIANTS = [
    ({"skip": "normalized"}, "H = LN_1(Z) + sum_k"),
    ({"threshold": "soft"}, "soft(x) = sign(x) max(|x| - eta lambda, 0)"),
    ({"global_pool": "avg"}, "y = mean of the columns 1, ..., n - 1 of Z\n    logits = G LN_c(y) + g"),
    ({"global_pool": "mean"}, "y = mean of all columns of Z\n"),
    ({"global_pool": ""}, "y = LN_c(Z), all columns"),
    ({"num_heads": 1}, "H = Z + W_k softmax"),
    ({"num_heads": 3}, "[P_1, ..., P_3]"),
    ({"proj": "tied"}, "H = Z + sum_k U_k W_k softmax(W_k^T W_k / sqrt(p))\n"),
    ({"dynamic_img_size": True}, "other sizes"),
    ({"num_classes": 0}, "y = column 0 of LN_c(Z)"),
]


@pytest.mark.parametrize(("options", "line"), VARIANTS)
def test_options_show(options: dict[str, object], line: str) -> None:
    model = small_model("crate_tiny_patch16_224", **options)
    text = explain(model)
    assert line in text
    assert line not in explain(small_model("crate_tiny_patch16_224")) or options == {"num_classes": 0}
    assert names_in(text, model) == Counter(dict.fromkeys(model.state_dict(), 1))
    assert ("logits" in text) == (options != {"num_classes": 0})


def test_the_equations_are_what_a_crate_layer_computes() -> None:
    model = small_model("crate_tiny_patch16_224", depth=1)
    block = model.blocks[0]
    text = explain(model)
    tokens = torch.randn(1, 7, 48)

    def norm(z: torch.Tensor, module: nn.LayerNorm) -> torch.Tensor:
        centred = z - z.mean(0)
        return module.weight[:, None] * centred / (z.var(0, correction=0) + module.eps).sqrt() + module.bias[:, None]

    assert "W_k = U_k^T LN_1(Z)" in text
    z, p = tokens[0].T, 24
    w = [u @ norm(z, block.norm1) for u in block.mssa.qkv.weight.split(p)]
    assert "H = Z + sum_k P_k W_k softmax(W_k^T W_k / sqrt(p)) + b 1^T" in text
    h = z + block.mssa.proj.bias[:, None]
    for one, out in zip(w, block.mssa.proj.weight.split(p, dim=1), strict=True):
        h = h + out @ one @ (one.T @ one / p**0.5).softmax(0)
    assert "Y = LN_2(H)" in text and "Z' = ReLU(Y + eta D^T (Y - D Y) - eta lambda)" in text
    y, d = norm(h, block.norm2), block.ista.dictionary
    assert torch.allclose(torch.relu(y + 0.1 * d.T @ (y - d @ y) - 0.1 * 0.1).T, block(tokens)[0], atol=1e-5)


def test_the_equations_are_what_a_tied_layer_of_attention_alone_computes() -> None:
    model = small_model("crate_attention_only", depth=1, proj="tied")
    text, block, z = explain(model), model.blocks[0], torch.randn(7, 48)
    assert "Layer 0: MSSA\n" in text and "LN_2" not in text and "H " not in text
    assert "W_k = U_k^T LN_1(Z)\n    Z' = Z + sum_k U_k W_k softmax(W_k^T W_k / sqrt(p))\n" in text
    expected, normed = z.T, block.norm1(z).T
    for u in block.mssa.qkv.weight.split(24):
        w = u @ normed
        expected = expected + u.T @ w @ (w.T @ w / 24**0.5).softmax(0)
    assert torch.allclose(expected.T, block(z[None])[0], atol=1e-5)


def test_the_equations_are_what_a_vit_layer_computes() -> None:
    model = small_model("vit_tiny_patch16_224", depth=1)
    block = model.blocks[0]
    text = explain(model)
    tokens = torch.randn(1, 7, 48)
    z = tokens[0].T
    normed = block.norm1(tokens)[0].T
    assert "Q_k = B^Q_k LN_1(Z) + a^Q_k 1^T" in text
    q, k, v = (
        b @ normed + a[:, None]
        for b, a in zip(block.attn.qkv.weight.chunk(3), block.attn.qkv.bias.chunk(3), strict=True)
    )
    assert "H = Z + sum_k P_k V_k softmax(K_k^T Q_k / sqrt(p)) + b 1^T" in text
    h = z + block.attn.proj.bias[:, None]
    for head, out in enumerate(block.attn.proj.weight.split(24, dim=1)):
        rows = slice(24 * head, 24 * (head + 1))
        h = h + out @ v[rows] @ (k[rows].T @ q[rows] / 24**0.5).softmax(0)
    assert "Z' = H + F_2 GELU(F_1 Y + f_1 1^T) + f_2 1^T" in text
    y = block.norm2(h.T).T
    inner = nn.functional.gelu(block.mlp.fc1.weight @ y + block.mlp.fc1.bias[:, None])
    assert torch.allclose(
        (h + block.mlp.fc2.weight @ inner + block.mlp.fc2.bias[:, None]).T, block(tokens)[0], atol=1e-5
    )


LATEX = {
    "crate_tiny_patch16_224": [
        r"& W_k = U_k^\top \operatorname{LN}_1(Z) \\",
        r"& H = Z + \sum_k P_k W_k \operatorname{softmax}\left( W_k^\top W_k / \sqrt p \right) + b \mathbf 1^\top \\",
        r"& Y = \operatorname{LN}_2(H) \\",
        r"& Z' = \operatorname{ReLU}(Y + \eta D^\top (Y - D Y) - \eta \lambda)",
    ],
    "vit_tiny_patch16_224": [
        r"& V_k = B^V_k \operatorname{LN}_1(Z) + a^V_k \mathbf 1^\top \\",
        r"& H = Z + \sum_k P_k V_k \operatorname{softmax}\left( K_k^\top Q_k / \sqrt p \right) + b \mathbf 1^\top \\",
    ],
    "crate_alpha_tiny_patch16_224": [
        r"& A_2 = \operatorname{ReLU}(A_1 + \eta D^\top (Y - D A_1) - \eta \lambda) \\",
        "& Z' = H + C A_2",
        r"- $\epsilon$ of $\operatorname{LN}_1$ = $10^{-6}$, $\epsilon$ of $\operatorname{LN}_2$ = $10^{-6}$",
    ],
}


@pytest.mark.parametrize("name", LATEX)
def test_latex_says_the_same(name: str) -> None:
    lines = explain(small_model(name), "markdown").splitlines()
    assert [line for line in LATEX[name] if line not in lines] == []


def test_a_model_without_weights_in_memory_is_explained() -> None:
    with torch.device("meta"):
        model = create_model("crate_base")
    assert "Layers 0 to 11" in explain(model) and "22.8" in f"{sum(p.numel() for p in model.parameters()) / 1e6:.1f}"


def test_compiled_pruned_and_decoderless_models_are_explained() -> None:
    model = small_model("crate_mae_tiny_patch16_224", decoder_depth=0)
    assert "Decoder" not in explain(model) and names_in(explain(model), model) == Counter(
        dict.fromkeys(model.state_dict(), 1)
    )
    model = small_model("crate_tiny_patch16_224")
    assert explain(torch.compile(model, backend="eager")) == explain(model)
    model.blocks[1] = torch.compile(model.blocks[1], backend="eager")
    assert "blocks.1._orig_mod.mssa.qkv.weight" in explain(model)
    assert names_in(explain(model), model) == Counter(dict.fromkeys(model.state_dict(), 1))
    features = create_model(
        "vit_tiny_patch16_224", **small_options("vit_tiny_patch16_224"), features_only=True, out_indices=[0]
    )
    assert "Layer 0: MHSA, then MLP" in explain(features) and "logits" not in explain(features)


class OwnBlock(CrateBlock):
    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return 2 * super().forward(tokens)


def test_what_is_not_known_is_not_made_up() -> None:
    model = small_model("crate_tiny_patch16_224")
    model.blocks[1] = OwnBlock(48, 2)
    model.extra = nn.Parameter(torch.ones(3))
    text = explain(model)
    assert "Z' comes from OwnBlock, whose equations are not known here" in text and "Other parameters" in text
    assert names_in(text, model) == Counter(dict.fromkeys(model.state_dict(), 1))
    assert MSSA.__name__ in text


def test_bad_input_is_told() -> None:
    with pytest.raises(UnknownNameError, match="did you mean 'markdown'"):
        explain(small_model("crate_tiny_patch16_224"), "Markdown")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="package"):
        explain(nn.Linear(2, 2))


def test_the_page_shows_what_is_printed() -> None:
    page = (Path(__file__).parents[2] / "docs" / "analysis.md").read_text(encoding="utf-8")
    shown = page.partition("```text\nLayers 0 to 5")[2].partition("```")[0]
    assert shown and f"Layers 0 to 5{shown}" in explain(create_model("crate_nano"))


class LoRA(nn.Linear):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x) + x


def replace(model: Any, name: str, module: nn.Module) -> None:
    holder, _, own = name.rpartition(".")
    setattr(model.get_submodule(holder), own, module)


REPLACED = [
    ("crate_nano", "blocks.1.ista", nn.Tanh(), "Z' comes from H", "ista is Tanh", "Y + eta D^T (Y - D Y)"),
    (
        "crate_nano",
        "blocks.1.ista",
        nn.Sequential(ISTA(48), nn.Tanh()),
        "Z' comes from H",
        "ista is Sequential",
        "ReLU",
    ),
    ("crate_nano", "blocks.1.norm2", nn.Identity(), "Z' comes from H", "norm2 is Identity", "LN_2(H)"),
    ("crate_nano", "blocks.1.norm1", nn.RMSNorm(48), "H comes from Z", "norm1 is RMSNorm", "LN_1(Z)"),
    ("crate_nano", "blocks.1.mssa.qkv", LoRA(48, 48), "H comes from Z", "mssa.qkv is LoRA", "W_k ="),
    ("crate_nano", "blocks.1.mssa.proj", nn.Tanh(), "H comes from Z", "mssa.proj is Tanh", "sum_k"),
    ("crate_nano", "blocks.1.mssa.proj", nn.Identity(), "H comes from Z", "mssa.proj is Identity", "softmax"),
    ("crate_tied", "blocks.1.mssa.proj", nn.Linear(48, 48), "H comes from Z", "mssa.proj is Linear", "sum_k"),
    ("crate_nano", "blocks.1.mssa.proj_drop", nn.Tanh(), "H comes from Z", "mssa.proj_drop is Tanh", "sum_k"),
    ("vit_nano", "blocks.1.mlp.drop", nn.Tanh(), "Z' comes from H", "mlp.drop is Tanh", "GELU"),
    ("vit_nano", "blocks.1.drop_path", nn.Tanh(), "Z' comes from Z", "drop_path is Tanh", "softmax"),
    ("crate_nano", "blocks.1.mssa", nn.Identity(), "H comes from Z", "mssa is Identity", "softmax"),
    ("vit_nano", "blocks.1.mlp.fc1", LoRA(48, 192), "Z' comes from H", "mlp.fc1 is LoRA", "GELU"),
    ("crate_alpha_tiny_patch16_224", "blocks.1.odl", ISTA(48), "Z' comes from H", "odl is ISTA", "A_1"),
    ("crate_mae_tiny_patch16_224", "decoder_blocks.1.linear", nn.Tanh(), "H comes from Z", "linear is Tanh", "A LN"),
]


@pytest.mark.parametrize(("name", "where", "module", "step", "said", "equation"), REPLACED)
def test_equations_are_those_of_the_modules_that_run(
    name: str, where: str, module: nn.Module, step: str, said: str, equation: str
) -> None:
    model = small_model(name)
    assert equation in explain(model)
    replace(model, where, module)
    what = "Decoder layer" if "decoder" in where else "Layer"
    for text in (explain(model), explain(model, "markdown")):
        layer = text.partition(f"{what} 1: ")[2].partition(f"{what} 2: ")[0]
        assert f"{step} through modules that are not known here: {said}" in layer and equation not in layer
        assert names_in(text, model) == Counter(dict.fromkeys(model.state_dict(), 1))


@pytest.mark.parametrize(
    ("where", "module", "said", "equation"),
    [
        ("patch_embed.proj", LoRA(108, 48), "T comes from X through", "T = LN_b"),
        ("norm", nn.RMSNorm(48), "logits come from Z through", "LN_c"),
        ("head_drop", nn.Tanh(), "logits come from Z through", "logits ="),
        ("patch_drop", nn.Tanh(), "Z comes from T through", "Z = [c"),
        ("head", nn.Sequential(nn.Linear(48, 5), nn.Tanh()), "logits come from Z through", "logits ="),
    ],
)
def test_the_ends_are_those_that_run_too(where: str, module: nn.Module, said: str, equation: str) -> None:
    model = small_model("crate_nano")
    assert equation in explain(model)
    replace(model, where, module)
    text = explain(model)
    assert f"{said} modules that are not known here: {where} is {type(module).__name__}" in text
    assert equation not in text


def test_hooks_and_exchanged_methods_are_no_equations_and_capture_is_nothing() -> None:
    model: Any = small_model("crate_nano")
    whole = explain(model)
    with capture(model, "tokens", "projections", "compressed", "output"):
        assert explain(model) == whole
    with intervene(model, mask_heads={1: [0]}):
        assert "mssa.proj is Linear with hooks" in explain(model)
    model.blocks[0].ista.forward = torch.tanh
    assert "ista is ISTA with another forward" in explain(model)
    model.blocks[2].register_forward_hook(lambda _, __, out: 2 * out)
    assert "Z' comes from CrateBlock with hooks, whose equations are not known here" in explain(model)


@pytest.mark.parametrize(
    ("name", "where", "method", "said", "equation"),
    [
        ("crate_nano", "ista", "_step", "ista is ISTA with another _step", "Y + eta D^T (Y - D Y)"),
        ("crate_nano", "mssa", "split_heads", "mssa is MSSA with another split_heads", "softmax"),
        ("crate_alpha_tiny_patch16_224", "odl", "encode", "odl is ODL with another encode", "A_1"),
    ],
)
def test_a_step_that_was_exchanged_in_one_module_is_no_equation(
    name: str, where: str, method: str, said: str, equation: str
) -> None:
    model: Any = small_model(name)
    setattr(getattr(model.blocks[1], where), method, torch.tanh)
    text = explain(model)
    layer = text.partition("Layer 1: ")[2].partition("Layer 2: ")[0]
    assert said in layer and equation not in layer and said not in text.partition("Layer 1: ")[0]


@pytest.mark.parametrize("method", ["forward", "_step"])
def test_a_step_that_was_exchanged_in_the_class_is_no_equation(method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ISTA, method, lambda self, x: torch.tanh(x))
    text = explain(small_model("crate_nano"))
    assert f"ista is ISTA with another {method}" in text and "Y + eta D^T (Y - D Y)" not in text


def test_another_threshold_is_another_equation() -> None:
    model: Any = small_model("crate_nano")
    model.blocks[1].ista.threshold = "soft"
    assert "Z' = soft(Y + eta D^T (Y - D Y))" in explain(model).partition("Layer 1: ")[2].partition("Layer 2: ")[0]


class OwnCrate(Crate):
    def forward_features(self, images: torch.Tensor) -> torch.Tensor:
        return super().forward_features(images).tanh()


def test_a_model_that_runs_its_parts_in_another_way_is_said_to() -> None:
    options = small_options("crate_nano")
    assert "The model as a whole" not in explain(Crate(patch_size=6, **options))
    assert "this model has its own forward_features:" in explain(OwnCrate(patch_size=6, **options))
    model: Any = small_model("crate_nano")
    model.forward_head = torch.tanh
    model.register_forward_hook(lambda *_: None)
    assert "this model has its own forward_head, hooks:" in explain(model)


def columns_normed(z: torch.Tensor, module: nn.LayerNorm) -> torch.Tensor:
    """LN, of columns."""
    centred = z - z.mean(0)
    return module.weight[:, None] * centred / (z.var(0, correction=0) + module.eps).sqrt() + module.bias[:, None]


def gelu(x: torch.Tensor) -> torch.Tensor:
    return x * (1 + torch.erf(x / 2**0.5)) / 2


@torch.no_grad()
def test_the_equations_are_what_tost_computes_from_patches_to_features() -> None:
    model = small_model("tost_tiny_12_patch8_224", depth=1, cls_attn_layers=1, num_classes=0).double()
    images, text = torch.randn(1, 3, *model.img_size, dtype=torch.float64), explain(model)
    rows, columns = model.grid_of(images)

    assert "Z = T + R S + r 1^T" in text
    assert "s_ij = [w(2 pi i / (H + 1e-06)); w(2 pi j / (W + 1e-06))]" in text
    assert "w_2m(x) = sin(x / 10000^(m / 16)), w_2m+1(x) = cos(x / 10000^(m / 16))" in text
    m = torch.arange(16, dtype=torch.float64)

    def w(x: float) -> torch.Tensor:
        angles = x / 10000 ** (m / 16)
        return torch.stack([angles.sin(), angles.cos()], dim=1).flatten()

    places = [(i, j) for i in range(1, rows + 1) for j in range(1, columns + 1)]
    s = [torch.cat([w(2 * torch.pi * i / (rows + 1e-6)), w(2 * torch.pi * j / (columns + 1e-6))]) for i, j in places]
    project = model.pos_embed.token_projection
    z = model.patch_embed(images)[0].T + project.weight[:, :, 0, 0] @ torch.stack(s, dim=1) + project.bias[:, None]

    [block], [last] = model.blocks, model.cls_attn_blocks
    p, tssa = 24, block.tssa
    for line in (
        "W_k = U_k^T LN_1(Z) + a_k 1^T",
        "(S_k)_cj = (W_k)_cj^2 / sum_i (W_k)_ci^2",
        "pi_k = exp(tau_k 1^T S_k) / sum_l exp(tau_l 1^T S_l)",
        "m_k = (W_k * W_k) pi_k^T / (pi_k 1 + 1e-08)",
        "D_k = diag(1 / (1 + m_k))",
        "H = Z + diag(s_1) (b 1^T - sum_k P_k D_k W_k diag(pi_k))",
        "Z' = H + diag(s_2) (F_2 GELU(F_1 Y + f_1 1^T) + f_2 1^T), GELU(x) = x Phi(x)",
    ):
        assert line in text
    y = columns_normed(z, block.norm1)
    heads = zip(tssa.qkv.weight.split(p), tssa.qkv.bias.split(p), tssa.temperature, strict=True)
    found = [(u @ y + a[:, None], tau) for u, a, tau in heads]
    weights = [(tau * (w_k**2 / (w_k**2).sum(1, keepdim=True)).sum(0)).exp() for w_k, tau in found]
    h = tssa.proj.bias[:, None].expand_as(z)
    for (w_k, _), weight, p_k in zip(found, weights, tssa.proj.weight.split(p, dim=1), strict=True):
        pi = weight / sum(weights)
        d_k = 1 / (1 + w_k**2 @ pi / (pi.sum() + 1e-8))
        h = h - p_k @ (d_k[:, None] * w_k * pi)
    h = z + block.ls1.gamma[:, None] * h

    def mlp(x: torch.Tensor, module: nn.Module) -> torch.Tensor:
        hidden = gelu(module.fc1.weight @ x + module.fc1.bias[:, None])
        return module.fc2.weight @ hidden + module.fc2.bias[:, None]

    z = h + block.ls2.gamma[:, None] * mlp(columns_normed(h, block.norm2), block.mlp)

    for line in (
        "Z' = [c, Z]",
        "Q_k = B^Q_k (column 0 of Y) + a^Q_k",
        "K_k = B^K_k Y + a^K_k 1^T",
        "H = Z + diag(s_1) [sum_k P_k V_k softmax(K_k^T Q_k / sqrt(p)) + b, Y_1:]",
        "X = LN_2(H)",
        "Z' = X + [diag(s_2) (F_2 GELU(F_1 (column 0 of X) + f_1) + f_2), X_1:], GELU(x) = x Phi(x)",
        "y = column 0 of LN_c(Z)",
    ):
        assert line in text
    z = torch.cat([model.cls_token[0].T, z], dim=1)
    y, attn = columns_normed(z, last.norm1), last.attn
    b_q, b_k, b_v = (part.split(p) for part in attn.qkv.weight.split(2 * p))
    a_q, a_k, a_v = (part.split(p) for part in attn.qkv.bias.split(2 * p))
    of_cls = attn.proj.bias[:, None]
    for k, p_k in enumerate(attn.proj.weight.split(p, dim=1)):
        query = b_q[k] @ y[:, :1] + a_q[k][:, None]
        keys, values = b_k[k] @ y + a_k[k][:, None], b_v[k] @ y + a_v[k][:, None]
        of_cls = of_cls + p_k @ values @ (keys.T @ query / p**0.5).softmax(0)
    h = z + last.ls1.gamma[:, None] * torch.cat([of_cls, y[:, 1:]], dim=1)
    x = columns_normed(h, last.norm2)
    z = x + torch.cat([last.ls2.gamma[:, None] * mlp(x[:, :1], last.mlp), x[:, 1:]], dim=1)
    torch.testing.assert_close(columns_normed(z, model.norm)[:, 0], model(images)[0], rtol=0, atol=1e-10)


def test_options_of_tost_show_and_exchanged_parts_are_named() -> None:
    model = small_model("tost_tiny_12_patch8_224", depth=2, qkv_bias=False, tokens_norm=False, attn_drop_rate=0.25)
    text = explain(model)
    assert "W_k = U_k^T LN_1(Z)\n" in text and "Q_k = B^Q_k (column 0 of Y)\n" in text
    assert "X = [LN_2(column 0 of H), H_1:]" in text
    assert "0.25 of the entries of D_k" in text and "0.25 of the entries of attention" in text
    model.blocks[1].tssa.attend = nn.Sigmoid()
    model.cls_attn_blocks[0].mlp = nn.Identity()
    model.pos_embed.token_projection = nn.Identity()
    text = explain(model)
    assert "H comes from Z through modules that are not known here: tssa.attend is Sigmoid" in text
    assert "Z' comes from Z through modules that are not known here: mlp is Identity" in text
    assert "Z comes from T through modules that are not known here: pos_embed.token_projection is Identity" in text
    assert re.findall(r"^Layers? (.*):", text, flags=re.M) == ["0", "1", "2", "3"]
