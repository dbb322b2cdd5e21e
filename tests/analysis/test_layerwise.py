"""Layer-wise analysis: the published script's values on its own model, statistics, reports, verdicts, and bad input."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.multiprocessing as mp
from analysis_in_two import share
from golden_data import load_case
from hypothesis import given
from hypothesis import strategies as st
from small_models import images_for, small_model
from torch import Tensor, nn

from whitebox_crate import capture
from whitebox_crate.analysis import (
    DescentReport,
    LayerwiseReport,
    coding_rate,
    effective_rank,
    layerwise_analysis,
    plot_layerwise,
    subspace_coding_rate,
    verify_descent,
)
from whitebox_crate.analysis.descent import _outcome
from whitebox_crate.analysis.layerwise import QUANTITIES
from whitebox_crate.analysis.moments import Moments, student_t
from whitebox_crate.convert.rename import convert_state_dict
from whitebox_crate.errors import InputError, UnknownNameError
from whitebox_crate.models import Crate

KINDS = ["crate_paper_small_patch8_224", "crate_alpha_tiny_patch16_224", "crate_mae_tiny_patch16_224", "crate_sth",
         "crate_mlp", "crate_mhsa", "vit_tiny_patch16_224", "crate_tied", "crate_attention_only"]  # fmt: skip


def quiet(_: str) -> None:
    pass


def analyse(model: nn.Module, loader: Any, **options: Any) -> LayerwiseReport:
    return layerwise_analysis(model, loader, report=quiet, **options)


def verify(model: nn.Module, loader: Any, **options: Any) -> DescentReport:
    return verify_descent(model, loader, report=quiet, **options)


@pytest.fixture(scope="module")
def crate() -> Any:
    return small_model("crate_paper_small_patch8_224")


@pytest.fixture(scope="module")
def images(crate: Any) -> Tensor:
    return images_for(crate, batch=6)


def close(have: Any, want: Any, rtol: float = 1e-9) -> None:
    torch.testing.assert_close(torch.tensor(have), torch.tensor(want), rtol=rtol, atol=1e-12)


def test_the_released_convention_gives_the_published_script_on_its_own_model() -> None:
    case = load_case("crate_square")
    model = Crate(**case.crate_options()).eval()
    model.load_state_dict(convert_state_dict(case.group("state")))
    found = analyse(model, [case["input/img"]], convention="released")
    rates, density = found["subspace_coding_rate", "tokens"], found["l0", "output"]
    assert rates.std is not None and density.std is not None
    close(rates.mean, case["output/coding_rate_mean"].double().tolist(), rtol=1e-5)
    close(rates.std, case["output/coding_rate_std"].double().tolist(), rtol=1e-4)
    close([1 - value for value in density.mean], case["output/zero_fraction_mean"].tolist(), rtol=1e-6)
    unbiased = math.sqrt(2)  # of two images, against the population's of the script
    close([value / unbiased for value in density.std], case["output/zero_fraction_std"].tolist(), rtol=1e-4)


@pytest.mark.parametrize("name", KINDS)
@torch.no_grad()
def test_every_kind_of_model_is_measured_by_the_public_functions_on_captured_states(name: str) -> None:
    model = small_model(name)
    images = images_for(model, batch=3)
    found = analyse(model, [(images, torch.zeros(3))])
    assert found.layers == (0, 1, 2) and found.images == 3
    with capture(model, "tokens", "projections", "attention", "compressed", "output", queries="all") as trace:
        model(images)
    for layer, block in enumerate(model.blocks):
        want: dict[tuple[Any, Any], Tensor] = {
            ("subspace_coding_rate", "tokens"): subspace_coding_rate(trace["projections", layer], 0.1),
            ("coding_rate", "compressed"): coding_rate(block.norm1(trace["compressed", layer]), 0.1),
            ("l0", "output"): (trace["output", layer] != 0).double().mean(dim=(1, 2)),
            ("l1", "compressed"): trace["compressed", layer].abs().mean(dim=(1, 2)),
            ("token_norm", "output"): trace["output", layer].norm(dim=-1).mean(dim=-1),
            ("effective_rank", "tokens"): effective_rank(trace["tokens", layer]),
            ("attention_entropy", "tokens"): torch.special.entr(trace["attention", layer]).sum(-1).mean(dim=(1, 2)),
        }
        for key, value in want.items():
            series = found[key]
            assert series.std is not None
            close(series.mean[layer], value.double().mean().item(), rtol=1e-5)
            close(series.std[layer], value.double().std().item(), rtol=1e-3)


def test_batches_do_not_matter(crate: Any, images: Tensor) -> None:
    whole, parts = analyse(crate, [images]), analyse(crate, images.split([1, 3, 2]))
    for quantity, states in whole.series.items():
        for state in states:
            close(parts[quantity, state].mean, whole[quantity, state].mean, rtol=1e-5)  # type: ignore[index]
            close(parts[quantity, state].half_width, whole[quantity, state].half_width, rtol=1e-3)  # type: ignore[index]


def test_the_interval_is_that_of_student(crate: Any, images: Tensor) -> None:
    series = analyse(crate, [images], quantities=["l1"], confidence=0.9)["l1", "output"]
    assert series.std is not None and series.half_width is not None
    close(series.half_width, [std / math.sqrt(6) * 2.0150484 for std in series.std], rtol=1e-6)
    one = verify(crate, [images]).verdicts[0]
    with torch.no_grad(), capture(crate, "tokens", "compressed") as trace:
        crate(images)
        mssa, norm = crate.blocks[0].mssa, crate.blocks[0].norm1
        before, after = (
            subspace_coding_rate(mssa.split_heads(mssa.qkv(norm(trace[state, 0])))[0], 0.1).double()
            for state in ("tokens", "compressed")
        )
    close(
        [one.before, one.after, one.change], [before.mean().item(), after.mean().item(), (after - before).mean().item()]
    )
    close(one.half_width, (after - before).std().item() / math.sqrt(6) * 2.5705818, rtol=1e-5)
    close(one.share, (after < before).double().mean().item())


@pytest.mark.parametrize(
    ("change", "half_width", "outcome"),
    [
        (-1.0, 0.5, "holds"),
        (-0.5, 0.5, "undecided"),
        (-0.1, 0.5, "undecided"),
        (0.1, 0.5, "undecided"),
        (0.5, 0.5, "does not hold"),
        (0.0, 0.0, "does not hold"),
        (-1.0, 0.0, "holds"),
        (-1.0, None, "undecided"),
    ],
)
def test_a_claim_holds_if_the_whole_interval_is_below_zero(
    change: float, half_width: float | None, outcome: str
) -> None:
    assert _outcome(change, half_width) == outcome


def test_heads_wider_than_tokens_are_measured(images: Tensor) -> None:
    model = small_model("crate_paper_small_patch8_224", embed_dim=8, num_heads=2, head_dim=12)
    assert all(rate > 0 for rate in analyse(model, [images])["subspace_coding_rate", "output"].mean)


def test_layers_and_quantities_are_chosen(crate: Any, images: Tensor) -> None:
    few = analyse(crate, [images], layers=[-1, 0], quantities=["l0"])
    every = analyse(crate, [images])
    assert few.layers == (2, 0) and set(few.series) == {"l0"}
    every_l0 = every["l0", "output"].mean
    assert few["l0", "output"].mean == (every_l0[2], every_l0[0])


def test_rates_without_the_norm_are_of_the_states_themselves(crate: Any, images: Tensor) -> None:
    found = analyse(crate, [images], normed=False, quantities=["coding_rate"])
    with torch.no_grad(), capture(crate, "compressed") as trace:
        crate(images)
    close(
        found["coding_rate", "compressed"].mean[1],
        coding_rate(trace["compressed", 1], 0.1).double().mean().item(),
        1e-6,
    )


def test_one_image_has_a_mean_and_no_spread(crate: Any, images: Tensor) -> None:
    one = analyse(crate, [images[:1]])
    for states in one.series.values():
        assert all(series.std is None and series.half_width is None for series in states.values())
    assert LayerwiseReport.from_json(one.to_json()) == one
    verdicts = verify(crate, [images[:1]])
    assert {v.outcome for v in verdicts.verdicts} == {"undecided"}
    assert DescentReport.from_json(verdicts.to_json()) == verdicts


def test_reports_survive_json(crate: Any, images: Tensor) -> None:
    for report in (analyse(crate, [images]), verify(crate, [images])):
        again = type(report).from_json(report.to_json())
        assert again == report and json.loads(report.to_json()) == report.to_dict()
        for text in ("[]", "{", "{}", '{"series": 3}', '{"verdicts": 3}'):
            with pytest.raises(InputError, match="to_json"):
                type(report).from_json(text)


def test_tables_have_a_row_for_each_layer(crate: Any, images: Tensor) -> None:
    found = analyse(crate, [images])
    markdown = found.table(["l0", "token_norm"], markdown=True).splitlines()
    assert markdown[:2] == ["| layer | l0 | token_norm |", "| --- | --- | --- |"] and len(markdown) == 5
    assert f"{found['l0', 'output'].mean[2]:.4g}" in markdown[4]
    text = found.table().splitlines()
    assert text[0].split() == ["layer", *QUANTITIES] and len(text) == 4
    verdicts = verify(crate, [images])
    assert len(verdicts.table(markdown=True).splitlines()) == 2 + len(verdicts.verdicts)


def test_what_is_read_of_a_report_exists(crate: Any, images: Tensor) -> None:
    found = analyse(crate, [images], quantities=["l0"])
    with pytest.raises(UnknownNameError, match="output"):
        found["l0", "outputs"]  # type: ignore[index]
    with pytest.raises(UnknownNameError, match="l0"):
        found["l1", "output"]
    with pytest.raises(UnknownNameError, match="l0"):
        found.table(["l1"])
    with pytest.raises(InputError, match="quantity, state"):
        found["l0"]  # type: ignore[index]


def test_the_curves_are_drawn(crate: Any, images: Tensor, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    found, one = analyse(crate, [images]), analyse(crate, [images[:1]])
    figure = plot_layerwise({"six": found, "one": one}, tmp_path / "curves.png")
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")
    for axes, key in zip(figure.axes, [("subspace_coding_rate", "compressed"), ("l0", "output")], strict=True):
        assert tuple(axes.lines[0].get_ydata()) == found[key].mean  # type: ignore[index]
    assert [text.get_text() for text in figure.axes[0].get_legend().get_texts()] == ["six", "one"]
    plot_layerwise(found)
    with pytest.raises(InputError, match="no report"):
        plot_layerwise({})


@torch.no_grad()
def made_to(do: str) -> Crate:
    """A layer whose MSSA does nothing, or makes all tokens nearly the same."""
    torch.manual_seed(0)
    model = Crate(img_size=32, patch_size=8, num_classes=2, embed_dim=16, depth=1, num_heads=2).eval()
    mssa = model.blocks[0].mssa
    assert isinstance(mssa.proj, nn.Linear)
    mssa.proj.weight.zero_()
    mssa.proj.bias.zero_()
    if do == "compress":
        mssa.proj.bias.copy_(100 * torch.randn(16))
    return model


def test_verdicts_are_those_of_layers_made_to_compress_or_not() -> None:
    images = torch.randn(8, 3, 32, 32)
    verdicts = {v.claim: v for v in verify(made_to("compress"), [images]).verdicts}
    assert verdicts["compression"].outcome == "holds" and verdicts["compression"].share == 1
    idle = {v.claim: v for v in verify(made_to("do nothing"), [images]).verdicts}
    assert idle["compression"].outcome == "does not hold"
    assert idle["compression"].change == 0 and idle["compression"].share == 0
    assert idle["sparsity"].outcome == "holds"


@torch.no_grad()
def test_coding_is_the_lasso_of_ista(crate: Any, images: Tensor) -> None:
    found = [v for v in verify(crate, [images]).verdicts if v.claim == "coding"]
    with capture(crate, "compressed", "output") as trace:
        crate(images)
    for verdict, block in zip(found, crate.blocks, strict=True):
        x, code, d = (
            block.norm2(trace["compressed", verdict.layer]),
            trace["output", verdict.layer],
            block.ista.dictionary,
        )
        for have, u in ((verdict.before, x.relu()), (verdict.after, code)):
            want = (x - u @ d.T).square().sum(-1) / 2 + 0.1 * u.abs().sum(-1)
            close(have, want.double().mean().item(), rtol=1e-5)
        close(verdict.change, verdict.after - verdict.before, rtol=1e-6)


@torch.no_grad()
def test_ista_lowers_the_lasso_in_an_orthogonal_dictionary(crate: Any, images: Tensor) -> None:
    """It is a proximal gradient step below 1 / curvature; the soft threshold takes codes of any sign, x too."""
    model = small_model("crate_sth")
    for block in model.blocks:
        block.ista.dictionary.copy_(torch.linalg.qr(block.ista.dictionary).Q)
    outcomes = {v.outcome for v in verify(model, [images_for(model, 6)]).verdicts if v.claim == "coding"}
    assert outcomes == {"holds"}


def test_models_without_ista_have_no_verdict_on_coding() -> None:
    model = small_model("vit_tiny_patch16_224")
    found = verify(model, [images_for(model, 4)])
    assert {v.claim for v in found.verdicts} == {"compression", "sparsity"}
    assert {v.outcome for v in found.verdicts if v.claim == "sparsity"} == {"does not hold"}


def test_a_layer_of_attention_alone_has_a_verdict_on_compression_alone() -> None:
    model = small_model("crate_attention_only")
    found = verify(model, [images_for(model, 4)])
    assert [(v.layer, v.claim) for v in found.verdicts] == [(layer, "compression") for layer in range(3)]


def test_the_tied_step_compresses_on_orthonormal_bases() -> None:
    model = small_model("crate_tied", depth=1)
    with torch.no_grad():
        model.blocks[0].mssa.qkv.weight.copy_(torch.linalg.qr(model.blocks[0].mssa.qkv.weight).Q)
    found = verify(model, [images_for(model, 6)])
    assert [v.outcome for v in found.verdicts if v.claim == "compression"] == ["holds"]


def test_the_model_is_left_as_it_was(crate: Any, images: Tensor) -> None:
    before = [(m, m.training, len(m._forward_hooks), len(m._forward_pre_hooks)) for m in crate.modules()]
    analyse(crate, [images])
    assert before == [(m, m.training, len(m._forward_hooks), len(m._forward_pre_hooks)) for m in crate.modules()]
    assert all(p.grad is None for p in crate.parameters())


def test_a_model_in_bfloat16_is_measured(images: Tensor) -> None:
    model = small_model("crate_paper_small_patch8_224").bfloat16()
    found = analyse(model, [images])
    assert all(math.isfinite(x) for states in found.series.values() for s in states.values() for x in s.mean)


def test_progress_goes_to_whom_it_may_concern(crate: Any, images: Tensor, capsys: pytest.CaptureFixture[str]) -> None:
    lines: list[str] = []
    layerwise_analysis(crate, [images], quantities=["l0"], report=lines.append)
    assert lines == ["6 images measured"]
    layerwise_analysis(crate, [images], quantities=["l0"])
    assert capsys.readouterr() == ("", "6 images measured\n")


@pytest.mark.parametrize("loader", [[], [torch.zeros(0, 3, 16, 24)]])
def test_a_loader_that_yields_nothing_is_an_error(crate: Any, loader: Any) -> None:
    for measure in (analyse, verify):
        with pytest.raises(InputError, match="yields no images"):
            measure(crate, loader)


@pytest.mark.parametrize("batch", [torch.zeros(3, 16, 24), "images", {"images": 1}, []])
def test_a_loader_that_yields_no_images_is_an_error(crate: Any, batch: Any) -> None:
    with pytest.raises(InputError, match="batches of images"):
        analyse(crate, [batch])


def test_states_that_are_not_finite_are_an_error(crate: Any, images: Tensor) -> None:
    bad = images.clone()
    bad[4, 0, 0, 0] = math.nan
    with pytest.raises(InputError, match=r"'tokens' of layer 0, image 2 or one of the 4"):
        analyse(crate, [bad[:2], bad[2:]], quantities=["l0"])


def test_other_arguments_are_checked(crate: Any, images: Tensor) -> None:
    with pytest.raises(InputError, match="models of this package"):
        analyse(nn.Linear(2, 2), [images])
    with pytest.raises(UnknownNameError, match="l0"):
        analyse(crate, [images], quantities=["l00"])
    with pytest.raises(InputError, match="at least one quantity"):
        analyse(crate, [images], quantities=[])
    with pytest.raises(UnknownNameError, match="no layer 7"):
        analyse(crate, [images], layers=[7])
    for measure in (analyse, verify):
        with pytest.raises(UnknownNameError, match="paper"):
            measure(crate, [images], convention="papers")
        with pytest.raises(InputError, match="eps"):
            measure(crate, [images], eps=0)
        with pytest.raises(InputError, match="confidence"):
            measure(crate, [images], confidence=95)
        with pytest.raises(InputError, match="init_process_group"):
            measure(crate, [images], gather=True)


values = st.lists(st.floats(-1e6, 1e6), min_size=2, max_size=12)


@given(values, st.integers(0, 12))
def test_moments_of_parts_merge_to_those_of_the_whole(numbers: list[float], cut: int) -> None:
    data = torch.tensor(numbers, dtype=torch.float64)[:, None]
    merged, other = Moments((1,)), Moments((1,))
    merged.add(data[:cut])
    other.add(data[cut:])
    merged.merge(other)
    assert merged.count == len(numbers) and merged.std is not None
    torch.testing.assert_close(merged.mean, data.mean(dim=0), rtol=1e-12, atol=1e-6)
    torch.testing.assert_close(merged.std, data.std(dim=0), rtol=1e-9, atol=1e-6)


@pytest.mark.parametrize(
    ("confidence", "degrees", "want"),
    [
        (0.95, 1, 12.7062),
        (0.95, 2, 4.3027),
        (0.95, 9, 2.2622),
        (0.99, 5, 4.0321),
        (0.9, 30, 1.6973),
        (0.95, 1000, 1.9623),
    ],
)
def test_student_t_is_that_of_the_tables(confidence: float, degrees: int, want: float) -> None:
    assert student_t(confidence, degrees) == pytest.approx(want, abs=5e-5)


def test_student_t_goes_on_where_the_series_takes_over() -> None:
    before, after = student_t(0.999, 199), student_t(0.999, 200)
    assert 0 < before - after < 2 * (after - student_t(0.999, 201)) + 1e-9
    for confidence, degrees in ((0.0, 3), (1.0, 3), (0.95, 0)):
        with pytest.raises(InputError):
            student_t(confidence, degrees)


@pytest.mark.slow
def test_two_processes_find_what_one_does(crate: Any, images: Tensor, tmp_path: Path) -> None:
    mp.spawn(share, args=(str(tmp_path), images), nprocs=2)
    first, second = (LayerwiseReport.from_json((tmp_path / f"{rank}.json").read_text()) for rank in (0, 1))
    alone = analyse(crate, [images])
    assert first == second and first.images == alone.images == 6
    close(first["coding_rate", "output"].mean, alone["coding_rate", "output"].mean, rtol=1e-5)
    close(first["coding_rate", "output"].std, alone["coding_rate", "output"].std, rtol=1e-3)
    assert (
        (tmp_path / "0.txt").read_text().startswith("ProcessError: process 1 failed: InputError: a loader must yield")
    )
    assert (tmp_path / "1.txt").read_text().startswith("InputError: a loader must yield")


def test_images_of_bytes_and_no_loader_are_refused(crate: Any, images: Tensor) -> None:
    for loader in ([(255 * images.clamp(0, 1)).byte()], None):
        for measure in (analyse, verify):
            with pytest.raises(InputError, match=r"create_transform|a loader must be"):
                measure(crate, loader)


def test_the_codes_of_crate_alpha_are_sparse_and_better_than_none() -> None:
    model = small_model("crate_alpha_tiny_patch16_224")
    found = verify(model, [images_for(model, batch=3)])
    sparsity = [v for v in found.verdicts if v.claim == "sparsity"]
    coding = [v for v in found.verdicts if v.claim == "coding"]
    assert len(sparsity) == len(coding) == len(model.blocks)
    assert all(v.after < v.before == 1 for v in sparsity)
    with torch.no_grad(), capture(model, "compressed", layers=[0]) as trace:
        model(images_for(model, batch=3))
        codes = model.blocks[0].odl.encode(model.blocks[0].norm2(trace["compressed", 0]))
    close(sparsity[0].after, (codes != 0).double().mean().item(), rtol=1e-5)
