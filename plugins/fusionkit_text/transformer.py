"""A transformer's tokens, pooled; torch and transformers load here, not when components are listed."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from fusionkit import Cells, ColumnSpec, Cut, DataError, InputSpec, RecipeError
from fusionkit_text import TransformersConfig
from fusionkit_text.text_input import OneText

VERSION = 1
"""Part of every address: raised when the same text would give other tokens."""
FILES = ("config.json", "tokenizer.json")
"""What must lie beside the weights."""


class TokensInput(OneText):
    """Reads a text as tokens; a batch is {ids (n, k), mask (n, k)}, as long as its longest text."""

    def __init__(self, config: TransformersConfig, columns: Mapping[str, ColumnSpec]) -> None:
        super().__init__(columns)
        folder = _folder_of(config.model)
        self.length = config.length
        self._files = {name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in FILES}
        self._tokenizer = _load_tokenizer(folder)

    def identity(self) -> Mapping[str, Any]:
        """Returns all that changes tokens, and what config.json says of the model: weights do not show it."""
        import tokenizers

        return {
            "input": "transformers_text",
            "version": VERSION,
            "length": self.length,
            "files": self._files,
            "tokenizers": tokenizers.__version__,
        }

    def load(self, cells: Cells, cuts: Sequence[Cut]) -> list[Any]:
        """Cuts the text into tokens once and returns (k,) int64 for each cut."""
        ids = self._tokenizer(self.text(cells), truncation=True, max_length=self.length)["input_ids"]
        if not ids:
            raise DataError(f"column {self.columns[0]}: the tokenizer finds no token in the text. Mend it.")
        return [torch.tensor(ids, dtype=torch.int64) for _ in cuts]

    def collate(self, items: Sequence[Tensor]) -> dict[str, Tensor]:
        """Fills up with zeros, which the mask hides."""
        pad = nn.utils.rnn.pad_sequence
        ones = [torch.ones_like(item) for item in items]
        return {"ids": pad(list(items), batch_first=True), "mask": pad(ones, batch_first=True)}


class TransformersText(nn.Module):
    """Gives the mean of a text's last hidden states, or the first of them.

    Shape:
        ids (n, k), mask (n, k) -> (n, output_dim), the model's hidden size.
    """

    def __init__(self, config: TransformersConfig, columns: Mapping[str, ColumnSpec]) -> None:
        super().__init__()
        _require_transformers()
        self.input_spec: InputSpec = TokensInput(config, columns)
        self.model = _load_model(_folder_of(config.model))
        self.pooling = config.pooling
        self.output_dim = self.token_dim = int(self.model.config.hidden_size)
        self.n_tokens = config.length
        most = getattr(self.model.config, "max_position_embeddings", None) or config.length
        if config.length > most:
            raise RecipeError(f"length: the model reads at most {most} tokens (given: {config.length}).")

    def forward(self, inputs: Mapping[str, Tensor]) -> Tensor:
        """Returns (n, output_dim)."""
        tokens, mask = self.tokens(inputs)
        if self.pooling == "cls":
            return tokens[:, 0]
        return (tokens * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)

    def tokens(self, inputs: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Returns the last hidden states, (n, k, token_dim), and which are no padding, (n, k)."""
        mask = inputs["mask"]
        if not len(mask):  # which transformers' models do not take
            return torch.zeros(*mask.shape, self.token_dim, device=mask.device), mask.bool()
        found: Tensor = self.model(input_ids=inputs["ids"], attention_mask=mask).last_hidden_state
        return found, mask.bool()


def _require_transformers() -> None:
    try:
        import transformers
    except ImportError as error:
        raise RecipeError(
            f"use: transformers_text needs transformers, which is not installed ({error}). "
            "Say: pip install 'fusionkit[text]'."
        ) from None
    cast(Any, transformers.utils.logging.disable_progress_bar)()


def _folder_of(model: str) -> Path:
    """Returns a model's folder; raises DataError that names all that it lacks."""
    path = Path(model)
    if path.suffix != ".safetensors":
        raise DataError(f"{path}: not a .safetensors file. Name the model.safetensors of a model's folder.")
    lacking = [name for name in (path.name, *FILES) if not (path.parent / name).is_file()]
    if lacking:
        raise DataError(
            f"{path}: {path.parent} lacks {', '.join(lacking)}. Save model and tokenizer into one folder "
            "with `save_pretrained`; nothing is fetched."
        )
    if path.name != "model.safetensors":
        raise DataError(f"{path}: transformers reads no such name. Call the file model.safetensors.")
    return path.parent


def _load_tokenizer(folder: Path) -> Any:
    from transformers import PreTrainedTokenizerFast

    try:
        return cast(Any, PreTrainedTokenizerFast)(tokenizer_file=str(folder / "tokenizer.json"))
    except Exception as error:  # what a broken file raises is its library's affair
        raise DataError(
            f"{folder / 'model.safetensors'}: tokenizer.json beside it cannot be read ({_line(error)}). "
            "Save it again."
        ) from None


def _load_model(folder: Path) -> Any:
    """Returns the model, from this folder and nowhere else; code that comes with a model is never run."""
    from transformers import AutoModel

    path = folder / "model.safetensors"
    try:
        told = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        if told.get("is_encoder_decoder"):
            raise DataError(f"{path}: an encoder with a decoder, whose tokens are no features. Name another.")
        model, report = AutoModel.from_pretrained(
            folder,
            local_files_only=True,
            trust_remote_code=False,
            use_safetensors=True,
            dtype=torch.float32,
            output_loading_info=True,
        )
    except DataError:
        raise
    except Exception as error:  # what a broken folder raises is its library's affair
        raise DataError(
            f"{path}: the model cannot be loaded ({_line(error)}). Save it again with `save_pretrained`."
        ) from None
    # it would learn nothing: its output is no token
    if getattr(model, "pooler", None) is not None:
        model.pooler = None
    absent = sorted(name for name in report["missing_keys"] if not name.startswith("pooler."))
    if absent:
        raise DataError(
            f"{path}: {len(absent)} tensors are absent, such as {absent[0]}. Save the model again."
        )
    return model


def _line(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:200]
