"""What speed is measured against: the published formulation is the released code, the products those of the model."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from golden_data import load_case
from hypothesis import given
from hypothesis import strategies as st
from models.test_golden import CRATE_CASES, close, crate_of, our_names
from small_models import images_for, small_model
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import speed
from benchmarks.published import published_logits
from benchmarks.speed_tables import exponent
from whitebox_crate import ImageTransformer, fold_for_inference
from whitebox_crate.errors import InputError

CRATE = "crate_nano_patch6_96"


def crate(**options: Any) -> ImageTransformer:
    return small_model(CRATE, **{"depth": 2, **options})


options = st.fixed_dictionaries(
    {
        "depth": st.integers(1, 3),
        "num_heads": st.sampled_from([1, 2, 3]),
        "head_dim": st.sampled_from([None, 5]),
        "skip": st.sampled_from(["input", "normalized"]),
        "threshold": st.sampled_from(["relu", "soft"]),
        "global_pool": st.sampled_from(["token", "mean"]),
        "patch_size": st.sampled_from([(3, 2), (6, 6)]),
        "in_chans": st.sampled_from([1, 3]),
        "step_size": st.sampled_from([0.1, 0.3]),
        "sparsity": st.sampled_from([0.1, 0.5]),
    }
)


@given(options, st.integers(1, 3))
@torch.no_grad()
def test_it_is_what_the_model_computes(chosen: dict[str, Any], batch: int) -> None:
    model = crate(**chosen)
    images = images_for(model, batch)
    close(published_logits(model, images), model(images))
    model, images = model.double(), images.double()
    close(published_logits(model, images), model(images))


@pytest.mark.parametrize("skip", ["input", "normalized"])
def test_its_gradients_are_those_of_the_model(skip: str) -> None:
    model = crate(skip=skip).double().train()
    images = images_for(model).double().requires_grad_()
    inputs = [images, *model.parameters()]

    def gradients(logits: Tensor) -> tuple[Tensor, ...]:
        return torch.autograd.grad(F.cross_entropy(logits, torch.tensor([0, 3])), inputs)

    for have, want in zip(gradients(published_logits(model, images)), gradients(model(images)), strict=True):
        assert want.abs().max() > 0
        close(have, want)


@pytest.mark.parametrize("name", CRATE_CASES)
@torch.no_grad()
def test_it_is_the_released_code(name: str) -> None:
    case = load_case(name)
    model = crate_of(case)
    close(published_logits(model, case["input/img"]), case["output/logits"])
    close(published_logits(model.double(), case["input/img"].double()), case["output/logits_f64"])


def test_its_loss_and_gradients_are_those_of_the_released_code() -> None:
    case = load_case("crate_training_step")
    model = crate_of(case)
    loss = F.cross_entropy(published_logits(model, case["input/img"]), case["input/target"])
    close(loss, case["output/loss"])
    loss.backward()
    gradients = our_names(case.group("grad"), model)
    for key, parameter in model.named_parameters():
        assert parameter.grad is not None, key
        close(parameter.grad, gradients[key])


@pytest.mark.parametrize("pool", ["avg", ""])
def test_another_pooling_is_refused(pool: str) -> None:
    model = crate(global_pool=pool)
    with pytest.raises(InputError, match="'token' or 'mean'"):
        published_logits(model, images_for(model))


@pytest.mark.parametrize("name", ["vit_nano_patch6_96", "crate_alpha_tiny_patch16_224", "crate_mae_tiny_patch16_224"])
def test_other_models_are_refused(name: str) -> None:
    model = small_model(name)
    with pytest.raises(InputError, match="takes a Crate"):
        published_logits(model, images_for(model))


def test_a_model_that_is_folded_or_has_no_head_is_refused() -> None:
    for model in (fold_for_inference(crate()), crate(num_classes=0)):
        with pytest.raises(InputError, match="takes a Crate"):
            published_logits(model, images_for(model))


def test_images_of_another_size_are_refused() -> None:
    model = crate(dynamic_img_size=True)
    with pytest.raises(InputError, match="set_input_size"):
        published_logits(model, images_for(model, grid=(4, 4)))


@pytest.mark.parametrize("batch", [1, 3])
@torch.no_grad()
def test_the_products_alone_are_all_those_of_the_folded_model(batch: int) -> None:
    model = fold_for_inference(crate(num_heads=2, head_dim=5))
    with FlopCounterMode(display=False) as of_model, sdpa_kernel(SDPBackend.MATH):
        model(images_for(model, batch))
    pairs = speed.dense_products(model, batch)
    with FlopCounterMode(display=False) as of_pairs:
        speed.multiply(pairs)()
    assert of_pairs.get_total_flops() == of_model.get_total_flops() > 0
    assert sum(2 * left.numel() * right.shape[-1] for left, right in pairs) == of_pairs.get_total_flops()


@pytest.mark.parametrize("folded", [False, True])
@torch.no_grad()
def test_a_last_layer_for_cls_alone_gives_the_same_logits(folded: bool) -> None:
    model = crate().eval()
    model = fold_for_inference(model) if folded else model
    images = images_for(model, 2)
    torch.testing.assert_close(speed.cls_alone(model, images), model(images), rtol=0, atol=1e-5)


def test_the_exponent_is_that_of_the_range() -> None:
    sizes = [{"patches": n, "seconds": max(5.0, 3e-6 * n**2)} for n in (100, 200, 2000, 4000, 9000)]
    assert exponent(sizes, "seconds", 2000, 9000) == pytest.approx(2)
    assert exponent(sizes, "seconds", 100, 200) == pytest.approx(0)
