"""HubVerbs: from_pretrained, save_pretrained and push_to_hub, as on every model of the Hugging Face Hub.

What they do is in `whitebox_crate.hub` and `whitebox_crate.factory`, above this module, and imported when called.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from huggingface_hub import ModelCard, ModelHubMixin

from ..errors import InputError

if TYPE_CHECKING:
    from typing_extensions import Self


class HubVerbs(ModelHubMixin, library_name="whitebox-crate"):
    """huggingface_hub's mixin over this package's own folders; it adds `push_to_hub(repo_id, ...)` as it is."""

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | Path,
        *,
        revision: str | None = None,
        cache_dir: str | Path | None = None,
        token: str | bool | None = None,
        local_files_only: bool = False,
        force_download: bool = False,
        **model_options: Any,
    ) -> Self:
        """Loads a model with its weights from a folder or a Hub repository, in evaluation mode.

        Args:
            pretrained_model_name_or_path: A folder that `save_pretrained` wrote, or "org/name" of a repository.
            revision: Branch, tag or commit of the repository; the main branch if None.
            cache_dir: Cache folder; that of huggingface_hub if None.
            token: Access token, False for none; that of `hf auth login` or `HF_TOKEN` if None.
            local_files_only: Whether to look in the cache only.
            force_download: Whether to download files that are in the cache again.
            **model_options: Options of the model, as in `create_model`.

        Raises:
            WeightsError: If folder or repository cannot be had or do not hold a model.
            InputError: If the model is not of the class that this was called on.
        """
        from ..factory import create_model
        from ..hub import CONFIG, WEIGHTS, fetch

        folder, source = Path(pretrained_model_name_or_path), str(pretrained_model_name_or_path)
        if not folder.is_dir():
            for file in (CONFIG, WEIGHTS):
                folder = fetch(
                    source,
                    file,
                    revision=revision,
                    cache_dir=cache_dir,
                    token=token,
                    local_files_only=local_files_only,
                    force_download=force_download,
                ).parent
                revision = folder.name  # the cache names a snapshot by its commit: both files are of one
        model = create_model(f"local-dir:{folder}", pretrained=True, **model_options)
        if not isinstance(model, cls):
            raise InputError(
                f"{source} holds a {type(model).__name__}, not a {cls.__name__}; call from_pretrained on that class, "
                "or on ImageTransformer for any"
            )
        model.eval()  # type: ignore[attr-defined]  # a module, as every model that has these verbs
        return model

    def save_pretrained(
        self,
        save_directory: str | Path,
        *,
        config: Any = None,
        repo_id: str | None = None,
        push_to_hub: bool = False,
        model_card_kwargs: dict[str, Any] | None = None,
        **push_to_hub_kwargs: Any,
    ) -> str | None:
        """Writes config.json and model.safetensors, and README.md where there is none yet.

        Args:
            save_directory: The folder, made if it does not exist.
            config: None; config.json is written from the model.
            repo_id: Repository to push to; the name of the folder if None.
            push_to_hub: Whether to push as well.
            model_card_kwargs: None or empty; the card is written from the model.
            **push_to_hub_kwargs: As `push_to_hub` takes them.

        Returns:
            The address of the commit if pushed, else None.

        Raises:
            InputError: If `create_model` did not make the model, or a config or card is given.
            OutputError: If the folder cannot be written.
        """
        from .. import hub

        if config is not None or model_card_kwargs:
            raise InputError("config.json and README.md are written from the model; change the files afterwards")
        folder = hub.save_pretrained(self, save_directory)  # type: ignore[arg-type]  # as above
        if not (folder / "README.md").exists():
            hub.write_whole(folder / "README.md", self.generate_model_card().save)
        return self.push_to_hub(repo_id or folder.name, **push_to_hub_kwargs) if push_to_hub else None

    def generate_model_card(self) -> ModelCard:
        """The README.md of the model's repository: what it is, where it comes from, how to load it."""
        from ..hub import model_card

        return ModelCard(model_card(self))  # type: ignore[arg-type]  # as above
