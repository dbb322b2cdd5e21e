"""Which weights exist, as data: architecture -> facts about each set of weights, the default one first.

Revisions, hashes and licences of files on the Hub come from their pages there. `checked` says how each entry was
tested: most with a file of the same names and shapes, not with the published file.
"""

from __future__ import annotations

from dataclasses import replace
from importlib import resources

from .pretrained_cfg import PretrainedCfg


def _labels(name: str) -> tuple[str, ...]:
    file = resources.files("whitebox_crate") / "weights" / f"{name}.labels.txt"
    return tuple(file.read_text(encoding="utf-8").splitlines())


_NANO = PretrainedCfg(
    tag="tuxpaint_composites",
    file="crate_nano_patch6_96.safetensors",
    sha256="793036643b7a060a67473409d8de87da3e877ec09733d80c7aad3d6f6736b1f9",
    input_size=(3, 96, 96),
    num_classes=258,
    label_names=_labels("crate_nano_patch6_96"),
    attention_layer=4,
    attention_head=1,
    attention_size=144,
    license="apache-2.0",
    origin="whitebox-crate train on composites of photographed objects; docs/cards/crate_nano.md has all of it",
    paper="arXiv 2308.16271",
    checked="file",
)

# The head that shows the object differs between photographs; the mean of the heads of layer 5 is best.
_NANO_SCENES = replace(
    _NANO,
    tag="scene_composites",
    file="crate_nano_patch6_96.scene_composites.safetensors",
    sha256="86db88550439c0eca2d4dfa97e3961d6cd497aca40b15a89848a63753b436c45",
    num_classes=476,
    label_names=_labels("crate_nano_patch6_96.scene_composites"),
    attention_layer=5,
    attention_head=None,
    origin="recipes.train_nano, from crate_nano.tuxpaint_composites; docs/cards/crate_nano_scenes.md has all of it",
)

# Trained further, with photographs of other things as half of each batch.
_NANO_PHOTOGRAPHS = replace(
    _NANO_SCENES,
    tag="scenes_and_photographs",
    file="crate_nano_patch6_96.scenes_and_photographs.safetensors",
    sha256="b7e3397893b26a718de05cdec5e6763f9c129d83ccfd1d6bda14747204812c48",
    num_classes=676,
    label_names=_labels("crate_nano_patch6_96.scenes_and_photographs"),
    origin="recipes.train_nano, from crate_nano.scene_composites; docs/cards/crate_nano_photographs.md has all of it",
)

# The control: the same scenes and names, for a ViT.
_VIT_NANO = replace(
    _NANO_SCENES,
    file="vit_nano_patch6_96.safetensors",
    sha256="006fe43372ecea8e66bd4b4b76385769b989b0e9b43a05cb1dc1e68575a27455",
    attention_layer=3,
    origin="recipes.train_nano; docs/cards/vit_nano.md has all of it",
    paper="arXiv 2010.11929",
)

_PICO = PretrainedCfg(
    tag="fashion_mnist_composites",
    file="crate_pico_patch4_32.safetensors",
    sha256="0a9bfa839263b3de350336d46add6514baf07062447e9943633d77d204dcbbb7",
    input_size=(3, 32, 32),
    num_classes=10,
    label_names=_labels("crate_pico_patch4_32"),
    attention_layer=3,
    attention_head=2,
    attention_size=32,
    license="apache-2.0",
    origin="whitebox-crate train on composites of garments; docs/cards/crate_pico.md has all of it",
    paper="arXiv 2308.16271",
    checked="file",
)

# Official CRATE: on file hosts that serve people, not programs.
_OFFICIAL = PretrainedCfg(checked="shapes", license="mit", origin="CRATE's authors, github.com/Ma-Lab-Berkeley/CRATE")
_CRATE_SMALL = replace(
    _OFFICIAL,
    tag="in1k",
    url="https://drive.google.com/file/d/1hYgDJl4EKHYfKprwhEjmWmWHuxnK6_h8/view",
    interpolation="bilinear",  # Resize(256) and CenterCrop(224) of its main.py
    crop_pct=0.875,
    paper="arXiv 2306.01129",
    notes="Issue 30 of its repository says that the link is dead, issue 28 that the paper's weights are others.",
)
_CRATE_DEMO = replace(
    _OFFICIAL,
    tag="in21k",
    file="crate-demo.pth",
    url="https://colab.research.google.com/drive/1rYn_NlepyW7Fu5LDliyBDmFZylHco7ss",
    num_classes=21842,
    paper="arXiv 2308.16271",
    notes="Its head is two Linears one after the other, folded into one by converting. Preprocessing is not stated.",
)
_CRATE_MAE = replace(
    _OFFICIAL,
    tag="in1k",
    url="https://drive.google.com/file/d/11i5BMwymqOsunq44WD3omN5mS6ZREQPO/view",
    crop_pct=0.875,  # as MAE evaluates
    num_classes=0,
    paper="arXiv 2404.02446",
    notes="Encoder and decoder; no classifier.",
)

# CRATE-alpha; 19,167 classes where trained on ImageNet-21k. The torch files were evaluated by Resize(224) and
# CenterCrop(224), the JAX originals by an area resize to 256 and a central crop of 224; the last norm of the originals
# has eps 1e-6, that of the torch code 1e-5.
_ALPHA = PretrainedCfg(
    hf_hub_id="UCSC-VLAA/CRATE-alpha",
    revision="24a82372e2d3d11fd173fd826999bc410c8f1341",
    license="apache-2.0",
    origin="CRATE-alpha's authors, github.com/UCSC-VLAA/CRATE-alpha",
    paper="arXiv 2405.20299",
    checked="shapes",
)
_ALPHA_IN1K = replace(_ALPHA, tag="in21k_ft_in1k", interpolation="bilinear")
_ALPHA_IN21K = replace(
    _ALPHA,
    tag="in21k",
    num_classes=19167,
    interpolation="box",
    crop_pct=0.875,
)
_ALPHA_JAX = replace(
    _ALPHA, tag="in21k_ft_in1k_jax", interpolation="box", crop_pct=0.875, model_args={"norm_eps": 1e-6}
)


def _top1(percent: float) -> str:
    return f"{percent}% top-1 on ImageNet-1k."


# CBT: on such a file host too. Resize(256) and CenterCrop(224) of its main.py.
_CBT = PretrainedCfg(
    tag="in1k",
    interpolation="bilinear",
    crop_pct=0.875,
    first_conv="patch_embed.proj.0.0",
    license="mit",
    origin="CBT's authors, github.com/QishuaiWen/CBSA",
    paper="arXiv 2509.16875",
    checked="shapes",
)


def _cbt(file: str, percent: float) -> list[PretrainedCfg]:
    return [replace(_CBT, url=f"https://drive.google.com/file/d/{file}/view", notes=_top1(percent))]


# timm's conversions of the backbones that the segmentation paper compares with.
_TIMM = PretrainedCfg(file="model.safetensors", crop_pct=0.9, checked="shapes", license="apache-2.0")
_DINO = replace(
    _TIMM,
    tag="dino",
    num_classes=0,
    origin="DINO's authors, github.com/facebookresearch/dino, converted by timm",
    paper="arXiv 2104.14294",
)
# With registers, the position of [CLS] is part of its token, as timm converts it.
_DINOV2 = replace(
    _TIMM,
    tag="lvd142m",
    input_size=(3, 518, 518),
    crop_pct=1.0,
    num_classes=0,
    origin="DINOv2's authors, github.com/facebookresearch/dinov2, converted by timm",
    paper="arXiv 2304.07193",
)
_DINOV2_REG = replace(_DINOV2, paper="arXiv 2309.16588")
_AUGREG = replace(
    _TIMM,
    tag="augreg_in21k",
    mean=(0.5, 0.5, 0.5),
    std=(0.5, 0.5, 0.5),
    num_classes=21843,
    origin="github.com/google-research/vision_transformer, converted by timm",
    paper="arXiv 2106.10270",
)

# SimDINO: on a file host that serves people, not programs.
_SIMDINO = PretrainedCfg(
    crop_pct=0.875,  # Resize(256) and CenterCrop(224) of its evaluations
    num_classes=0,
    origin="SimDINO's authors, github.com/RobinWu218/SimDINO",
    paper="arXiv 2502.10385",
    checked="shapes",
)


def _simdino(tag: str, file_id: str, knn: float, linear: float) -> PretrainedCfg:
    return replace(
        _SIMDINO,
        tag=tag,
        url=f"https://drive.google.com/file/d/{file_id}/view",
        notes=f"ImageNet-1k: {knn}% by k-NN, {linear}% by a linear head. Licence: see there.",
    )


PRETRAINED: dict[str, list[PretrainedCfg]] = {
    "crate_nano_patch6_96": [_NANO_SCENES, _NANO_PHOTOGRAPHS, _NANO],
    "crate_pico_patch4_32": [_PICO],
    "crate_small_patch16_224": [_CRATE_SMALL],
    "crate_demo_base_patch8_224": [_CRATE_DEMO],
    "crate_mae_base_patch16_224": [_CRATE_MAE],
    "cbt_tiny_patch16_224": _cbt("1GovOGBPDkHJDpOYX8KVJJeDrjwQvHfhb", 63.2),
    "cbt_small_patch16_224": _cbt("1sKZBbIxvgPJmfO89TKaggKD0EdUJ7jSu", 71.4),
    "cbt_base_patch16_224": _cbt("1CouOjiy3T9YRhYJFk4gL8PVOgiJ-bFgn", 73.4),
    "cbt_large_patch16_224": _cbt("1xdEClU6xb5qSwxvDZROKfLac8mJ7R6vb", 74.4),
    "crate_alpha_base_patch32_224": [
        replace(
            _ALPHA_IN21K,
            file="torch/in21k_Pretrain/crate_alpha_B32_in21k.pth",
            sha256="b8a0678dc94ab84d72d4a2f61a19f92b83823b45a58bd291ace8ee82895adf35",
        )
    ],
    "crate_alpha_base_patch16_224": [
        replace(
            _ALPHA_IN1K,
            file="torch/crate_alpha_B16.pth",
            sha256="079cac9145229af5f88e9500e3f95c4cc812509c8d93fdc99171e31808e3e781",
            notes=_top1(81.2),
        ),
        replace(_ALPHA_JAX, file="jax/crate_alpha_B16_in1k.npz", notes=_top1(81.2)),
        replace(
            _ALPHA_IN21K,
            file="torch/in21k_Pretrain/crate_alpha_B16_IN21K",
            sha256="de8e8a71d9edc00822f1a98eafbbfa4fe555ea83c35c9a18eef2272e99b61aca",
        ),
    ],
    "crate_alpha_base_patch8_224": [
        replace(_ALPHA_JAX, file="jax/crate_alpha_B8_in1k.npz", notes=_top1(83.2)),
        replace(
            _ALPHA_IN21K,
            file="torch/in21k_Pretrain/crate_alpha_B8_IN21K",
            sha256="d79d1cb8f62143cb2cad00c0c26b2764d34212635babf140959792753e3b3eb0",
        ),
    ],
    "crate_alpha_large_patch32_224": [
        replace(
            _ALPHA_IN21K,
            file="torch/in21k_Pretrain/crate_alpha_L32_in21k.pth",
            sha256="74e99f70f4783dfeb98a29d954e67793c5811b1156d3653d110f2356fd11ea34",
        )
    ],
    "crate_alpha_large_patch14_224": [
        replace(
            _ALPHA_IN1K,
            file="torch/crate_alpha_L14.pth",
            sha256="35b042fb5249f3dc09ee43b6c8cb6a70b6cf3758d37ed760bcb79652e0013386",
            notes=_top1(83.9),
        ),
        replace(_ALPHA_JAX, file="jax/crate_alpha_L14_in1k.npz", notes=_top1(83.9)),
        replace(_ALPHA_IN21K, file="torch/in21k_Pretrain/crate_alpha_L14_IN21K"),
    ],
    "crate_alpha_large_patch8_224": [
        replace(_ALPHA_JAX, file="jax/crate_alpha_L8_in1k.npz", notes=_top1(85.1)),
        replace(_ALPHA_IN21K, file="torch/in21k_Pretrain/crate_alpha_L8_IN21K"),
    ],
    "vit_small_patch16_224": [
        replace(_DINO, hf_hub_id="timm/vit_small_patch16_224.dino"),
        replace(_AUGREG, hf_hub_id="timm/vit_small_patch16_224.augreg_in21k"),
    ],
    "vit_small_patch8_224": [
        replace(
            _DINO,
            hf_hub_id="timm/vit_small_patch8_224.dino",
            revision="06cd8ed4b3fcef6305223df082ef8c19bc775704",
            sha256="e1b79616ce6d1b8dc3cc0d5952b6d0958356a189122882493e665d28f20654a0",
        )
    ],
    "vit_base_patch16_224": [
        replace(
            _DINO,
            hf_hub_id="timm/vit_base_patch16_224.dino",
            revision="c4ae505355ab2ffd6d399d6ab7a71ce3f3852465",
            sha256="93181583427d6de3e18ab0e6ee4df35736cfc51a3c1bf9ae0e9b53b1316598dc",
        ),
        replace(_AUGREG, hf_hub_id="timm/vit_base_patch16_224.augreg_in21k"),
        _simdino("simdino", "1nqcX0IgKQ8H3ZFJKaEx_O5wTVqdorLyQ", 74.9, 77.3),
    ],
    "vit_base_patch8_224": [
        replace(
            _DINO,
            hf_hub_id="timm/vit_base_patch8_224.dino",
            revision="57b4c6dac26b2cff845bfbed5bf37c9dd32ec496",
            sha256="01be14b99784a4c0970a5703214513588daf27014e908ac7ea08967b7bd80f5f",
        ),
        replace(_AUGREG, hf_hub_id="timm/vit_base_patch8_224.augreg_in21k"),
    ],
    "vit_large_patch16_224": [_simdino("simdino", "1jy27VYHHSxllMqWr5DiKk80y9ZBrKkPV", 75.6, 77.4)],
    "vit_base_patch16_reg4_simdinov2": [_simdino("in1k", "1g_f3aEFdfiKCn8IH11Y4FwtEDu1pPbQv", 78.1, 79.7)],
    "vit_large_patch16_reg4_simdinov2": [_simdino("in1k", "1IotEWszh1chGtzwl8X_ul6j3ACT7Tn6i", 81.1, 82.4)],
    "vit_nano_patch6_96": [_VIT_NANO],
    **{
        f"vit_{size}_patch14_{registers}dinov2": [
            replace(facts, hf_hub_id=f"timm/vit_{size}_patch14_{registers}dinov2.lvd142m")
        ]
        for registers, facts in (("", _DINOV2), ("reg4_", _DINOV2_REG))
        for size in ("small", "base", "large")
    },
}
