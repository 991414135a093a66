"""Vision transformers: `KNNViT`, whose tokens are neighbourhoods of a sensor, and `VisionTransformer`, its dense control."""

from __future__ import annotations

import math
from typing import Any, ClassVar, cast

import torch
from torch import Tensor, nn

from sightline.errors import ConfigError, ShapeError
from sightline.fovea.networks.patches import PATCH_EMBEDDINGS, KNNPatchEmbedding

_Device = torch.device | str | None


def _grid_points(rows: int, cols: int) -> Tensor:
    """(rows * cols, 2) x and y of cells, row by row."""
    y, x = torch.meshgrid(torch.arange(rows), torch.arange(cols), indexing="ij")
    return torch.stack([x.flatten(), y.flatten()], dim=1).float()


def _to_unit_square(points: Tensor) -> Tensor:
    low, high = points.amin(0), points.amax(0)
    return (points - low) / (high - low + 1e-8)


class PositionalEncoding(nn.Module):
    """Add sines of x and cosines of y to tokens, at frequencies from 1 down to 1 / 10000.

    Args:
        embed_dim: D.
        points: (T, 2) x and y of the tokens; brought into the unit square.

    Forward: (B, T, D) to the same.
    """

    pos_encoding: Tensor

    def __init__(self, embed_dim: int, points: Tensor) -> None:
        super().__init__()
        unit = _to_unit_square(points)
        frequency = 10000.0 ** -(torch.arange(0, embed_dim, 2, device=points.device) / embed_dim)
        code = torch.zeros(len(points), embed_dim, device=points.device)
        code[:, 0::2] = torch.sin(unit[:, :1] * frequency)
        code[:, 1::2] = torch.cos(unit[:, 1:] * frequency[: embed_dim // 2])
        self.register_buffer("pos_encoding", code)

    def forward(self, x: Tensor) -> Tensor:
        """Tokens with their places added."""
        return x + self.pos_encoding


class RoPEPositionalEncoding(nn.Module):
    """Rotate queries and keys by angles that grow with the tokens' places: half of a head by x, half by y.

    Args:
        embed_dim: D.
        num_heads: heads; D must be a multiple of four times as many.
        points: (T, 2) x and y of the tokens; brought into the unit square.
        as_fovi: do what fovi does, which is no rotation: it adds the feature before, times the sine, to every feature, without the sign
            that half of them need. Its networks were trained so.

    Forward: queries and keys (B, heads, T, d) to the same.
    """

    cos_x_emb: Tensor
    sin_x_emb: Tensor
    cos_y_emb: Tensor
    sin_y_emb: Tensor

    def __init__(self, embed_dim: int, num_heads: int, points: Tensor, as_fovi: bool = False) -> None:
        super().__init__()
        if embed_dim % (4 * num_heads):
            raise ShapeError(f"rotary positions need embed_dim to be a multiple of 4 * num_heads = {4 * num_heads}, got {embed_dim}")
        self.as_fovi = as_fovi
        half = embed_dim // num_heads // 2
        frequency = torch.exp(torch.arange(0, half, 2, device=points.device) * -(math.log(10000.0) / half))
        for axis, place in zip("xy", _to_unit_square(points).split(1, dim=1), strict=True):
            angle = (place * frequency).repeat_interleave(2, dim=1)
            self.register_buffer(f"cos_{axis}_emb", angle.cos())
            self.register_buffer(f"sin_{axis}_emb", angle.sin())

    def _turned(self, half: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        if self.as_fovi:
            beside = half.roll(1, dims=-1)
        else:
            even, odd = half[..., 0::2], half[..., 1::2]
            beside = torch.stack((-odd, even), dim=-1).flatten(-2)
        return half * cos + beside * sin

    def rotate(self, x: Tensor) -> Tensor:
        """(B, heads, T, d) turned by its tokens' places."""
        of_x, of_y = x.chunk(2, dim=-1)
        turned = (self._turned(of_x, self.cos_x_emb, self.sin_x_emb), self._turned(of_y, self.cos_y_emb, self.sin_y_emb))
        return torch.cat(turned, dim=-1).to(x.dtype)

    def forward(self, q: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
        """Queries and keys, turned."""
        return self.rotate(q), self.rotate(k)


class MultiHeadSelfAttention(nn.Module):
    """Attention of tokens to one another.

    Args:
        embed_dim: D.
        num_heads: heads; D must be a multiple of them.
        dropout: of attention weights, in training.
        rope: rotates queries and keys; the first token (the class token) stays as it is. None: nothing is rotated.

    Forward: (B, T, D) to the same.
    """

    def __init__(self, embed_dim: int, num_heads: int, dropout: float = 0.0, rope: RoPEPositionalEncoding | None = None) -> None:
        super().__init__()
        if embed_dim % num_heads:
            raise ShapeError(f"embed_dim must be a multiple of num_heads = {num_heads}, got {embed_dim}")
        self.num_heads, self.dropout_p = num_heads, dropout
        self.qkv = nn.Linear(embed_dim, 3 * embed_dim, bias=False)
        self.proj = nn.Linear(embed_dim, embed_dim, bias=False)
        self.rope = rope

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, D) to the same."""
        batch, tokens, width = x.shape
        q, k, v = self.qkv(x).reshape(batch, tokens, 3, self.num_heads, -1).permute(2, 0, 3, 1, 4)
        if self.rope is not None and tokens > 1:
            turned_q, turned_k = self.rope(q[:, :, 1:], k[:, :, 1:])
            q, k = torch.cat([q[:, :, :1], turned_q], dim=2), torch.cat([k[:, :, :1], turned_k], dim=2)
        mixed = nn.functional.scaled_dot_product_attention(q, k, v, dropout_p=self.dropout_p if self.training else 0.0)
        return cast(Tensor, self.proj(mixed.transpose(1, 2).reshape(batch, tokens, width)))


class TransformerBlock(nn.Module):
    """Attention and two linear layers, each behind a layer norm and beside the way around.

    Args:
        embed_dim: D.
        num_heads: heads.
        mlp_ratio: width inside, times D.
        dropout: everywhere.
        rope: see `MultiHeadSelfAttention`.

    Forward: (B, T, D) to the same.
    """

    def __init__(
        self, embed_dim: int, num_heads: int, mlp_ratio: float = 4.0, dropout: float = 0.0, rope: RoPEPositionalEncoding | None = None
    ) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(embed_dim)
        self.attn = MultiHeadSelfAttention(embed_dim, num_heads, dropout, rope)
        self.norm2 = nn.LayerNorm(embed_dim)
        hidden = int(embed_dim * mlp_ratio)
        self.mlp = nn.Sequential(
            nn.Linear(embed_dim, hidden), nn.GELU(), nn.Dropout(dropout), nn.Linear(hidden, embed_dim), nn.Dropout(dropout)
        )

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, D) to the same."""
        x = x + self.attn(self.norm1(x))
        return x + cast(Tensor, self.mlp(self.norm2(x)))


class PatchEmbedding(nn.Module):
    """A token for every square of an image.

    Args:
        img_size: side of the image.
        patch_size: side of a square.
        in_channels: channels.
        embed_dim: D.
        bias: whether tokens have one.

    Forward: (B, in_channels, img_size, img_size) to (B, T, D).
    """

    def __init__(self, img_size: int = 224, patch_size: int = 16, in_channels: int = 3, embed_dim: int = 768, bias: bool = False) -> None:
        super().__init__()
        self.img_size, self.patch_size = img_size, patch_size
        self.weight = nn.Conv2d(in_channels, embed_dim, patch_size, patch_size, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, D), row by row."""
        return cast(Tensor, self.weight(x)).flatten(2).transpose(1, 2)


class VisionTransformer(nn.Module):
    """Transformer over patches, with a class token.

    Args:
        img_size, patch_size, in_channels: of the images, for the usual patch embedding.
        embed_dim: D.
        num_heads, num_layers, mlp_ratio, dropout: of the blocks.
        num_outputs: width of a last linear layer; 0 or None: none.
        pos_emb_type: "absolute" or "rope".
        coords: (T, 2) places of the tokens; default: a grid.
        patch_embed: another patch embedding.
        aggregation: "cls_token", "avg_pool" (mean of all tokens), "flatten".
        rope_as_fovi: see `RoPEPositionalEncoding`.

    Forward: (B, in_channels, img_size, img_size) to (B, D), or (B, num_outputs).
    """

    def __init__(
        self,
        img_size: int = 224,
        patch_size: int = 16,
        in_channels: int = 3,
        embed_dim: int = 768,
        num_heads: int = 12,
        num_layers: int = 12,
        mlp_ratio: float = 4.0,
        dropout: float = 0.0,
        num_outputs: int | None = 1000,
        pos_emb_type: str = "absolute",
        coords: Tensor | None = None,
        patch_embed: nn.Module | None = None,
        aggregation: str = "cls_token",
        *,
        rope_as_fovi: bool = False,
    ) -> None:
        super().__init__()
        if pos_emb_type not in {"absolute", "rope"}:
            raise ConfigError(f"pos_emb_type must be absolute or rope, not {pos_emb_type!r}")
        if aggregation not in {"cls_token", "avg_pool", "flatten"}:
            raise ConfigError(f"aggregation must be cls_token, avg_pool or flatten, not {aggregation!r}")
        side = img_size // patch_size
        points = _grid_points(side, side) if coords is None else coords
        self.patch_embed = patch_embed or PatchEmbedding(img_size, patch_size, in_channels, embed_dim)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, embed_dim))
        absolute = pos_emb_type == "absolute"
        self.pos_encoding = PositionalEncoding(embed_dim, points) if absolute else None
        self.blocks = nn.ModuleList(
            TransformerBlock(
                embed_dim, num_heads, mlp_ratio, dropout,
                None if absolute else RoPEPositionalEncoding(embed_dim, num_heads, points, rope_as_fovi),
            )
            for _ in range(num_layers)
        )  # fmt: skip
        self.norm = nn.LayerNorm(embed_dim)
        self.aggregation, self.in_channels = aggregation, in_channels
        features = embed_dim * (len(points) + 1 if aggregation == "flatten" else 1)
        self.total_embed_dim = num_outputs or features
        self.head = nn.Linear(features, num_outputs) if num_outputs else nn.Identity()
        nn.init.trunc_normal_(self.cls_token, std=0.02)
        for module in (*self.blocks.modules(), self.head):
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                if module is self.head:
                    nn.init.zeros_(module.bias)

    def forward(self, x: Tensor) -> Tensor:
        """(B, D), or (B, num_outputs)."""
        tokens = self.patch_embed(x)
        if self.pos_encoding is not None:
            tokens = self.pos_encoding(tokens)
        tokens = torch.cat([self.cls_token.expand(len(tokens), -1, -1), tokens], dim=1)
        for block in self.blocks:
            tokens = block(tokens)
        tokens = self.norm(tokens)
        if self.aggregation == "cls_token":
            out = tokens[:, 0]
        else:
            out = tokens.mean(1) if self.aggregation == "avg_pool" else tokens.flatten(1)
        return cast(Tensor, self.head(out))


class KNNViT(VisionTransformer):
    """Transformer whose tokens are neighbourhoods of a foveated sensor.

    Args:
        fov, cmf_a, style: of the sensor.
        img_size: side of the square image that the sensor is matched to.
        patch_size: p; a token for every p x p samples.
        patch_overlap_factor: see `KNNPatchEmbedding`.
        in_channels, embed_dim, num_heads, num_layers, mlp_ratio, dropout, num_outputs, pos_emb_type, aggregation: as in
            `VisionTransformer`; places of tokens are those of the coarser sensor, in the visual field.
        device: of parameters and tables.
        arch_flag, sample_cortex, force_patches_less_than_matched, ref_frame_side_length, isotropic_plotting_type, fov_type,
            field_geometry, radius_norm: as in `KNNPatchEmbedding`.
        embedding: "knn", "partition" or "knn_partition", see `patches`.
        ties: as in `KNNConv`; "fovi" also rotates as fovi does.

    Forward: (B, in_channels, N) to (B, 1, D), or (B, 1, num_outputs).
    """

    embeddings: ClassVar[dict[str, type[KNNPatchEmbedding]]] = PATCH_EMBEDDINGS

    def __init__(
        self,
        fov: float,
        cmf_a: float,
        style: str = "isotropic",
        img_size: int = 224,
        patch_size: int = 16,
        patch_overlap_factor: float = 1,
        in_channels: int = 3,
        embed_dim: int = 768,
        num_heads: int = 12,
        num_layers: int = 12,
        mlp_ratio: float = 4.0,
        dropout: float = 0.0,
        num_outputs: int | None = 1000,
        device: _Device = None,
        arch_flag: str | None = "",
        sample_cortex: bool | str = True,
        pos_emb_type: str = "absolute",
        force_patches_less_than_matched: bool = True,
        aggregation: str = "cls_token",
        ref_frame_side_length: int | None = None,
        isotropic_plotting_type: str = "v1like",
        fov_type: str = "circular",
        field_geometry: str = "planar",
        radius_norm: float = 2.0,
        *,
        embedding: str = "knn",
        ties: str = "stable",
        auto_match_cart_resources: int = 1,
    ) -> None:
        if embedding not in type(self).embeddings:
            raise ConfigError(f"model.vit.embedding must be one of {', '.join(type(self).embeddings)}, not {embedding!r}")
        options: dict[str, Any] = {
            "patch_overlap_factor": patch_overlap_factor, "device": device, "arch_flag": arch_flag, "sample_cortex": sample_cortex,
            "force_patches_less_than_matched": force_patches_less_than_matched, "ref_frame_side_length": ref_frame_side_length,
            "isotropic_plotting_type": isotropic_plotting_type, "fov_type": fov_type, "field_geometry": field_geometry,
            "radius_norm": radius_norm, "ties": ties, "max_coord_val": "auto" if embedding == "knn_partition" else 1,
        }  # fmt: skip
        patches = type(self).embeddings[embedding](
            in_channels, embed_dim, img_size, fov, cmf_a, style, auto_match_cart_resources, img_size, patch_size, **options
        )
        super().__init__(
            img_size, patch_size, in_channels, embed_dim, num_heads, num_layers, mlp_ratio, dropout, num_outputs, pos_emb_type,
            patches.out_coords.cartesian, patches, aggregation, rope_as_fovi=ties == "fovi",
        )  # fmt: skip
        self.in_coords, self.out_coords = patches.in_coords, patches.out_coords
        self.to(device)

    def forward(self, x: Tensor) -> Tensor:
        """(B, 1, D), or (B, 1, num_outputs)."""
        return super().forward(x).unsqueeze(1)
