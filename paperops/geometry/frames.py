"""Rigid frames: a rotation and a translation each, as AlphaFold2 writes T = (R, t)."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from paperops.ops import _checks


class Frames(NamedTuple):
    r"""Frames :math:`T = (R, t)` with :math:`T \circ x = R x + t`, from local to global coordinates.

    A named tuple of two tensors, so that torch.compile, vmap and torch.utils.data take it as it is. All methods are
    differentiable, broadcast over the leading dimensions, and multiply elementwise in the tensors' dtype: neither tf32
    nor autocast takes digits away.

    Attributes:
        rotations: ``[*, 3, 3]``, orthogonal matrices of determinant 1 (which nothing here checks).
        translations: ``[*, 3]``, in any unit of length.

    Raises:
        TypeError, ValueError: from every method, for tensors that are not of these shapes, or not of one floating dtype
            on one device.

    Source:
        Jumper et al., Nature 596 (2021), supplement, 1.8.1 and Algorithm 21.

    Example:
        >>> import torch
        >>> from paperops.geometry import Frames
        >>> frames = Frames.from_three_points(*torch.randn(3, 10, 3, dtype=torch.float64))
        >>> points = torch.randn(10, 4, 3, dtype=torch.float64)
        >>> torch.allclose(frames.invert().apply(frames.apply(points)), points)
        True
    """

    rotations: Tensor
    translations: Tensor

    @staticmethod
    def identity(*shape: int, dtype: torch.dtype | None = None, device: torch.device | str | None = None) -> Frames:
        """Frames of the given leading shape that change nothing."""
        rotations = torch.eye(3, dtype=dtype, device=device).expand(*shape, 3, 3)
        return Frames(rotations, torch.zeros(*shape, 3, dtype=dtype, device=device))

    @staticmethod
    def from_three_points(on_x_axis: Tensor, origin: Tensor, in_xy_plane: Tensor, eps: float = 1e-20) -> Frames:
        """Frames by Gram-Schmidt, each of three points ``[*, 3]`` (Algorithm 21; for a backbone: C, CA, N).

        The origin is ``origin``, the x axis points to ``on_x_axis``, and ``in_xy_plane`` has positive y. ``eps``, in
        squared units of length, is added to the squared lengths: where points coincide or lie on a line, the axes that
        they do not fix are 0, and all is finite.
        """
        for name, points in (("on_x_axis", on_x_axis), ("origin", origin), ("in_xy_plane", in_xy_plane)):
            _checks.vectors(name, points, 3, "one point each", like=("on_x_axis", on_x_axis))
        eps = _checks.positive_number("eps", eps)
        x_axis = _unit(on_x_axis - origin, eps)
        towards = in_xy_plane - origin
        y_axis = _unit(towards - (towards * x_axis).sum(-1, keepdim=True) * x_axis, eps)
        z_axis = torch.linalg.cross(x_axis, y_axis)
        return Frames(torch.stack([x_axis, y_axis, z_axis], -1), origin.expand(x_axis.shape))

    @staticmethod
    def from_quaternion(quaternions: Tensor, translations: Tensor | None = None) -> Frames:
        """Frames of quaternions ``[*, 4]`` (w, x, y, z), the real part first, of any length but 0."""
        _checks.vectors("quaternions", quaternions, 4, "(w, x, y, z) each")
        w, x, y, z = (quaternions / torch.linalg.vector_norm(quaternions, dim=-1, keepdim=True)).unbind(-1)
        rows = (
            (1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)),
            (2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)),
            (2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)),
        )
        rotations = torch.stack([torch.stack(row, -1) for row in rows], -2)
        if translations is None:
            translations = torch.zeros_like(rotations[..., 0])
        return _checked(Frames(rotations, translations))

    def to_quaternion(self) -> Tensor:
        """Quaternions ``[*, 4]`` (w, x, y, z) of the rotations, of length 1, with w not negative.

        Where w is 0 the sign is not fixed. Of a matrix that is no rotation, 0 say, the result is finite still.
        """
        xx, xy, xz, yx, yy, yz, zx, zy, zz = _checked(self).rotations.flatten(-2).unbind(-1)
        rows = (  # of 4 q q^T; all are multiples of q, and the one with the largest diagonal loses no digits
            (1 + xx + yy + zz, zy - yz, xz - zx, yx - xy),
            (zy - yz, 1 + xx - yy - zz, xy + yx, xz + zx),
            (xz - zx, xy + yx, 1 - xx + yy - zz, yz + zy),
            (yx - xy, xz + zx, yz + zy, 1 - xx - yy + zz),
        )
        multiples = torch.stack([torch.stack(row, -1) for row in rows], -2)  # [*, 4, 4]
        largest = multiples.detach().diagonal(dim1=-2, dim2=-1).argmax(-1)  # [*]
        chosen = (torch.nn.functional.one_hot(largest, 4)[..., None] * multiples).sum(-2)  # [*, 4]
        length = torch.linalg.vector_norm(chosen, dim=-1, keepdim=True)
        return chosen / torch.where(chosen[..., :1] < 0, -length, length)

    def compose(self, other: Frames) -> Frames:
        """The frames that apply ``other`` first, then these; also written ``self @ other``.

        (torch.compile cannot trace the operator.)
        """
        ours, theirs = _checked(self), _checked(other)
        rotations = (ours.rotations[..., :, :, None] * theirs.rotations[..., None, :, :]).sum(-2)
        return Frames(rotations, _rotate(ours.rotations, theirs.translations) + ours.translations)

    def __matmul__(self, other: Frames) -> Frames:
        return self.compose(other)

    def invert(self) -> Frames:
        """The frames that undo these."""
        transposed = _checked(self).rotations.transpose(-1, -2)
        return Frames(transposed, -_rotate(transposed, self.translations))

    def apply(self, points: Tensor) -> Tensor:
        """R x + t of points ``[*, ..., 3]``: the frames' dimensions come first, and a frame takes all that follow."""
        rotations, translations = _aligned(self, points)
        return _rotate(rotations, points) + translations

    def invert_apply(self, points: Tensor) -> Tensor:
        """R^T (x - t) of points as for :meth:`apply`; exacter far from the origin than invert() and apply()."""
        rotations, translations = _aligned(self, points)
        return _rotate(rotations.transpose(-1, -2), points - translations)

    def unsqueeze(self, dim: int) -> Frames:
        """With a leading dimension of size 1 more, at ``dim``; counted from the end if negative."""
        frames = _checked(self)
        dimensions = frames.translations.dim() - 1
        if not -dimensions - 1 <= dim <= dimensions:
            raise ValueError(f"dim must be from {-dimensions - 1} to {dimensions}; got {dim}")
        dim = dim if dim >= 0 else dim + dimensions + 1
        return Frames(frames.rotations.unsqueeze(dim), frames.translations.unsqueeze(dim))


def _unit(vectors: Tensor, eps: float) -> Tensor:
    eps = max(eps, torch.finfo(vectors.dtype).tiny)  # half precision has no 1e-20
    return vectors / torch.sqrt(vectors.square().sum(-1, keepdim=True) + eps)


def _rotate(rotations: Tensor, points: Tensor) -> Tensor:
    return (rotations * points[..., None, :]).sum(-1)


def _checked(frames: Frames) -> Frames:
    """The frames, once their tensors are known to be some."""
    if not isinstance(frames, Frames):
        raise TypeError(f"frames must be a paperops.geometry.Frames; got {type(frames).__name__}")
    _checks.frames("rotations", frames.rotations, "translations", frames.translations)
    return frames


def _aligned(frames: Frames, points: Tensor) -> Frames:
    """The frames with as many leading dimensions as the points have."""
    rotations, translations = _checked(frames)
    _checks.vectors("points", points, 3, "one point each", like=("translations", translations))
    missing = points.dim() - translations.dim()
    if missing < 0:
        raise ValueError(
            f"points must have the dimensions of the frames first, {list(translations.shape[:-1])}; "
            f"got {list(points.shape)}"
        )
    shape = translations.shape[:-1] + (1,) * missing
    return Frames(rotations.reshape(*shape, 3, 3), translations.reshape(*shape, 3))
