"""A small transformer over tokens of all modalities."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor, nn

from fusionkit_heads.presence import blank_absent

if TYPE_CHECKING:
    from fusionkit_heads import CrossAttentionConfig


class CrossAttention(nn.Module):
    """Maps (n, d) per modality to tokens that attend to each other; the fusion token gives (n, output_dim).

    Each feature vector becomes `n_tokens` tokens by a linear map, each token (n, k, d) of an encoder another
    one, plus what is learned of its modality. A token of ours reads all others. No token attends to one that
    is absent; where there is nothing at all, the fusion token has itself.
    """

    def __init__(self, config: CrossAttentionConfig, input_dims: Mapping[str, int], output_dim: int) -> None:
        super().__init__()
        self.modalities, self.n_tokens, self.width = tuple(input_dims), config.n_tokens, config.width
        self.input_dropout = nn.Dropout(config.input_dropout)
        # a prefix: a modality may be called as a method of ModuleDict is
        self.maps = nn.ModuleDict(
            {
                f"of_{name}": nn.Linear(dim, config.n_tokens * config.width, bias=False)
                for name, dim in input_dims.items()
            }
        )
        # 0.02 as in BERT (Devlin et al. 2019)
        self.embeddings = nn.Parameter(torch.randn(len(input_dims), config.width) * 0.02)
        self.fusion_token = nn.Parameter(torch.randn(config.width) * 0.02)
        self.blocks = nn.ModuleList(
            Block(config.width, config.n_attention_heads, config.dropout) for _ in range(config.n_layers)
        )
        self.output = nn.Sequential(nn.LayerNorm(config.width), nn.Linear(config.width, output_dim))

    def forward(self, features: Mapping[str, Tensor], present: Mapping[str, Tensor]) -> Tensor:
        """Returns (n, output_dim)."""
        parts = blank_absent(features, present, self.modalities)
        n_rows = len(parts[0])
        tokens, here = [self.fusion_token.expand(n_rows, 1, -1)], [parts[0].new_ones(n_rows, 1).bool()]
        for name, part, embedding in zip(self.modalities, parts, self.embeddings, strict=True):
            mapped = self.maps[f"of_{name}"](self.input_dropout(part))
            n_tokens = self.n_tokens if part.ndim == 2 else part.shape[1]
            tokens.append(mapped.reshape(n_rows, n_tokens, self.width) + embedding)
            mask = present[name]
            here.append(mask if mask.ndim == 2 else mask[:, None].expand(-1, n_tokens))
        values, is_here = torch.cat(tokens, 1), torch.cat(here, 1)
        for block in self.blocks:
            values = block(values, is_here)
        return cast(Tensor, self.output(values[:, 0]))


class Block(nn.Module):
    """One layer of a transformer's encoder, normalised before each half: (n, k, width) -> (n, k, width).

    Written out, since torch's own takes another way in eval mode, with other digits.

    Source: Vaswani et al. 2017; the place of the norms: Xiong et al. 2020, arXiv:2002.04745.
    """

    def __init__(self, width: int, n_heads: int, dropout: float) -> None:
        super().__init__()
        self.n_heads = n_heads
        self.attention_norm, self.layers_norm = nn.LayerNorm(width), nn.LayerNorm(width)
        self.to_attention, self.from_attention = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.layers = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))
        self.dropout = nn.Dropout(dropout)

    def forward(self, tokens: Tensor, is_here: Tensor) -> Tensor:
        """Returns the tokens (n, k, width) after each has read those that are there, (n, k)."""
        tokens = tokens + self.dropout(self._attend(self.attention_norm(tokens), is_here))
        return cast(Tensor, tokens + self.dropout(self.layers(self.layers_norm(tokens))))

    def _attend(self, tokens: Tensor, is_here: Tensor) -> Tensor:
        n_rows, n_tokens, width = tokens.shape
        shape = (n_rows, n_tokens, 3, self.n_heads, width // self.n_heads)
        queries, keys, values = self.to_attention(tokens).reshape(shape).permute(2, 0, 3, 1, 4)
        scores = queries @ keys.transpose(2, 3) * shape[-1] ** -0.5
        weights = scores.masked_fill(~is_here[:, None, None, :], -torch.inf).softmax(3)
        read = (weights @ values).transpose(1, 2).reshape(n_rows, n_tokens, width)
        return cast(Tensor, self.from_attention(read))
