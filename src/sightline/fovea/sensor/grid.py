"""`SensorGrid`: the points at which an eye or a layer samples, in the visual field and on the cortical surface.

What belongs here: the public object. How points are made belongs to `geometry.py` and what it imports.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import cached_property

import torch

from sightline.errors import ShapeError
from sightline.fovea.sensor.geometry import Geometry, SensorKey, build, check_parameters
from sightline.fovea.sensor.layouts import LAYOUTS, plotting_layout
from sightline.fovea.sensor.manifold import MANIFOLDS
from sightline.fovea.sensor.matching import match_resolution

STYLES = ("isotropic", "isotropic_fixn", "logpolar", "warped_cartesian", "uniform")
FIELDS = ("circular", "square", "wang")
_AS_GRID = "_as_grid"


class SensorGrid:
    """A foveated (or uniform) set of sample points, densest at the fixation point.

    Use it as the retina's sampling pattern and as the nodes of k-nearest-neighbour layers. Sensors never change; those with equal
    parameters are equal, hash alike and share their points, so tables can be kept by sensor.

    Args:
        fov: field of view in degrees (its diameter, or the side of a square one), above 0.
        cmf_a: the constant a of the cortical magnification M(r) = 1 / (r + a), degrees, above 0. Small: strong foveation.
        resolution: number of rings, or the side of a lattice, at least 1. See `matched` for the one that fits a square image.
        style: "isotropic": rings, locally isotropic. "isotropic_fixn": the same with exactly resolution**2 points, by one point more or
            less on rings drawn with `seed`. "logpolar": every ring with `resolution` points. "warped_cartesian": a square lattice that is
            stretched away from the fovea. "uniform": a plain square lattice, no cortex. Lattice styles with "_as_grid" appended let the
            retina return maps.
        manifold: surface that `cortical` lies on, for isotropic styles: "planar" (default; what fovi 2.x layers use), "legacy" (fovi 1.0),
            "spherical" (eccentricity taken as an angle on a sphere, fov up to 180).
        field: "circular", "square" (rings go on into the corners), or "wang" (warped Cartesian only: the whole lattice, no mask).
        radius_norm: for warped Cartesian: 2.0 makes circles of equal eccentricity, inf squares.
        max_radius: radius of the outermost points in units of fov / 2.
        plotting: layout of `plotting`: "v1like", "schwartz" or "warp".
        seed: of the rings that "isotropic_fixn" changes.
        device, dtype: of the attributes; float32 by default. The geometry is computed in float64 on the CPU and rounded once.
        float32_recipe: compute in float32 with the operations of fovi 2.4 in their order, so that coordinates agree with it bit by
            bit on the same machine (for checkpoints whose neighbours hang on rounding). Numbers of points agree in any case.

    Attributes (tensors):
        cartesian: (N, 2) x to the right and y up; radius 1 is fov / 2.
        polar: (N, 2) radius (1 = fov / 2) and angle in radians.
        cortical: (N, 3) mm on the manifold for isotropic styles; (N, 2) for log-polar (log radius, angle / 2 pi) and warped (the
            lattice); None for uniform.
        plotting: (N, 2) flat layout for pictures.
        valid_mask: (N,) bool; False: a lattice cell outside the field, which layers treat as padding.
        pad_cartesian, pad_cortical: (P, 2) and as `cortical`: points around the sensor that count as zero in layers.
        exact: the same in float64 on the CPU, see `Geometry`.

    Raises:
        ValueError: a parameter out of its range, or a combination that does not exist.

    Cost: 50,000 points take about 20 ms; equal sensors cost nothing again.
    Source: Schwartz 1980 (complex logarithm), Rovamo and Virsu 1984 (surface), fovi 2.4 (Blauch, Alvarez and Konkle 2026: rings, padding).

    Example:
        >>> grid = SensorGrid(16, 0.5, 53)
        >>> len(grid), grid.cortical.shape[1]
        (4085, 3)
    """

    def __init__(
        self,
        fov: float,
        cmf_a: float,
        resolution: int,
        *,
        style: str = "isotropic",
        manifold: str = "planar",
        field: str = "circular",
        radius_norm: float = 2.0,
        max_radius: float = 1.0,
        plotting: str = "v1like",
        seed: int = 0,
        device: torch.device | str | None = None,
        dtype: torch.dtype = torch.float32,
        float32_recipe: bool = False,
    ) -> None:
        _one_of("style", style, (*STYLES, *(name + _AS_GRID for name in STYLES[2:])))
        _one_of("manifold", manifold, MANIFOLDS)
        _one_of("field", field, FIELDS)
        _one_of("plotting", plotting, LAYOUTS)
        if isinstance(resolution, bool) or int(resolution) != resolution:
            raise ValueError(f"`resolution` must be an integer, got {resolution!r}")
        self.fov, self.cmf_a, self.resolution = fov, cmf_a, int(resolution)
        self.style, self.manifold, self.field, self.layout = style, manifold, field, plotting
        self.radius_norm, self.max_radius, self.seed = radius_norm, max_radius, seed
        self.float32_recipe = float32_recipe
        self.device, self.dtype = torch.device(device if device is not None else "cpu"), dtype
        self.key = SensorKey(
            float(fov),
            float(cmf_a),
            self.resolution,
            style.removesuffix(_AS_GRID),
            manifold,
            field,
            float(radius_norm),
            float(max_radius),
            seed if style == "isotropic_fixn" else 0,
            float32_recipe,
        )
        check_parameters(self.key)
        self.exact: Geometry = build(self.key)

    # ------------------------------------------------------------------------------------------ coordinates
    def _rounded(self, part: torch.Tensor) -> torch.Tensor:
        return part.to(device=self.device, dtype=self.dtype, copy=True)

    @cached_property
    def cartesian(self) -> torch.Tensor:
        """(N, 2) x to the right and y up; radius 1 is fov / 2."""
        return self._rounded(self.exact.cartesian)

    @cached_property
    def polar(self) -> torch.Tensor:
        """(N, 2) radius (1 = fov / 2) and angle in radians."""
        return self._rounded(self.exact.polar)

    @cached_property
    def cortical(self) -> torch.Tensor | None:
        """(N, 3) on the manifold, (N, 2) for log-polar and warped lattices, None for uniform."""
        return None if self.exact.cortical is None else self._rounded(self.exact.cortical)

    @cached_property
    def valid_mask(self) -> torch.Tensor:
        """(N,) bool: False for lattice cells outside the field."""
        return self.exact.valid_mask.to(self.device, copy=True)

    @cached_property
    def pad_cartesian(self) -> torch.Tensor:
        """(P, 2) points around the sensor."""
        return self._rounded(self.exact.pad_cartesian)

    @cached_property
    def pad_cortical(self) -> torch.Tensor | None:
        """The same on the manifold; None for uniform."""
        return None if self.exact.pad_cortical is None else self._rounded(self.exact.pad_cortical)

    @cached_property
    def field_padding(self) -> torch.Tensor:
        """(Q, 2) ring points that a square field left out; also the first of `pad_cartesian`."""
        return self._rounded(self.exact.field_padding)

    @cached_property
    def plotting(self) -> torch.Tensor:
        """(N, 2) flat layout for pictures."""
        if self.resolution == 1 or self.key.style == "uniform":
            return self.cartesian.clone()
        if self.key.style in {"logpolar", "warped_cartesian"}:
            assert self.exact.cortical is not None
            return self._rounded(self.exact.cortical)
        points, polar = self.exact.cartesian, self.exact.polar
        if self.float32_recipe:
            points, polar = points.float(), polar.float()
        return self._rounded(plotting_layout(points, polar, self.key.fov, self.key.cmf_a, self.layout))

    @property
    def cartesian_rowcol(self) -> torch.Tensor:
        """(N, 2) rows down and columns to the right: (-y, x)."""
        x, y = self.cartesian.unbind(1)
        return torch.stack((-y, x), dim=1)

    @property
    def shape(self) -> torch.Size:
        """(N, 2)."""
        return self.exact.cartesian.shape

    @property
    def is_lattice(self) -> bool:
        """Whether the points have rows and columns (every style but the isotropic ones)."""
        return self.key.style not in {"isotropic", "isotropic_fixn"}

    @property
    def returns_maps(self) -> bool:
        """Whether the retina returns (B, C, side, side) for this sensor: a style that ends with "_as_grid"."""
        return self.style.endswith(_AS_GRID)

    def scatter_sizes(self) -> torch.Tensor:
        """(N,) sizes for scatter plots, growing with eccentricity: radius * fov / resolution."""
        return self.polar[:, 0] * (self.key.fov / self.resolution)

    # ------------------------------------------------------------------------------------------ lattices
    def as_grid(self, values: torch.Tensor, dim: int = -1) -> torch.Tensor:
        """Replaces the axis of points by rows and columns.

        Args:
            values: any tensor with one axis of N values in this sensor's order.
            dim: that axis.

        Returns:
            The tensor with two axes of `resolution` in its place: upright rows and columns for Cartesian lattices; angle and log radius
            for log-polar ones.

        Raises:
            ShapeError: the sensor is no lattice, or the axis has another length.
        """
        if not self.is_lattice:
            raise ShapeError(f"points of style {self.style!r} have no rows and columns; take a lattice style, or draw them at `plotting`")
        dim %= values.ndim
        if values.shape[dim] != len(self):
            raise ShapeError(f"axis {dim} of `values` must have the sensor's {len(self)} points, got {values.shape[dim]}")
        side = self.resolution
        grid = values.reshape(*values.shape[:dim], side, side, *values.shape[dim + 1 :])
        if self.key.style != "logpolar":
            grid = grid.transpose(dim, dim + 1).flip(dim)
        return grid.contiguous()

    def native_to_visual(self, points: torch.Tensor) -> torch.Tensor:
        """Maps (..., 2) points of the warped lattice to the visual field. Raises ShapeError for other styles."""
        self._need_warp(points)
        return self.key.warp.to_visual(points)

    def visual_to_native(self, points: torch.Tensor) -> torch.Tensor:
        """Maps (..., 2) points of the visual field to the warped lattice. Raises ShapeError for other styles."""
        self._need_warp(points)
        return self.key.warp.to_native(points)

    def _need_warp(self, points: torch.Tensor) -> None:
        if self.key.style != "warped_cartesian":
            raise ShapeError(f"only style='warped_cartesian' has a lattice that is warped in closed form, this is {self.style!r}")
        if points.shape[-1] != 2:
            raise ShapeError(f"`points` must end with an axis of 2 (x, y), got shape {tuple(points.shape)}")

    # ------------------------------------------------------------------------------------------ other sensors
    @classmethod
    def matched(
        cls,
        fov: float,
        cmf_a: float,
        cart_res: int,
        *,
        at_most: bool = True,
        style: str = "isotropic",
        field: str = "circular",
        manifold: str = "planar",
        **options: object,
    ) -> SensorGrid:
        """The sensor with as many points as a square image of side `cart_res` has pixels, or just fewer.

        Args:
            fov: degrees, as for the constructor.
            cmf_a: degrees, as for the constructor.
            cart_res: side of that image, at least 1.
            at_most: False: just more instead of just fewer.
            style: as for the constructor.
            field: as for the constructor.
            manifold: as for the constructor.
            **options: further arguments of the constructor.

        Example:
            >>> len(SensorGrid.matched(16, 0.5, 64))
            4085
        """
        resolution = cart_res
        if "fixn" not in style:
            # Parameters are checked before anything is counted with them.
            check_parameters(SensorKey(float(fov), float(cmf_a), 1, "", "", "", 2.0, 1.0, 0, False))
            resolution, _ = match_resolution(
                float(fov), float(cmf_a), cart_res**2, style=style, at_most=at_most, field=field, manifold=manifold
            )
        return cls(fov, cmf_a, resolution, style=style, field=field, manifold=manifold, **options)  # type: ignore[arg-type]

    def strided(
        self, stride: int, *, match: bool = True, in_cart_res: int | None = None, at_most: bool = True, max_radius: float = 1.0
    ) -> tuple[SensorGrid, int | None]:
        """The coarser sensor behind a layer with a stride, over the same field.

        Args:
            stride: at least 1.
            match: True: as many points as a square image of side ``in_cart_res // stride``. False, or without `in_cart_res`:
                ``resolution // stride`` rings.
            in_cart_res: side of the square image that this sensor stands for.
            at_most: whether the match may have more points than that image.
            max_radius: of the new sensor.

        Returns:
            The sensor, and the side of the image that it stands for (None without a match). Its points are not a subset of this one's.

        Raises:
            ValueError: nothing is left after the stride.
        """
        cart_res = None if in_cart_res is None else in_cart_res // stride
        if self.style == "isotropic_fixn":
            if cart_res is None:
                raise ValueError("style 'isotropic_fixn' has a fixed number of points; give `in_cart_res`")
            resolution = cart_res
        elif match and cart_res is not None:
            if cart_res < 1:
                raise ValueError(f"no point is left of side {in_cart_res} after a stride of {stride}; take a smaller stride")
            key = self.key
            resolution, _ = match_resolution(
                key.fov, key.cmf_a, cart_res**2, style=key.style, at_most=at_most, field=key.field, manifold=key.manifold
            )
        else:
            resolution, cart_res = self.resolution // stride, None
        if resolution < 1:
            raise ValueError(f"no ring is left of {self.resolution} after a stride of {stride}; take a smaller stride")
        return self.replace(resolution=resolution, max_radius=max_radius), cart_res

    def replace(self, **changes: object) -> SensorGrid:
        """The sensor with some of the constructor's arguments changed."""
        arguments: dict[str, object] = {
            "fov": self.fov,
            "cmf_a": self.cmf_a,
            "resolution": self.resolution,
            "style": self.style,
            "manifold": self.manifold,
            "field": self.field,
            "radius_norm": self.radius_norm,
            "max_radius": self.max_radius,
            "plotting": self.layout,
            "seed": self.seed,
            "device": self.device,
            "dtype": self.dtype,
            "float32_recipe": self.float32_recipe,
        }
        unknown = changes.keys() - arguments.keys()
        if unknown:
            raise TypeError(f"SensorGrid has no argument {', '.join(sorted(unknown))}; it has {', '.join(arguments)}")
        return SensorGrid(**(arguments | changes))  # type: ignore[arg-type]

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> SensorGrid:
        """The same sensor with its attributes elsewhere or in another type; the points are not computed again."""
        return self.replace(device=self.device if device is None else device, dtype=self.dtype if dtype is None else dtype)

    # ------------------------------------------------------------------------------------------ identity
    def __len__(self) -> int:
        return len(self.exact.cartesian)

    def __eq__(self, other: object) -> bool:
        """Whether the points are the same; device, type and layout of pictures do not count."""
        return isinstance(other, SensorGrid) and self.key == other.key

    def __hash__(self) -> int:
        return hash(self.key)

    def __repr__(self) -> str:
        name, n = type(self).__name__, len(self)
        return f"{name}(length={n}, fov={self.fov}, cmf_a={self.cmf_a}, resolution={self.resolution}, style={self.style})"


def _one_of(name: str, value: str, allowed: Iterable[str]) -> None:
    if value not in allowed:
        raise ValueError(f"`{name}` must be one of {', '.join(map(repr, allowed))}; got {value!r}")
