"""ACmix: networks whose layers mix attention and convolution.

Pan, Ge, Lu, Song, Chen, Huang and Huang, "On the Integration of Self-Attention and Convolution", CVPR 2022 (arXiv
2111.14556). Four kinds of networks, whose attention is each its own; the convolution beside it, of the same queries,
keys and values, is :func:`paperops.shift_conv_2d` in all.

- ``resnet26/38/50``: :class:`paperops.nn.ACmix` in the place of each 3 x 3 convolution, as in the authors' code;
- ``swin_tiny/small``: attention within shifted windows, as in the authors' code, whose published weights load;
- ``san10/15/19``: patchwise, weights from a small network that sees the whole patch. The authors published no code of
  these, nor of the next: the networks are their own authors', and how the convolution joins is told with each;
- ``pvt_tiny/small``: of all pixels, to a smaller map.

``torch.export`` can have the batch dynamic in all of them, and in the ResNets and SANs height and width, too.

Parameters (millions) and multiply-adds (10^9, for 224 x 224 pixels) with 1000 classes, as the authors publish them and
as they are here:

==========  ============  =============  ======================  ====================
network     parameters,   parameters,    multiply-adds,          multiply-adds,
            published     here           published               here
==========  ============  =============  ======================  ====================
resnet26    10.6          10.49          2.3                     2.22
resnet38    14.6          14.41          2.9                     2.86
resnet50    18.6          18.33          3.6                     3.50
san10       12.1          11.99          1.9                     1.85 (1.89)
san15       16.6          16.41          2.7                     2.58 (2.63)
san19       21.2          20.83          3.4                     3.24 (3.32)
pvt_tiny    13            13.40          2.0                     2.02
pvt_small   25            24.82          3.9                     3.97
swin_tiny   30            28.65          4.6                     4.65
swin_small  51            50.35          9.0                     8.99
==========  ============  =============  ======================  ====================

What differs: the authors do not say how they counted. Their code of ResNet and Swin has these very parameters; what is
published above them for ResNet and SAN is about the size of the grouped convolutions once more (81 a channel and
layer). Ours are counted by :class:`paperops.models.dynopool.MacsCounter`: convolutions, linear layers, attention and
the shift convolution; for SAN without the weighted sums of values, in brackets with them.
"""

from paperops.models.acmix.pvt import pvt_small, pvt_tiny
from paperops.models.acmix.resnet import resnet26, resnet38, resnet50
from paperops.models.acmix.san import san10, san15, san19
from paperops.models.acmix.swin import swin_small, swin_tiny

__all__ = [
    "pvt_small",
    "pvt_tiny",
    "resnet26",
    "resnet38",
    "resnet50",
    "san10",
    "san15",
    "san19",
    "swin_small",
    "swin_tiny",
]
