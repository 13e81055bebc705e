"""Torch modules on paperops' ops, with the arguments and state-dict keys of the code that users come from.

Of AlphaFold2's modules that is OpenFold's: a checkpoint of it loads with ``strict=True``, and
:func:`convert_triangle_multiplication` brings other layouts there. Arguments that steer OpenFold's own chunking and
in-place updates are not there: see each module.
"""

from paperops.nn.acmix import ACmix
from paperops.nn.angle_resnet import AngleResnet
from paperops.nn.backbone_update import BackboneUpdate
from paperops.nn.checkpoints import convert_triangle_multiplication
from paperops.nn.dropout import DropoutColumnwise, DropoutRowwise
from paperops.nn.dynopool import DynOPool2d
from paperops.nn.invariant_point_attention import InvariantPointAttention
from paperops.nn.shape_adaptor import ShapeAdaptor
from paperops.nn.shift_kernel import shift_kernel
from paperops.nn.triangle_multiplication import (
    TriangleMultiplicationIncoming,
    TriangleMultiplicationOutgoing,
    TriangleMultiplicativeUpdate,
)

__all__ = [
    "ACmix",
    "AngleResnet",
    "BackboneUpdate",
    "DropoutColumnwise",
    "DropoutRowwise",
    "DynOPool2d",
    "InvariantPointAttention",
    "ShapeAdaptor",
    "TriangleMultiplicationIncoming",
    "TriangleMultiplicationOutgoing",
    "TriangleMultiplicativeUpdate",
    "convert_triangle_multiplication",
    "shift_kernel",
]
