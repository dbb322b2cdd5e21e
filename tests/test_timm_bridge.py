"""`import whitebox_crate.timm_bridge`: timm makes this package's models, and what timm's scripts do with them works."""

from __future__ import annotations

import importlib
import json
import math
import runpy
import sys
from argparse import Namespace
from pathlib import Path
from typing import Any

import pytest
import torch
from small_models import FAMILIES, images_for, small_options
from timm_installed import timm_or_skip, version_of

timm: Any = timm_or_skip()
for part in ("data", "optim", "scheduler", "utils.onnx"):
    importlib.import_module(f"timm.{part}")

import whitebox_crate.timm_bridge  # noqa: E402
from whitebox_crate import (  # noqa: E402
    create_model,
    create_transform,
    get_pretrained_cfg,
    list_models,
    list_pretrained,
    resolve_data_config,
    save_pretrained,
)
from whitebox_crate.errors import UnknownNameError, WeightsError  # noqa: E402
from whitebox_crate.images import load_image  # noqa: E402
from whitebox_crate.models import FeatureExtractor, ImageTransformer  # noqa: E402

NANO = "crate_nano_patch6_96"
OURS = timm.list_models(module="timm_bridge")
LOCAL_FOLDERS = version_of(timm) >= (1, 0, 16)


def test_timm_knows_all_models_that_it_did_not_have() -> None:
    assert set(list_models("crate_*")) | {"vit_nano_patch6_96"} <= set(OURS) <= set(list_models())
    assert set(list_models()) <= set(timm.list_models())
    assert "vit_base_patch16_224" not in OURS
    assert type(timm.create_model("vit_tiny_patch16_224", depth=1)).__name__ == "VisionTransformer"
    assert set(timm.list_pretrained("crate_*")) == set(list_pretrained("crate_*"))
    assert set(whitebox_crate.timm_bridge.__all__) == set(OURS)
    assert timm.models.get_pretrained_cfg_value("crate_base_patch16_224", "classifier") == "head"
    assert whitebox_crate.timm_bridge.crate_tiny_patch16_224(depth=1).architecture == "crate_tiny_patch16_224"


@pytest.mark.parametrize("name", OURS)
def test_timm_makes_every_model(name: str) -> None:
    options = {**small_options(name), "drop_rate": 0.1, "drop_path_rate": 0.1, "drop_block_rate": None}
    model = timm.create_model(name, scriptable=False, exportable=True, bn_eps=None, **options)
    assert type(model) is type(create_model(name, **small_options(name)))
    assert (model.architecture, model.num_classes, model.head_drop.p) == (name, 5, 0.1)
    assert timm.data.resolve_data_config({}, model=model)["mean"] == model.pretrained_cfg.mean
    with pytest.raises(UnknownNameError, match=f"unknown option of {name} 'drop_block_rate'"):
        timm.create_model(name, drop_block_rate=0.1)


@torch.no_grad()
def test_timm_loads_weights_by_name_and_tag() -> None:
    images = torch.rand(1, 3, 96, 96)
    for name in (NANO, f"{NANO}.scene_composites"):
        model, ours = timm.create_model(name, pretrained=True).eval(), create_model(name, pretrained=True).eval()
        assert torch.equal(model(images), ours(images))
        assert model.pretrained_cfg == get_pretrained_cfg(name)
    model = timm.create_model(NANO, pretrained=True, num_classes=7, in_chans=1)
    assert model.load_report.reinitialised == ("head.weight", "head.bias")
    with pytest.raises(WeightsError, match="no pretrained weights"):
        timm.create_model("crate_base_patch16_224", pretrained=True)
    with pytest.raises(UnknownNameError, match="'tuxpaint_composites'"):
        timm.create_model(f"{NANO}.tuxpaint", pretrained=True)


def test_facts_and_their_changes_arrive() -> None:
    model = timm.create_model(NANO, pretrained_cfg_overlay={"mean": [0.1, 0.2, 0.3], "custom_load": False}, depth=1)
    assert model.pretrained_cfg.mean == (0.1, 0.2, 0.3)
    timm_cfg = timm.models.get_pretrained_cfg(f"{NANO}.scene_composites")
    for cfg in (timm_cfg, timm_cfg.to_dict(), "scene_composites"):  # as timm's scripts hand them on
        assert timm.create_model(NANO, pretrained_cfg=cfg).pretrained_cfg.tag == "scene_composites"


def test_a_file_in_place_of_the_known_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name = "crate_small_patch16_224"  # whose weights are on a page for persons
    monkeypatch.chdir(tmp_path)
    model = create_model(name, **small_options(name))
    torch.save(model.state_dict(), "w.pth")
    facts, options = {"file": "w.pth", "num_classes": 5}, small_options(name, num_classes=None)
    for given in ({"pretrained_cfg": facts}, {"pretrained_cfg_overlay": facts}):
        again = timm.create_model(name, pretrained=True, **given, **options)
        assert torch.equal(again.head.weight, model.head.weight)


@pytest.mark.parametrize("source", ["hf-hub:org/model"] + ["local-dir:{folder}"] * LOCAL_FOLDERS)
@torch.no_grad()
def test_timm_loads_folders(source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = create_model(FAMILIES["mae"], **small_options(FAMILIES["mae"])).eval()
    model.reset_classifier(4, "avg")  # pooling that no option of the model says
    folder = save_pretrained(model, tmp_path)

    def download(_: str, filename: str, **__: object) -> Path:
        return folder / filename

    def timms(repo_id: str, filename: str, **_: object) -> str:
        return str(download(repo_id, filename))

    monkeypatch.setattr("timm.models._hub.hf_hub_download", timms, raising=False)
    monkeypatch.setattr("timm.models._hub._has_hf_hub", True)
    monkeypatch.setattr("whitebox_crate.hub.fetch", download)
    name = source.format(folder=folder)
    again = timm.create_model(name, pretrained=True).eval()
    assert torch.equal(again(images_for(model)), model(images_for(model)))
    assert timm.create_model(name, pretrained=True, num_classes=9, global_pool="mean").global_pool == "mean"
    config = json.loads((folder / "config.json").read_text())
    assert config["model_args"]["global_pool"] == "token"


def test_timm_makes_feature_extractors() -> None:
    options = {"depth": 4, "out_indices": (1, 3)}
    features = timm.create_model("crate_tiny_patch16_224", features_only=True, feature_cls="dict", **options)
    assert isinstance(features, FeatureExtractor)
    assert list(features(torch.zeros(1, 3, 224, 224))) == ["1", "3"]
    info = timm.models.FeatureInfo(timm.create_model("crate_tiny_patch16_224", depth=4).feature_info, (1, 3))
    assert info.channels() == features.feature_info.channels()
    assert info.get_dicts(["module"]) == features.feature_info.get_dicts(["module"])


def test_images_become_the_same_tensors() -> None:
    model = timm.create_model(NANO, pretrained=True)
    config = timm.data.resolve_data_config({}, model=model)
    assert config == resolve_data_config({}, model=model) == resolve_data_config(model)
    photo = load_image(Path(whitebox_crate.__file__).parent / "samples" / "cat.jpg")
    ours, theirs = create_transform(**config)(photo), timm.data.create_transform(**config, is_training=False)(photo)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-6)


def small(name: str, **options: Any) -> ImageTransformer:
    """As timm's scripts make a model from their command line."""
    made: ImageTransformer = timm.create_model(
        name, pretrained=False, in_chans=3, global_pool=None, scriptable=False, checkpoint_path="", drop_rate=0.1,
        drop_path_rate=0.1, drop_block_rate=None, bn_momentum=None, bn_eps=None, **{**small_options(name), **options},
    )  # fmt: skip
    return made


@pytest.mark.parametrize("name", FAMILIES.values(), ids=FAMILIES.keys())
def test_what_train_py_does(name: str, tmp_path: Path) -> None:
    """Layer-wise rates, weight decay, averaged weights, a schedule, checkpoints, and going on from one."""
    model = small(name)
    model.set_grad_checkpointing(enable=True)
    optimizer = timm.optim.create_optimizer_v2(model, opt="adamw", lr=0.01, weight_decay=0.05, layer_decay=0.75)
    scales = {group.get("lr_scale", 1.0) for group in optimizer.param_groups}
    assert {round(0.75**power, 6) for power in range(len(model.layers()) + 2)} == {round(scale, 6) for scale in scales}
    undecayed = {id(p) for group in optimizer.param_groups if not group["weight_decay"] for p in group["params"]}
    assert {id(model.cls_token), id(model.norm.bias)} <= undecayed
    average = timm.utils.ModelEmaV2(model, decay=0.5)
    schedule = timm.scheduler.CosineLRScheduler(optimizer, t_initial=3, warmup_t=1, warmup_lr_init=1e-5)
    images, losses = images_for(model), []
    for epoch in range(3):
        loss = torch.nn.functional.cross_entropy(model.train()(images), torch.tensor([0, 1]))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        average.update(model)
        schedule.step(epoch + 1)
        losses.append(loss.item())
    assert all(map(math.isfinite, losses))
    args = Namespace(model=name)
    saver = timm.utils.CheckpointSaver(
        model, optimizer, args=args, model_ema=average, checkpoint_dir=tmp_path, recovery_dir=tmp_path
    )
    saver.save_checkpoint(epoch=2, metric=0.5)
    again, averaged = small(name), small(name)
    with torch.serialization.safe_globals([Namespace]):  # which an old timm does not say itself
        assert timm.models.resume_checkpoint(again, tmp_path / "last.pth.tar", log_info=False) == 3
        timm.models.load_checkpoint(averaged, str(tmp_path / "last.pth.tar"), use_ema=True)
    assert all(torch.equal(value, model.state_dict()[key]) for key, value in again.state_dict().items())
    assert torch.equal(averaged.cls_token, average.module.cls_token)


@torch.no_grad()
def test_what_validate_and_inference_py_do(tmp_path: Path) -> None:
    model = timm.create_model(NANO, pretrained=True, num_classes=None)
    config = timm.data.resolve_data_config({"model": NANO, "img_size": None}, model=model, use_test_size=True)
    model, pooled_at_test = timm.layers.apply_test_time_pool(model, config)
    assert not pooled_at_test
    for label in ("a", "b"):
        (tmp_path / label).mkdir()
        load_image(Path(whitebox_crate.__file__).parent / "samples" / "cat.jpg").save(tmp_path / label / "1.png")
    loader = timm.data.create_loader(
        timm.data.create_dataset("", root=str(tmp_path)), batch_size=2, use_prefetcher=False, num_workers=0,
        persistent_workers=False,
        **{key: config[key] for key in ("input_size", "interpolation", "mean", "std", "crop_pct", "crop_mode")},
    )  # fmt: skip
    [(images, target)] = list(loader)
    logits = model.eval()(images)
    assert logits.shape == (2, 476)
    assert torch.equal(logits[0], logits[1])
    top1, top5 = timm.utils.accuracy(logits, target, topk=(1, 5))
    assert 0 <= top1 <= top5 <= 100
    assert timm.data.infer_imagenet_subset(model) is None  # its classes are its own


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")  # of our checks of sizes, by torch's older exporter
def test_what_onnx_export_py_does(tmp_path: Path) -> None:
    if version_of(timm) < (1, 0, 31):
        pytest.skip("an older timm calls torch's exporter in ways that a newer torch does not know")
    model, file = small(NANO), tmp_path / "m.onnx"
    timm.utils.onnx.onnx_export(model, str(file), batch_size=1, input_size=(3, *model.img_size), check_forward=True)
    assert file.stat().st_size > 1000


def test_a_script_runs_with_the_models_registered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "helper.py").write_text("NAME = 'crate_nano_patch6_96'")
    script = tmp_path / "train.py"
    script.write_text(
        "import sys, timm, helper\nresult = sys.argv[1:], timm.is_model(helper.NAME), __name__\nprint(result)"
    )
    monkeypatch.setattr(sys, "argv", ["python", str(script), "--model", "x"])
    monkeypatch.setattr(sys, "path", list(sys.path))
    names = runpy.run_module("whitebox_crate.timm_bridge", run_name="__main__")
    assert names["sys"].argv == [str(script), "--model", "x"]
    monkeypatch.setattr(sys, "argv", ["python"])
    with pytest.raises(SystemExit, match="usage"):
        runpy.run_module("whitebox_crate.timm_bridge", run_name="__main__")
