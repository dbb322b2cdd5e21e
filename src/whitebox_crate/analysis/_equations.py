"""The equations of layers and of what follows them, as the modules that run compute them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

from torch import nn

from .._hooks import constant_of
from ..layers import CBSA, ISTA, MHSA, MLP, MSSA, ODL, TSSA, DropPath, LayerScale
from ..layers.plain import oddity
from ..models import (
    ClassAttentionBlock,
    CrateMae,
    CrateMaeDecoderBlock,
    ImageTransformer,
)
from ..models._wrappers import unwrap
from ._known import DROPOUT, LAYERS, LINEAR, NORM, Kinds, unknown_note
from ._lines import (
    Line,
    Part,
    Symbols,
    drops_note,
    each,
    eps_note,
    ln,
    math_symbols,
    named,
    norm_symbols,
    number,
    softmax,
)
from ._tost import class_attention, token_statistics

Step: TypeAlias = tuple[list[Line], list[Line], Symbols]  # equations, notes, symbols


def layer(wrapped: nn.Module) -> Part:
    """One layer; names of parameters are those in the block."""
    block: Any = unwrap(wrapped)
    prefix = next(f"{name}." if name else "" for name, module in wrapped.named_modules() if module is block)
    if odd := oddity(block, *LAYERS):
        strange = [Line(f"Z' comes from {odd}, whose equations are not known here")]
    else:
        path: dict[str, Kinds] = {"drop_path": (DropPath,)} if hasattr(block, "drop_path") else {}
        strange = unknown_note("Z' comes from Z", block, path)
    if strange:
        return Part(type(block).__name__, (), tuple(strange), named(block, prefix, {}))
    if type(block) is ClassAttentionBlock:
        return class_attention(block, prefix)
    modules = list(LAYERS[type(block)].items())
    decodes = type(block) is CrateMaeDecoderBlock
    left_out = 0.0 if decodes else getattr(block.drop_path, "rate", 0.0)
    first: Callable[[Any, Any], Step] = _expansion if decodes else _compression
    second: Callable[[Any, Any], Step] = _removal if decodes else _coding
    equations: list[Line] = []
    notes: list[Line] = []
    symbols: dict[str, Line] = {}
    norms: dict[str, nn.Module] = {}
    middle = next((at for at, (name, _) in enumerate(modules) if name == "norm2"), len(modules))
    steps = [("1", "H comes from Z", first, modules[:middle]), ("2", "Z' comes from H", second, modules[middle:])]
    operators: list[str] = []
    for index, way, step, half in steps if modules[middle:] else steps[:1]:
        norm, operator = half[:2]
        operators.append(type(unwrap(getattr(block, operator[0]))).__name__)
        unknown = unknown_note(way, block, dict(half))
        if unknown:
            notes += unknown
            continue
        name = operator[0]
        own, constants, inner = step(block, unwrap(getattr(block, name)))
        equations += own
        notes += constants
        symbols |= norm_symbols(norm[0], index) | {f"{name}.{entry}": symbol for entry, symbol in inner.items()}
        symbols |= {f"ls{index}.gamma": Line(f"$s_{index}$")}
        norms[index] = getattr(block, norm[0])
    return Part(
        "MSSA taken away" if decodes else ", then ".join(operators),
        tuple(equations),
        (
            *notes,
            *([eps_note(**norms)] if norms else []),
            *drops_note((left_out, "of the samples in each residual branch")),
        ),
        named(block, prefix, symbols),
    )


def _compression(block: Any, attention: MSSA | MHSA | CBSA | TSSA) -> Step:
    """From Z to H (or to Z' if nothing follows)."""
    after = "H" if hasattr(block, "norm2") else "Z'"
    skip = ln("1", "Z") if getattr(block, "skip", "input") == "normalized" else "Z"
    heads, update, notes, symbols = _attention(attention, ln("1", "Z"))
    return [*heads, Line(f"{after} = {skip} + {_scaled(block, '1', update)}")], notes, symbols


def _scaled(block: Any, index: str, update: str) -> str:
    """The update of half a layer, with its LayerScale if there is one."""
    scaled = isinstance(unwrap(getattr(block, f"ls{index}", nn.Identity())), LayerScale)
    return rf"\operatorname{{diag}}(s_{index}) \Bigl( {update} \Bigr)" if scaled else update


def _expansion(_: Any, __: nn.Linear) -> Step:
    """From Z to H, in CRATE-MAE's decoder."""
    return [Line(r"H = A \, " + ln("1", "Z"))], [], math_symbols(weight="A")


def _removal(_: Any, mssa: MSSA) -> Step:
    """From H to Z', in CRATE-MAE's decoder."""
    heads, update, notes, symbols = _attention(mssa, ln("2", "H"))
    return [*heads, Line(rf"Z' = H - \Bigl( {update} \Bigr)")], notes, symbols


def _attention(attention: MSSA | MHSA | CBSA | TSSA, normed: str) -> tuple[list[Line], str, list[Line], Symbols]:
    """Equations before the sum over heads, the sum, notes, and symbols."""
    if isinstance(attention, CBSA):
        return _contraction_and_broadcast(attention, normed)
    if isinstance(attention, TSSA):
        return token_statistics(attention, normed)
    count, p = attention.num_heads, attention.head_dim
    notes = [Line(rf"$k = {each('', count)}$: heads of $p = {p}$ dimensions")]
    proj_drop: Any = attention.proj_drop
    notes += drops_note((attention.attn_drop, "of the entries of attention"), (proj_drop.p, "of what attention adds"))
    symbols = math_symbols(proj__weight=f"[{each('P_', count)}]", proj__bias="b")
    if isinstance(attention, MSSA):
        heads = [Line(rf"W_k = U_k^\top {normed}")]
        mixed = "W_k " + softmax(r"W_k^\top W_k")
        symbols |= math_symbols(qkv__weight=rf"[{each('U_', count)}]^\top")
        if attention.tied:
            return heads, rf"\sum_k U_k {mixed}", notes, symbols
        if not attention.projects:  # one head as wide as a token
            return heads, mixed, notes, symbols
    else:
        bias = attention.qkv.bias is not None
        heads = [
            Line(f"{name}_k = B^{name}_k {normed}" + (rf" + a^{name}_k \mathbf 1^\top" if bias else ""))
            for name in "QKV"
        ]
        mixed = "V_k " + softmax(r"K_k^\top Q_k")
        stacked = {letter: ", ".join(f"{letter}^{kind}_k" for kind in "QKV") for letter in "Ba"}
        symbols |= math_symbols(qkv__weight=stacked["B"], qkv__bias=stacked["a"])
    proj: Any = attention.proj
    bias = proj.bias is not None
    return heads, rf"\sum_k P_k {mixed}" + (r" + b \mathbf 1^\top" if bias else ""), notes, symbols


def _contraction_and_broadcast(cbsa: CBSA, normed: str) -> tuple[list[Line], str, list[Line], Symbols]:
    """See `_attention`."""
    count, (rows, columns) = cbsa.num_heads, cbsa.pool.representatives
    heads = [
        rf"W_k = U_k^\top {normed}",
        r"R^0_k = W_k Q^\top",
        "A_k = " + softmax(r"W_k^\top R^0_k"),
        r"R_k = R^0_k + \rho_k W_k A_k",
        "B_k = " + softmax(r"R_k^\top R_k"),
    ]
    where = f"$Q$ is fixed: it averages the grid to $m = {rows}$ x ${columns}$ representatives"
    if cbsa.pool.kind == "released":
        where += ", as if its first patch were column 0, [CLS], and without the last column"
    proj_drop: Any = cbsa.proj_drop
    notes = [
        Line(rf"$k = {each('', count)}$: heads of $p = {cbsa.head_dim}$ dimensions"),
        Line(where),
        *drops_note((proj_drop.p, "of what attention adds")),
    ]
    contracts, broadcasts = each(r"\rho_", count), each(r"\tau_", count)
    symbols = math_symbols(
        qkv__weight=rf"[{each('U_', count)}]^\top",
        step_rep=f"[{contracts}]",
        step_x=f"[{broadcasts}]",
        proj__weight=f"[{each('P_', count)}]",
        proj__bias="b",
    )
    return list(map(Line, heads)), r"\sum_k P_k \tau_k R_k B_k A_k^\top + b \mathbf 1^\top", notes, symbols


def _coding(block: Any, coder: ISTA | ODL | MLP) -> Step:
    """From H to Z'."""
    normed = Line("Y = " + ln("2", "H"))
    if isinstance(coder, MLP):
        update = r"F_2 \operatorname{GELU}(F_1 Y + f_1 \mathbf 1^\top) + f_2 \mathbf 1^\top"
        mlp = Line(rf"Z' = H + {_scaled(block, '2', update)}, \quad \operatorname{{GELU}}(x) = x \, \Phi(x)")
        drops = drops_note((coder.drop.p, "of the hidden entries, and of what the MLP adds"))
        return (
            [normed, mlp],
            drops,
            math_symbols(fc1__weight="F_1", fc1__bias="f_1", fc2__weight="F_2", fc2__bias="f_2"),
        )
    eta, weight = constant_of(coder, "step_size"), constant_of(coder, "sparsity")
    constants = Line(
        rf"$\eta = {number(eta)}$, $\lambda = {number(weight)}$, so $\eta \lambda = {number(eta * weight)}$"
    )
    if isinstance(coder, ODL):
        codes = (
            r"A_1 = \operatorname{ReLU}(\eta D^\top Y - \eta \lambda)",
            r"A_2 = \operatorname{ReLU}(A_1 + \eta D^\top (Y - D A_1) - \eta \lambda)",
            "Z' = H + C A_2",
        )
        return [normed, *map(Line, codes)], [constants], math_symbols(dictionary="D", decoder="C")
    step = r"Y + \eta D^\top (Y - D Y)"
    if coder.threshold == "soft":
        code = Line(
            rf"Z' = \operatorname{{soft}}({step}), \quad "
            r"\operatorname{soft}(x) = \operatorname{sign}(x) \max(\lvert x \rvert - \eta \lambda, 0)"
        )
    else:
        code = Line(rf"Z' = \operatorname{{ReLU}}({step} - \eta \lambda)")
    return [normed, code], [constants], math_symbols(dictionary="D")


_POOLS = {
    "token": (r"y = {} e_0 \quad \text{{([CLS])}}", "y = column 0 of {}"),
    "avg": (
        r"y = \tfrac{{1}}{{n - {prefix}}} \sum_{{i={prefix}}}^{{n-1}} {} e_i",
        "y = mean of the columns {prefix}, ..., n - 1 of {}",
    ),
    "mean": (r"y = \tfrac{{1}}{{n}} \sum_{{i=0}}^{{n-1}} {} e_i", "y = mean of all columns of {}"),
    "": (r"y = {} \quad \text{{(all columns)}}", "y = {}, all columns"),
}


def output(core: ImageTransformer) -> Part:
    """Norm, pooling, norm, head, in the order of `forward_head`. Identities are left out."""
    symbols = {
        **norm_symbols("norm", "c"),
        **norm_symbols("fc_norm", "c"),
        **math_symbols(head__weight="G", head__bias="g"),
    }
    own = named(core, "", symbols, only=symbols)
    norm: Kinds = (nn.LayerNorm, nn.Identity)
    parts: dict[str, Kinds] = {"norm": norm, "fc_norm": norm, "head_drop": DROPOUT, "head": (nn.Linear, nn.Identity)}
    unknown = unknown_note(f"{'logits' if core.num_classes else 'features'} come from Z", core, parts)
    if unknown:
        return Part("Output", (), tuple(unknown), own)
    before, after = isinstance(core.norm, nn.LayerNorm), isinstance(core.fc_norm, nn.LayerNorm)
    tokens, pooled = Line(ln("c", "Z") if before else "Z"), ln("c", "y") if after else "y"
    pool, plain = _POOLS[core.global_pool]
    prefix = core.num_prefix_tokens
    equations = [Line(pool.format(tokens.markdown, prefix=prefix), plain.format(tokens.text, prefix=prefix))]
    notes = [eps_note(c=core.norm if before else core.fc_norm)] if before or after else []
    if isinstance(core.head, nn.Linear):
        bias = " + g" if core.head.bias is not None else ""
        equations.append(Line(rf"\text{{logits}} = G \, {pooled}{bias}"))
        notes.append(Line(f"{core.num_classes} classes"))
    elif after:
        equations.append(Line(rf"\text{{features}} = {pooled}"))
    notes += drops_note((core.head_drop.p, "of what the head reads"))
    return Part("Output", tuple(equations), tuple(notes), own)


def masking(core: CrateMae) -> Part:
    """The change of T in `CrateMae.reconstruct`."""
    note = "with reconstruct alone, and before the positions: columns of T that stand for removed patches become m"
    own = named(core, "", math_symbols(mask_token="m"), only=["mask_token"])
    equation = Line(r"T e_i = m \quad \text{for each removed patch } i", "column i of T = m for each removed patch i")
    return Part("Masking", (equation,), (Line(note),), own)


def prediction(core: CrateMae) -> Part:
    """The end of CRATE-MAE's decoder."""
    symbols = {**norm_symbols("decoder_norm", "r"), **math_symbols(decoder_pred__weight="R", decoder_pred__bias="r")}
    own = named(core, "", symbols, only=symbols)
    unknown = unknown_note("X^ comes from Z", core, {"decoder_norm": NORM, "decoder_pred": LINEAR})
    if unknown:
        return Part("Prediction", (), tuple(unknown), own)
    target = ", each patch standardised" if core.norm_pix_loss else ""
    notes = (
        Line("the decoder begins with the Z of the last layer as Output normalises it; [CLS] is left out of X^"),
        Line(f"the loss is the mean squared error of removed patches{target}"),
        eps_note(r=core.decoder_norm),
    )
    return Part("Prediction", (Line(r"\hat X = R \, " + ln("r", "Z") + r" + r \mathbf 1^\top"),), notes, own)
