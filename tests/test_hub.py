"""A model's folder: timm's fields, whole files or none, and typed errors for folders that are not one."""

import json
import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors import SafetensorError, safe_open
from small_models import CLASSES, DIM, images_for, small_model, small_options

from whitebox_crate import PretrainedCfg, create_model, hub, register_model, save_pretrained
from whitebox_crate._files import write_whole
from whitebox_crate.errors import InputError, OutputError, UnknownNameError, WeightsError, WhiteboxCrateError
from whitebox_crate.hub import read_config
from whitebox_crate.models import Crate
from whitebox_crate.preprocess import fit_photo

NAME = "crate_tiny_patch16_224"


def another_model() -> Crate:
    """`small_model` with other weights."""
    model: Crate = small_model(NAME)
    for parameter in model.parameters():
        parameter.data.mul_(1.5)
    return model


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_a_folder_holds_timms_fields(tmp_path: Path) -> None:
    model = small_model(NAME)
    folder = save_pretrained(model, tmp_path / "some" / "where")
    assert folder == tmp_path / "some" / "where"
    assert set(contents(folder)) == {"config.json", "model.safetensors", "README.md"}
    config = json.loads((folder / "config.json").read_text())
    assert config["architecture"] == NAME
    assert (config["num_classes"], config["num_features"], config["global_pool"]) == (CLASSES, DIM, "token")
    assert config["model_args"]["depth"] == 3
    assert config["model_args"]["img_size"] == [32, 48]
    assert config["pretrained_cfg"]["mean"] == [0.485, 0.456, 0.406]
    with safe_open(folder / "model.safetensors", "pt") as file:
        assert set(file.keys()) == model.state_dict().keys()
        assert file.metadata() == {"format": "pt"}
    assert all((path.stat().st_mode & 0o777) == 0o644 for path in folder.iterdir())


def test_the_facts_and_labels_come_back(tmp_path: Path) -> None:
    labels = ("ant", "bee", "cat", "dog", "eel")
    cfg = PretrainedCfg(
        tag="mine", input_size=(3, 32, 48), std=(1.0, 2.0, 3.0), num_classes=5, label_names=labels, license="CC0"
    )
    model = small_model(NAME)
    model.pretrained_cfg = cfg
    save_pretrained(model, tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["label_names"] == list(labels)
    assert read_config(tmp_path)[2] == cfg
    assert create_model(f"local-dir:{tmp_path}").pretrained_cfg == cfg


def test_the_facts_are_those_of_the_model_that_was_saved(tmp_path: Path) -> None:
    """Weights for nine classes are not described by the facts about weights for five."""
    model = small_model(NAME)
    model.pretrained_cfg = PretrainedCfg(num_classes=5, label_names=("a", "b", "c", "d", "e"))
    model.reset_classifier(9)
    save_pretrained(model, tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["num_classes"] == config["pretrained_cfg"]["num_classes"] == 9
    assert config["label_names"] == []


# Of timm 0.9.16, which takes no others.
FIELDS_OF_TIMM = """
url file state_dict hf_hub_id hf_hub_filename source architecture tag custom_load input_size
test_input_size min_input_size fixed_input_size interpolation crop_pct test_crop_pct crop_mode mean std num_classes
label_offset label_names label_descriptions pool_size test_pool_size first_conv classifier license description
origin_url paper_name paper_ids notes
"""


def test_what_timm_does_not_know_is_kept_apart_and_comes_back(tmp_path: Path) -> None:
    """tests/test_timm_folders.py lets timm load it, where timm is installed."""
    model = small_model(NAME)
    model.pretrained_cfg = cfg = PretrainedCfg(
        num_classes=CLASSES, input_size=(3, 32, 48), attention_layer=1, attention_size=96, origin="here", paper="arXiv"
    )
    config = json.loads((save_pretrained(model, tmp_path) / "config.json").read_text())
    assert set(config["pretrained_cfg"]) <= set(FIELDS_OF_TIMM.split())
    assert config["whitebox_crate"]["attention_size"] == 96
    assert read_config(tmp_path).cfg == cfg
    config["pretrained_cfg"].update(config.pop("whitebox_crate"))  # as folders were before
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert read_config(tmp_path).cfg == cfg
    (tmp_path / "config.json").write_text(json.dumps({**config, "whitebox_crate": [1]}))
    with pytest.raises(WeightsError, match="'whitebox_crate'"):
        read_config(tmp_path)


def test_a_folder_is_written_over(tmp_path: Path) -> None:
    save_pretrained(small_model(NAME), tmp_path)
    model = small_model(NAME, num_classes=8)
    save_pretrained(model, str(tmp_path))
    loaded = create_model(f"local-dir:{tmp_path}", pretrained=True)
    assert torch.equal(loaded.head.weight, model.head.weight)
    assert set(contents(tmp_path)) == {"config.json", "model.safetensors", "README.md"}


def test_a_model_without_a_name_is_refused(tmp_path: Path) -> None:
    model = Crate(img_size=8, patch_size=4, embed_dim=8, depth=1, num_heads=2)
    with pytest.raises(InputError, match="create_model"):
        save_pretrained(model, tmp_path / "model")
    assert not (tmp_path / "model").exists()


def test_bfloat16_is_kept_in_the_file(tmp_path: Path) -> None:
    model = small_model(NAME).bfloat16()
    save_pretrained(model, tmp_path)
    with safe_open(tmp_path / "model.safetensors", "pt") as file:
        assert file.get_tensor("cls_token").dtype == torch.bfloat16
    loaded = create_model(f"local-dir:{tmp_path}", pretrained=True)
    assert torch.equal(loaded.cls_token, model.cls_token.float())


# What cannot be written


def test_a_file_where_the_folder_should_be(tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("mine")
    for folder in (tmp_path / "taken", tmp_path / "taken" / "below"):
        for error in (OutputError, OSError, WhiteboxCrateError):
            with pytest.raises(error, match="taken"):
                save_pretrained(small_model(NAME), folder)
    assert contents(tmp_path) == {"taken": b"mine"}


@pytest.mark.parametrize("taken", ["config.json", "model.safetensors"])
def test_a_folder_where_a_file_should_be(tmp_path: Path, taken: str) -> None:
    (tmp_path / taken).mkdir()
    with pytest.raises(OutputError, match=taken):
        save_pretrained(small_model(NAME), tmp_path)
    assert all(path.name in ("config.json", "model.safetensors") for path in tmp_path.iterdir())


def halfway(error: Exception) -> Callable[..., None]:
    def write(_: object, path: Path, **__: object) -> None:
        Path(path).write_bytes(b"half")
        raise error

    return write


def test_a_folder_whose_saving_was_cut_short_holds_one_model_or_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Never the weights of one under the facts of another: same shapes would not show it."""
    pairs = set[tuple[float, float]]()
    for steps in range(5):
        first, second = small_model(NAME), another_model()
        second.pretrained_cfg = PretrainedCfg(num_classes=CLASSES, mean=(0.1, 0.2, 0.3))
        folder = save_pretrained(first, tmp_path / str(steps))
        left, replace = steps, Path.replace

        def cut(path: Path, target: Path, replace: Any = replace) -> Path:
            nonlocal left
            left -= 1
            if left < 0:
                raise KeyboardInterrupt
            replaced: Path = replace(path, target)
            return replaced

        with monkeypatch.context() as patched, suppress(KeyboardInterrupt):
            patched.setattr(Path, "replace", cut)
            save_pretrained(second, folder)
        with suppress(WeightsError):
            loaded = create_model(f"local-dir:{folder}", pretrained=True)
            pairs.add((loaded.pretrained_cfg.mean[0], float(loaded.norm.weight.detach().sum())))
    norms = [float(model.norm.weight.detach().sum()) for model in (first, second)]
    assert pairs <= {(0.485, norms[0]), (0.1, norms[1])}
    assert (0.1, norms[1]) in pairs


@pytest.mark.parametrize("step", ["replace", "chmod"])
def test_weights_that_cannot_be_put_in_place_leave_the_old_files_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    """As where another program holds the old file open, on Windows."""
    save_pretrained(small_model(NAME), tmp_path)
    before, real = contents(tmp_path), getattr(Path, step)

    def refused(path: Path, *arguments: Any) -> Any:
        if path.suffix == ".safetensors":
            raise PermissionError(13, "Permission denied")
        return real(path, *arguments)

    monkeypatch.setattr(Path, step, refused)
    with pytest.raises(OutputError, match="Permission denied"):
        save_pretrained(small_model(NAME, num_classes=8), tmp_path)
    assert contents(tmp_path) == before


def test_a_model_that_is_saved_again_can_be_read_at_any_moment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As in training: the facts stay the same, and only the weights change."""
    save_pretrained(small_model(NAME), tmp_path)
    replaced, replace = list[str](), Path.replace

    def watched(path: Path, target: Path) -> Path:
        create_model(f"local-dir:{tmp_path}", pretrained=True)
        replaced.append(target.name)
        return replace(path, target)

    monkeypatch.setattr(Path, "replace", watched)
    save_pretrained(another_model(), tmp_path)
    assert replaced == ["model.safetensors"]


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), SafetensorError("No space left")])
def test_a_full_disk_leaves_the_old_files_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    save_pretrained(small_model(NAME), tmp_path)
    before = contents(tmp_path)
    monkeypatch.setattr(hub, "save_file", halfway(error))
    with pytest.raises(OutputError, match="No space left"):
        save_pretrained(small_model(NAME, num_classes=8), tmp_path)
    assert contents(tmp_path) == before


def test_an_option_that_json_does_not_know_leaves_nothing_half_written(tmp_path: Path, own_registry: None) -> None:
    def odd(extra: object = None) -> Crate:
        return Crate(img_size=8, patch_size=4, embed_dim=8, depth=1, num_heads=2)

    register_model(odd)
    with pytest.raises(InputError, match="extra"):
        save_pretrained(create_model("odd", extra=object()), tmp_path)
    assert contents(tmp_path) == {}


def test_whatever_is_raised_while_writing_no_temporary_file_stays(tmp_path: Path) -> None:
    def broken(path: Path) -> None:
        path.write_text("half")
        raise KeyboardInterrupt

    (tmp_path / "file.txt").write_text("old")
    with pytest.raises(KeyboardInterrupt):
        write_whole(tmp_path / "file.txt", broken)
    assert contents(tmp_path) == {"file.txt": b"old"}
    (tmp_path / "same.txt").hardlink_to(tmp_path / "file.txt")
    write_whole(tmp_path / "file.txt", lambda path: path.write_text("new"))
    # Renamed, not written into: whoever has the old file open still has the whole old file.
    assert contents(tmp_path) == {"file.txt": b"new", "same.txt": b"old"}


# A folder that changes


@pytest.mark.parametrize("mmap", [False, True])
@pytest.mark.parametrize("how", ["local-dir", "checkpoint_path", "file"])
def test_a_file_that_is_written_over_leaves_a_model_as_it_is(how: str, mmap: bool, tmp_path: Path) -> None:
    model, other = small_model(NAME), another_model()
    folder, others = save_pretrained(model, tmp_path / "model"), save_pretrained(other, tmp_path / "other")
    path = folder / hub.WEIGHTS
    if how == "local-dir":
        live = create_model(f"local-dir:{folder}", pretrained=True, mmap=mmap)
    elif how == "file":
        cfg = PretrainedCfg(file=str(path), num_classes=CLASSES)
        live = create_model(NAME, pretrained=True, pretrained_cfg=cfg, mmap=mmap, **small_options(NAME))
    else:
        live = create_model(NAME, checkpoint_path=path, mmap=mmap, **small_options(NAME))
    images = images_for(live)
    before, after = (of.eval()(images) for of in (model, other))
    assert torch.equal(live.eval()(images), before)
    shutil.copyfile(others / hub.WEIGHTS, path)  # into the same file, as cp does
    assert torch.equal(live(images), after if mmap else before)


# Options of a stranger


@pytest.mark.parametrize(
    "option",
    [
        {"head_dim": 10**7},
        {"embed_dim": 1 << 16},
        {"img_size": [64_000, 64_000]},
        {"num_classes": 10**8},
        {"patch_size": 4096, "img_size": 4096},
        {"step_size": 10**400},
        {"num_heads": 10**9, "head_dim": 1},
    ],
    ids=str,
)
@pytest.mark.parametrize("pretrained", [False, True])
def test_options_that_ask_for_memory_without_end_are_refused(
    option: dict[str, Any], pretrained: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = save_pretrained(small_model(NAME), tmp_path / "model")
    config = json.loads((folder / "config.json").read_text())
    config["model_args"].update(option)
    config["num_classes"] = config["model_args"]["num_classes"]
    (folder / "config.json").write_text(json.dumps(config))
    made = list[int]()
    empty = torch.empty

    def noted(*size: Any, **how: Any) -> torch.Tensor:
        tensor = empty(*size, **how)
        made.append(0 if tensor.is_meta else tensor.numel())
        return tensor

    monkeypatch.setattr(torch, "empty", noted)
    with pytest.raises(WhiteboxCrateError):
        create_model(f"local-dir:{folder}", pretrained=pretrained)
    assert sum(made) < 1 << 20


@pytest.mark.parametrize("step", [10**30, 1])
def test_a_constant_that_is_an_integer_is_a_float(step: int) -> None:
    model = small_model(NAME, step_size=step)
    assert type(model.model_args["step_size"]) is float
    model(images_for(model))


@pytest.mark.parametrize("facts", [{"crop_pct": 5e-324}, {"crop_pct": 0}, {"crop_pct": -1}, {"crop_pct": 7}])
def test_a_crop_of_nothing_is_refused(facts: dict[str, Any], tmp_path: Path) -> None:
    folder = save_pretrained(small_model(NAME), tmp_path / "model")
    config = json.loads((folder / "config.json").read_text())
    config["pretrained_cfg"].update(facts)
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(WeightsError, match="crop_pct"):
        create_model(f"local-dir:{folder}")


def test_an_absurd_size_for_attention_is_refused_where_it_is_used() -> None:
    model = small_model(NAME, dynamic_img_size=True)
    model.pretrained_cfg = PretrainedCfg(attention_size=10**6)
    with pytest.raises(InputError, match="5,208,312,500 patches"):
        fit_photo(model, Image.new("RGB", (40, 30)))


# What is no model's folder


def edit(folder: Path, **changes: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return save_pretrained(small_model(NAME), tmp_path / "model")


def load(folder: Path) -> Crate:
    model: Crate = create_model(f"local-dir:{folder}", pretrained=True)
    return model


def test_a_missing_folder_or_file(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=r"there is no folder .*gone"):
        load(tmp_path / "gone")
    (tmp_path / "empty").mkdir()
    with pytest.raises(WeightsError, match=r"config\.json"):
        load(tmp_path / "empty")
    (folder / "model.safetensors").rename(folder / "weights.bin")
    with pytest.raises(WeightsError, match=r"no weights in .*model\.safetensors.*checkpoint_path"):
        load(folder)
    create_model(f"local-dir:{folder}")  # without weights, the config is enough


def test_a_truncated_weight_file(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(WeightsError, match="damaged"):
        load(folder)


@pytest.mark.parametrize(
    "changes",
    [
        {"architecture": None},
        {"architecture": 3},
        {"model_args": [1]},
        {"pretrained_cfg": "text"},
    ],
)
def test_a_config_that_lacks_what_is_needed(folder: Path, changes: dict[str, Any]) -> None:
    edit(folder, **changes)
    with pytest.raises(WeightsError, match="'architecture'"):
        load(folder)


@pytest.mark.parametrize("size", [3, [3, 224], [3, 224, "224"], [3, 0, 224]])
def test_a_config_with_a_size_that_is_none(folder: Path, size: object) -> None:
    edit(folder, pretrained_cfg={"input_size": size})
    with pytest.raises(WeightsError, match="'input_size'"):
        load(folder)


def test_a_config_of_an_unknown_model_or_option(folder: Path) -> None:
    edit(folder, architecture="crate_tny_patch16_224")
    with pytest.raises(UnknownNameError, match="crate_tiny_patch16_224"):
        load(folder)
    edit(folder, architecture=NAME, model_args={"dpth": 3})
    with pytest.raises(UnknownNameError, match="'depth'"):
        load(folder)


def test_a_config_that_does_not_fit_its_weights(folder: Path) -> None:
    args = json.loads((folder / "config.json").read_text())["model_args"]
    edit(folder, model_args={**args, "depth": 4})
    with pytest.raises(WeightsError, match=r"blocks\.3\.\S* is missing"):
        load(folder)


def test_fields_of_timm_that_are_not_ours_are_passed_over(folder: Path) -> None:
    edit(folder, pretrained_cfg={"crop_pct": 0.9, "std": [1, 1, 1]}, architectures=["x"])
    assert load(folder).pretrained_cfg.std == (1, 1, 1)


def test_a_pruned_model_is_saved_with_the_layers_that_it_has(tmp_path: Path) -> None:
    model = small_model(NAME)
    model.prune_intermediate_layers([1], prune_head=False)
    save_pretrained(model, tmp_path)
    again = create_model(f"local-dir:{tmp_path}", pretrained=True)
    assert len(again.blocks) == 2
    assert again.state_dict().keys() == model.state_dict().keys()


def test_a_model_that_its_options_do_not_make_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    model = small_model(NAME)
    model.prune_intermediate_layers([1], prune_norm=True)
    with pytest.raises(InputError, match=r"norm\.weight"):
        save_pretrained(model, tmp_path)
    assert contents(tmp_path) == {}


def test_the_readme_says_how_to_load_and_is_not_written_over(tmp_path: Path) -> None:
    save_pretrained(small_model(NAME), tmp_path, repo_id="org/mine")
    text = (tmp_path / "README.md").read_text()
    assert 'create_model("hf-hub:org/mine", pretrained=True)' in text
    assert NAME in text
    (tmp_path / "README.md").write_text("mine")
    save_pretrained(small_model(NAME), tmp_path)
    assert (tmp_path / "README.md").read_text() == "mine"


def test_a_folder_without_options_has_the_pooling_of_timms_place(tmp_path: Path) -> None:
    """timm writes no model_args where all is as the name says, and `global_pool` says where the last norm is."""
    folder = save_pretrained(small_model(NAME, global_pool="avg"), tmp_path)
    config = json.loads((folder / "config.json").read_text())
    assert config["model_args"].pop("global_pool") == "avg"
    (folder / "config.json").write_text(json.dumps(config))
    for options in ({}, {"global_pool": "avg"}, {"global_pool": "mean"}):
        model = create_model(f"local-dir:{folder}", pretrained=True, **options)
        assert "fc_norm.weight" in model.load_report.loaded
        assert model.global_pool == (options or {"global_pool": "avg"})["global_pool"]


def test_another_pooling_leaves_the_norm_where_the_weights_have_it(tmp_path: Path) -> None:
    folder = save_pretrained(small_model(NAME), tmp_path)
    model = create_model(f"local-dir:{folder}", pretrained=True, global_pool="avg")
    assert model.global_pool == "avg" and "norm.weight" in model.load_report.loaded
    again = create_model(f"local-dir:{save_pretrained(model, tmp_path / 'again')}", pretrained=True)
    assert again.global_pool == "avg"
    images = images_for(model)
    with torch.no_grad():
        assert torch.equal(again.eval()(images), model.eval()(images))


def test_a_model_that_was_never_given_weights_does_not_claim_their_origin(tmp_path: Path) -> None:
    name = "crate_alpha_base_patch16_224.in21k_ft_in1k"
    model = create_model(name, depth=1, embed_dim=16, num_heads=2, img_size=32)
    save_pretrained(model, tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    facts = config["pretrained_cfg"]
    assert (facts["tag"], facts["license"], config["whitebox_crate"]["origin"]) == ("", "", "")
    assert facts["interpolation"] == "bilinear"
    assert "authors" not in (tmp_path / "README.md").read_text()
