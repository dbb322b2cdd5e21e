"""evaluate: the paper's measurements over whole data sets. Any number of processes; a killed run resumes."""

from __future__ import annotations

import argparse
from functools import partial

from ..errors import InputError, printable, require
from ..evaluation import (
    LabelledImages,
    Outcome,
    Run,
    evaluate_attention,
    evaluate_maskcut,
    evaluate_masks,
    read_folder,
    read_voc,
)
from ..evaluation.attention import RULES
from ..evaluation.coco import check_images, read_annotations
from ..segmentation.methods import choose_method
from ._common import load


def voc(options: argparse.Namespace) -> int:
    """Scores [CLS] attention on Pascal VOC."""
    run = run_of(options, data="voc", split=options.split)
    return _attention(options, run, read_voc(options.root, options.split), by_class=True)


def folder(options: argparse.Namespace) -> int:
    """Scores [CLS] attention on any folder of images and masks."""
    run = run_of(options, data="folder", objects=options.objects)
    return _attention(options, run, read_folder(options.root, options.void), by_class=not options.objects)


def coco(options: argparse.Namespace) -> int:
    """Scores MaskCut on COCO."""
    require("faster_coco_eval", "eval")
    run, images = run_of(options, data="coco", split=options.split), options.root / options.split
    annotations = options.annotations or options.root / "annotations" / f"instances_{options.split}.json"
    run.check_files(partial(check_images, read_annotations(annotations), images))  # before a model is loaded
    return _show(
        evaluate_maskcut(
            run,
            load(options),
            annotations,
            images,
            name=options.model,
            size=options.size,
            layer=options.layer,
            n=options.n,
            tau=options.tau,
            state=options.state,
        )
    )


def run_of(options: argparse.Namespace, **about: object) -> Run:
    """Where a run writes, and what it does about broken files."""
    return Run(options.out, options.skip_broken, "--skip-broken", about, options.workers)


def _attention(options: argparse.Namespace, run: Run, data: LabelledImages, by_class: bool) -> int:
    if options.method is not None:
        return _masks(options, run, data, by_class)
    run.check_files(data.check_files)  # before a model is loaded
    return _show(
        evaluate_attention(
            run,
            load(options),
            data,
            name=options.model,
            size=options.size,
            layer=options.layer,
            rules=[rule for rule in RULES if rule in (options.rules or RULES)],
            keep=0.6 if options.keep is None else options.keep,
            by_class=by_class,
        )
    )


def _masks(options: argparse.Namespace, run: Run, data: LabelledImages, by_class: bool) -> int:
    if options.rules is not None:
        raise InputError(
            "--rules is for single heads, but --method scores its own masks: leave --rules out, or --method"
        )
    settings = {"layer": options.layer, "keep": options.keep}
    choose_method(options.method, **settings)  # before a model is loaded
    run.check_files(data.check_files)
    return _show(
        evaluate_masks(
            run,
            load(options),
            data,
            name=options.model,
            method=options.method,
            edges=options.edges,
            size=options.size,
            by_class=by_class,
            **settings,
        )
    )


def _show(outcome: Outcome | None) -> int:
    if outcome is not None:
        print(printable(outcome.table))  # it has class names from the data
        print(outcome.path)
    return 0
