"""HubVerbs: from_pretrained, save_pretrained and push_to_hub, as on every model of the Hugging Face Hub.

They use folders and the Hub through a `Storage`. `whitebox_crate.factory`, which this module must not import, has it.
"""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import huggingface_hub

from .. import _storage
from ..errors import InputError

if TYPE_CHECKING:
    from typing_extensions import Self


class HubVerbs:
    """The methods of huggingface_hub's `ModelHubMixin`, for this package's own folders."""

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
            cache_dir: Cache folder; None takes huggingface_hub's.
            token: Access token. None takes the token of `hf auth login` or `HF_TOKEN`; False sends none.
            local_files_only: Whether to look only in the cache.
            force_download: Whether to download files again that are in the cache.
            **model_options: Options of the model; see `create_model`.

        Raises:
            WeightsError: If the folder or repository cannot be fetched or does not hold a model.
            InputError: If the model is of another class than this method's.
        """
        source = str(pretrained_model_name_or_path)
        model = _storage.provider().load(
            source,
            revision=revision,
            cache_dir=cache_dir,
            token=token,
            local_files_only=local_files_only,
            force_download=force_download,
            model_options=model_options,
        )
        if not isinstance(model, cls):
            raise InputError(
                f"{source} holds a {type(model).__name__}, not a {cls.__name__}; call from_pretrained on that class, "
                "or on ImageTransformer for any class"
            )
        model.eval()  # type: ignore[attr-defined]  # every model with these methods is a module
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
        """Saves the model (see `whitebox_crate.save_pretrained`), and pushes the folder if asked.

        Args:
            save_directory: The folder, made if it does not exist.
            config: None; config.json is written from the model.
            repo_id: Repository to push to; the name of the folder if None.
            push_to_hub: Whether to push too.
            model_card_kwargs: Arguments of `generate_model_card`.
            **push_to_hub_kwargs: Arguments of `push_to_hub`.

        Returns:
            The address of the commit if pushed, else None.

        Raises:
            InputError: If `create_model` did not make the model, or a config is given.
            OutputError: If the folder cannot be written.
        """
        if config is not None:
            raise InputError("config must be None: config.json is written from the model; change the file afterwards")
        named = (model_card_kwargs or {}).get("repo_id") or repo_id or ""
        folder = _storage.provider().save(self, save_directory, named)
        return self.push_to_hub(repo_id or folder.name, **push_to_hub_kwargs) if push_to_hub else None

    def push_to_hub(
        self,
        repo_id: str,
        *,
        private: bool | None = None,
        token: str | None = None,
        branch: str | None = None,
        commit_message: str = "Push model using huggingface_hub.",
        model_card_kwargs: dict[str, Any] | None = None,
        **upload_options: Any,
    ) -> str:
        """Saves the model and uploads it in one commit.

        Args:
            repo_id: "org/name"; made if it does not exist.
            private: Whether a new repository is private; None takes the organization's setting.
            token: Access token; None takes the token of `hf auth login` or `HF_TOKEN`.
            branch: The branch; the main branch if None.
            commit_message: Message of the commit.
            model_card_kwargs: Arguments of `generate_model_card`.
            **upload_options: `create_pr`, `allow_patterns` and others of huggingface_hub's `upload_folder`.

        Returns:
            The address of the commit.
        """
        if upload_options.pop("config", None) is not None:
            raise InputError("config must be None: config.json is written from the model; change the file afterwards")
        api = huggingface_hub.HfApi(token=token)
        repo_id = api.create_repo(repo_id, private=private, exist_ok=True).repo_id
        with TemporaryDirectory() as folder:
            self.save_pretrained(folder, model_card_kwargs={"repo_id": repo_id, **(model_card_kwargs or {})})
            commit: str = api.upload_folder(
                repo_id=repo_id, folder_path=folder, revision=branch, commit_message=commit_message, **upload_options
            )
            return commit

    def generate_model_card(self, repo_id: str = "") -> huggingface_hub.ModelCard:
        """The README.md of the model's repository: its facts, its origin, and how to load it.

        Args:
            repo_id: "org/name" of the repository, if it is known.
        """
        return huggingface_hub.ModelCard(_storage.provider().card(self, repo_id))
