"""The transition of the structure module's single representation."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from paperops.nn.initialisation import he_normal, zero
from paperops.ops import _checks


class StructureModuleTransitionLayer(nn.Module):
    """s + linear_3(relu(linear_2(relu(linear_1(s))))): line 8 of Algorithm 20.

    Args:
        c: channels.
        device, dtype: of the parameters.

    Shapes:
        ``forward(s)``: ``[*, c]`` to the same.
    """

    def __init__(self, c: int, **made: Any) -> None:
        super().__init__()
        self.linear_1 = nn.Linear(c, c, **made)
        self.linear_2 = nn.Linear(c, c, **made)
        self.linear_3 = nn.Linear(c, c, **made)

    def forward(self, s: Tensor) -> Tensor:
        update: Tensor = self.linear_3(torch.relu(self.linear_2(torch.relu(self.linear_1(s)))))
        return s + update


class StructureModuleTransition(nn.Module):
    """Transition layers, dropout and a layer norm: lines 8 and 9 of Algorithm 20.

    Args:
        c: channels.
        num_layers: transition layers; AlphaFold2 has one.
        dropout_rate: probability of dropping.
        device, dtype: of the parameters.

    Parameters, by OpenFold's names: ``layers.<number>.linear_1``, ``linear_2``, ``linear_3``, and ``layer_norm``.

    Shapes:
        ``forward(s)``: ``[*, c]`` to the same.
    """

    def __init__(
        self,
        c: int,
        num_layers: int,
        dropout_rate: float,
        *,
        device: Any = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        c = _checks.positive_int("c", c)
        num_layers = _checks.positive_int("num_layers", num_layers)
        made: dict[str, Any] = {"device": device, "dtype": dtype}
        self.layers = nn.ModuleList(StructureModuleTransitionLayer(c, **made) for _ in range(num_layers))
        self.dropout = nn.Dropout(_checks.probability("dropout_rate", dropout_rate))
        self.layer_norm = nn.LayerNorm(c, **made)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Start again, as a new module would."""
        for layer in self.layers:
            assert isinstance(layer, StructureModuleTransitionLayer)
            he_normal(layer.linear_1)
            he_normal(layer.linear_2)
            zero(layer.linear_3)
        self.layer_norm.reset_parameters()

    def forward(self, s: Tensor) -> Tensor:
        """The new single representation, see the class."""
        for layer in self.layers:
            s = layer(s)
        out: Tensor = self.layer_norm(self.dropout(s))
        return out
