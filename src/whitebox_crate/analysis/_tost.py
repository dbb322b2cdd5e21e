"""The equations of ToST: Fourier positions, token statistics, and class attention with [CLS]."""

from __future__ import annotations

from typing import Any

from ..layers import TSSA
from ..layers.pos_embed import FREQUENCIES
from ..models import ClassAttentionBlock, ToST
from ._known import LAYERS, unknown_note
from ._lines import Line, Part, Symbols, drops_note, each, eps_note, ln, math_symbols, named, norm_symbols, softmax


def fourier_positions() -> tuple[list[Line], list[Line], Symbols]:
    """T to the Z of the first layer: equations, notes and symbols."""
    half = FREQUENCIES // 2
    waves = (
        rf"w_{{2m}}(x) = \sin(x / 10000^{{m / {half}}}), \; w_{{2m+1}}(x) = \cos(x / 10000^{{m / {half}}})",
        f"w_2m(x) = sin(x / 10000^(m / {half})), w_2m+1(x) = cos(x / 10000^(m / {half}))",
    )
    column = (
        r"s_{ij} = [w(2 \pi i / (H + 10^{-6})); \; w(2 \pi j / (W + 10^{-6}))]",
        "s_ij = [w(2 pi i / (H + 1e-06)); w(2 pi j / (W + 1e-06))]",
    )
    notes = [
        Line(
            f"$S$ has a column $s_{{ij}}$ for row $i$ of $H$ and column $j$ of $W$ of the grid, counted from 1; "
            f"$m = 0, \\dots, {half - 1}$",
            f"S has a column s_ij for row i of H and column j of W of the grid, counted from 1; m = 0, ..., {half - 1}",
        )
    ]
    symbols = math_symbols(pos_embed__token_projection__weight="R", pos_embed__token_projection__bias="r")
    return [Line(r"Z = T + R S + r \mathbf 1^\top"), Line(*column), Line(*waves)], notes, symbols


def token_statistics(tssa: TSSA, normed: str) -> tuple[list[Line], str, list[Line], Symbols]:
    """Equations before the sum over heads, the sum, notes, and symbols."""
    count, proj_drop = tssa.num_heads, tssa.proj_drop
    bias = r" + a_k \mathbf 1^\top" if tssa.qkv.bias is not None else ""
    heads = [
        Line(rf"W_k = U_k^\top {normed}{bias}"),
        Line(
            r"(S_k)_{cj} = (W_k)_{cj}^2 / \textstyle\sum_i (W_k)_{ci}^2",
            "(S_k)_cj = (W_k)_cj^2 / sum_i (W_k)_ci^2",
        ),
        Line(
            r"\pi_k = \exp(\tau_k \mathbf 1^\top S_k) / \textstyle\sum_l \exp(\tau_l \mathbf 1^\top S_l)",
            "pi_k = exp(tau_k 1^T S_k) / sum_l exp(tau_l 1^T S_l)",
        ),
        Line(
            r"m_k = (W_k \odot W_k) \pi_k^\top / (\pi_k \mathbf 1 + 10^{-8})",
            "m_k = (W_k * W_k) pi_k^T / (pi_k 1 + 1e-08)",
        ),
        Line(r"D_k = \operatorname{diag}(1 / (1 + m_k))"),
    ]
    notes = [
        Line(rf"$k = {each('', count)}$: heads of $p = {tssa.head_dim}$ dimensions"),
        Line(r"$\pi_k$ is a row: how much each token belongs to head $k$; exp and 1 / (1 + m) are of each entry"),
        *drops_note((tssa.attn_drop.p, r"of the entries of $D_k$"), (proj_drop.p, "of what attention adds")),
    ]
    symbols = math_symbols(
        qkv__weight=rf"[{each('U_', count)}]^\top",
        qkv__bias=each("a_", count),
        temperature=each(r"\tau_", count),
        proj__weight=f"[{each('P_', count)}]",
        proj__bias="b",
    )
    return heads, r"b \mathbf 1^\top - \sum_k P_k D_k W_k \operatorname{diag}(\pi_k)", notes, symbols


def joining(core: ToST) -> Part:
    """[CLS] joins the patches."""
    own = named(core, "", math_symbols(cls_token="c"), only=["cls_token"])
    return Part(
        "[CLS]", (Line(r"Z' = [c, \; Z]"),), (Line("[CLS] joins the patches, and class attention follows"),), own
    )


def class_attention(block: ClassAttentionBlock, prefix: str) -> Part:
    """A layer in which only [CLS] attends, to all tokens. Names of parameters start with the prefix."""
    parts = LAYERS[ClassAttentionBlock]
    if unknown := unknown_note("Z' comes from Z", block, parts):
        return Part("ClassAttention", (), tuple(unknown), named(block, prefix, {}))
    attention: Any = block.attn
    count, biased = attention.num_heads, attention.qkv.bias is not None

    def projected(kind: str, of: str, ones: str) -> str:
        return f"{kind}_k = B^{kind}_k {of}" + (rf" + a^{kind}_k{ones}" if biased else "")

    alone = r"[\operatorname{LN}_2(H e_0), \; H_{1:}]", "[LN_2(column 0 of H), H_1:]"
    coded = r"F_2 \operatorname{GELU}(F_1 X e_0 + f_1) + f_2"
    equations = (
        Line("Y = " + ln("1", "Z")),
        Line(projected("Q", "Y e_0", ""), projected("Q", "(column 0 of Y)", "")),
        *(Line(projected(kind, "Y", r" \mathbf 1^\top"), projected(kind, "Y", " 1^T")) for kind in "KV"),
        Line(
            r"H = Z + \operatorname{diag}(s_1) \Bigl[ \textstyle\sum_k P_k V_k "
            + softmax(r"K_k^\top Q_k")
            + r" + b, \; Y_{1:} \Bigr]",
            "H = Z + diag(s_1) [sum_k P_k V_k softmax(K_k^T Q_k / sqrt(p)) + b, Y_1:]",
        ),
        Line("X = " + ln("2", "H")) if block.tokens_norm else Line(f"X = {alone[0]}", f"X = {alone[1]}"),
        Line(
            rf"Z' = X + \Bigl[ \operatorname{{diag}}(s_2) ({coded}), \; X_{{1:}} \Bigr], "
            r"\quad \operatorname{GELU}(x) = x \, \Phi(x)",
            "Z' = X + [diag(s_2) (F_2 GELU(F_1 (column 0 of X) + f_1) + f_2), X_1:], GELU(x) = x Phi(x)",
        ),
    )
    drops = (attention.attn_drop, "of the entries of attention"), (attention.proj_drop.p, "of what attention adds")
    notes = (
        Line(rf"$k = {each('', count)}$: heads of $p = {attention.head_dim}$ dimensions"),
        Line(
            "$Y_{1:}$ are the columns of $Y$ from 1 on, the patches", "Y_1: are the columns of Y from 1 on, the patches"
        ),
        eps_note(**{"1": block.norm1, "2": block.norm2}),
        *drops_note(*drops, (block.mlp.drop.p, "of the hidden entries, and of what the MLP adds")),
    )
    stacked = {letter: ", ".join(f"{letter}^{kind}_k" for kind in "QKV") for letter in "Ba"}
    inner = {
        "attn": math_symbols(
            qkv__weight=stacked["B"], qkv__bias=stacked["a"], proj__weight=f"[{each('P_', count)}]", proj__bias="b"
        ),
        "mlp": math_symbols(fc1__weight="F_1", fc1__bias="f_1", fc2__weight="F_2", fc2__bias="f_2"),
    }
    symbols: Symbols = {
        **norm_symbols("norm1", "1"),
        **norm_symbols("norm2", "2"),
        **math_symbols(ls1__gamma="s_1", ls2__gamma="s_2"),
        **{f"{part}.{name}": symbol for part, of_part in inner.items() for name, symbol in of_part.items()},
    }
    return Part("ClassAttention, then MLP", equations, notes, named(block, prefix, symbols))
