"""Measures what a layer does against what it was derived to do: rates, sparsity, subspaces, heads."""

from .descent import DescentReport, Verdict, verify_descent
from .explanation import explain
from .heads import HeadOutputs, head_contributions, head_outputs
from .interventions import intervene
from .layer_subspaces import (
    LayerSubspaces,
    SubspaceReport,
    head_bases,
    subspace_matrices,
    subspace_report,
    token_energy,
)
from .layerwise import LayerwiseReport, RateSettings, Series, layerwise_analysis
from .lens import LogitLens, logit_lens
from .plots import plot_layerwise
from .rates import (
    coding_rate,
    effective_rank,
    l0,
    l1,
    rate_reduction,
    sparse_rate_reduction,
    subspace_coding_rate,
    variational_coding_rate,
)
from .replacing import replace_states
from .reports import report
from .rollout import attention_rollout, cls_rollout
from .subspaces import (
    DictionaryGeometry,
    HeadBases,
    ProjectionAlignment,
    dictionary_geometry,
    effective_dimension,
    orthonormal_bases,
    principal_angles,
    projection_alignment,
    subspace_energy,
    subspace_overlap,
)

__all__ = [
    "DescentReport",
    "DictionaryGeometry",
    "HeadBases",
    "HeadOutputs",
    "LayerSubspaces",
    "LayerwiseReport",
    "LogitLens",
    "ProjectionAlignment",
    "RateSettings",
    "Series",
    "SubspaceReport",
    "Verdict",
    "attention_rollout",
    "cls_rollout",
    "coding_rate",
    "dictionary_geometry",
    "effective_dimension",
    "effective_rank",
    "explain",
    "head_bases",
    "head_contributions",
    "head_outputs",
    "intervene",
    "l0",
    "l1",
    "layerwise_analysis",
    "logit_lens",
    "orthonormal_bases",
    "plot_layerwise",
    "principal_angles",
    "projection_alignment",
    "rate_reduction",
    "replace_states",
    "report",
    "sparse_rate_reduction",
    "subspace_coding_rate",
    "subspace_energy",
    "subspace_matrices",
    "subspace_overlap",
    "subspace_report",
    "token_energy",
    "variational_coding_rate",
    "verify_descent",
]
