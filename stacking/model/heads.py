"""Maps the encoder's output to vocabulary scores. Shapes: N positions, H hidden, V vocabulary."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from stacking.model.config import ModelConfig
from stacking.model.kernels import ACTIVATIONS, PLAIN
from stacking.model.layers import layer_norm


class TiedDecoder(nn.Module):
    """Scores against the token embedding.

    It registers the embedding's own Parameter instead of receiving it in each call: ZeRO-3 gathers a parameter for the
    modules that own it, and no other module may use it.
    """

    def __init__(self, tokens: nn.Embedding) -> None:
        super().__init__()
        self.kernels = PLAIN
        self.weight = tokens.weight

    def forward(self, hidden: Tensor, bias: Tensor | None = None) -> Tensor:
        """Maps [N, H] to [N, V]."""
        return self.kernels.decode(hidden, self.weight, bias)


class PostLNMLMHead(nn.Module):
    """Linear, activation, norm, tied decoder with an output bias: Devlin et al. (2019)."""

    def __init__(self, config: ModelConfig, tokens: nn.Embedding) -> None:
        super().__init__()
        self.activation = ACTIVATIONS[config.activation]
        self.transform = nn.Linear(config.hidden, config.hidden)
        self.norm = layer_norm(config)
        self.decoder = TiedDecoder(tokens)
        self.bias = nn.Parameter(torch.zeros(config.vocabulary))

    def forward(self, hidden: Tensor) -> Tensor:
        """Maps [N, H] to [N, V]."""
        return self.decoder(self.norm(self.activation(self.transform(hidden))), self.bias)


class PreLNMLMHead(nn.Module):
    """Linear, activation, affine norm, tied decoder without a bias: Gong et al. (2019)."""

    def __init__(self, config: ModelConfig, tokens: nn.Embedding) -> None:
        super().__init__()
        self.activation = ACTIVATIONS[config.activation]
        self.transform = nn.Linear(config.hidden, config.hidden)
        self.norm = layer_norm(config)
        self.decoder = TiedDecoder(tokens)

    def forward(self, hidden: Tensor) -> Tensor:
        """Maps [N, H] to [N, V]."""
        return self.decoder(self.norm(self.activation(self.transform(hidden))))
