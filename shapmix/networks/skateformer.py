"""SkateFormer: Do, Kim, SkateFormer: Skeletal-Temporal Transformer for Human Action Recognition, ECCV 2024.

A token is a joint of a person in a frame. Joints are in groups of four; attention is within windows of near or distant frames
and near or distant joints, four kinds in all, beside a graph convolution and a temporal convolution.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, fx, nn
from torch.nn.functional import scaled_dot_product_attention

from shapmix.networks.backbones import backbone
from shapmix.networks.drop_path import DropPath
from shapmix.process.errors import ShapmixError
from shapmix.skeleton.layout import Layout

WIDTHS = (96, 192, 192, 192)
BLOCKS = 2  # per stage
GROUP = 4  # joints of a group
WINDOW = 8  # frames of a window, at most
HEADS = 4  # of each kind of attention
CONV_GROUPS = 8  # groups of channels of the graph and the temporal convolution
KERNEL = 7
SLOWEST = 10000.0  # of the waves that encode the time

# The published groups. That of NTU RGB+D leaves the spine_shoulder out.
PUBLISHED_GROUPS = {
    25: (
        "left_wrist left_hand left_hand_tip left_thumb right_wrist right_hand right_hand_tip right_thumb",
        "left_hip left_knee left_ankle left_foot right_hip right_knee right_ankle right_foot",
        "left_shoulder right_shoulder left_elbow right_elbow spine_mid neck pelvis head",
    ),
    20: (
        "left_shoulder left_elbow left_wrist left_hand right_shoulder right_elbow right_wrist right_hand",
        "left_hip left_knee left_ankle left_foot right_hip right_knee right_ankle right_foot",
        "spine shoulder_centre hip_centre head",
    ),
}


class FramesError(ShapmixError, ValueError):
    """Clips whose frames cannot be halved; the message says how many to give."""


class Kind(NamedTuple):
    """One kind of attention: which frames and which joints a window holds, and how many joints."""

    near_frames: bool
    near_joints: bool
    joints: int


def joint_groups(layout: Layout) -> list[int]:
    """Joints in groups of four, one group after the other.

    The published groups for the joints of NTU RGB+D and NW-UCLA. Otherwise the parts of the layout, each cut into groups; the last
    group of a part is filled by repeating the part's joints from its first on.
    """
    names = " ".join(PUBLISHED_GROUPS.get(layout.num_joints, ())).split()
    if names and set(names) <= set(layout.joints):
        return [layout.joints.index(name) for name in names]
    groups: list[int] = []
    for joints in layout.parts.values():
        groups += [joints[slot % len(joints)] for slot in range(-(-len(joints) // GROUP) * GROUP)]
    return groups


@fx.wrap
def time_code(x: Tensor, width: int, halvings: int) -> Tensor:
    """[T, width]: sines and cosines of the time from -1 to 1 of the frames of x [N, C, T, W].

    Raises:
        FramesError: the frames cannot be halved so many times.
    """
    frames, multiple = x.shape[2], 2**halvings
    if frames % multiple:
        near = [count for count in (frames // multiple * multiple, -(-frames // multiple) * multiple) if count]
        raise FramesError(
            f"clips have {frames} frames, which SkateFormer cannot halve {halvings} time{'s' * (halvings != 1)}: give --num-frames "
            f"{' or '.join(map(str, near))}"
        )
    time = torch.arange(frames, device=x.device, dtype=torch.float64) * 2 / frames - 1
    speed = torch.arange(0, width, 2, device=x.device, dtype=torch.float64) * (-math.log(SLOWEST) / width)
    phase = time[:, None] * speed.exp()
    return torch.stack([phase.sin(), phase.cos()], 2).flatten(1).to(x.dtype)


def window_of(frames: int) -> int:
    """Frames of a window: the largest divisor of the frames up to the published 8."""
    return next(window for window in range(min(WINDOW, frames), 0, -1) if frames % window == 0)


@fx.wrap
def attended(x: Tensor, table: Tensor, kind: Kind, dropout: float) -> Tensor:
    """Attention within windows: queries, keys and values x [N, T, W, 3 C] -> [N, T, W, C].

    Args:
        table: bias of each head by the frames between two tokens [15, HEADS], and with distant joints also by their place in the
            window, [15, J, J, HEADS].
        dropout: of the weights.
    """
    n, frames, tokens, _ = x.shape
    window, joints = window_of(frames), kind.joints
    # [N, windows, frames of a window, windows, joints of a window, 3, HEADS, channels]
    shape = [
        n,
        *_split(frames, window, kind.near_frames),
        *_split(tokens, joints, kind.near_joints),
        3,
        HEADS,
        x.shape[3] // 3 // HEADS,
    ]
    order = [0, *((1, 2) if kind.near_frames else (2, 1)), *((3, 4) if kind.near_joints else (4, 3)), 5, 6, 7]
    cut = x.view(shape).permute(order)  # [N, A, window, B, joints, 3, HEADS, channels]
    query, key, value = cut.permute(5, 0, 1, 3, 6, 2, 4, 7).flatten(2, 3).flatten(4, 5).flatten(1, 2).unbind(0)
    bias = relative_bias(table, window, joints).to(query.dtype)
    # the published scale is by the number of heads
    seen = scaled_dot_product_attention(query, key, value, bias, dropout_p=dropout, scale=HEADS**-0.5)
    parts = (n, frames // window, tokens // joints, HEADS, window, joints, -1)
    whole = seen.view(parts).permute(0, 1, 4, 2, 5, 3, 6)  # [N, A, window, B, joints, HEADS, channels]
    return whole.permute([*order[:5], 5, 6]).reshape(n, frames, tokens, -1)


def _split(size: int, window: int, near: bool) -> tuple[int, int]:
    """An axis as (windows, members), or as (members, windows) if members are distant."""
    return (size // window, window) if near else (window, size // window)


def relative_bias(table: Tensor, window: int, joints: int) -> Tensor:
    """[HEADS, window J, window J] of a table of `attended`.

    With near joints, token i of a window is looked up as if it were in frame i modulo the window, although it is in frame i // J:
    published weights are trained so.
    """
    frame = torch.arange(window, device=table.device)
    if table.dim() == 2:
        frame = frame.repeat(joints)
        return table[frame[:, None] - frame[None] + WINDOW - 1].permute(2, 0, 1)
    chosen = table[frame[:, None] - frame[None] + WINDOW - 1]  # [window, window, J, J, HEADS]
    return chosen.permute(4, 0, 2, 1, 3).flatten(1, 2).flatten(2, 3)


class WindowAttention(nn.Module):
    """Attention of one kind: [N, T, W, 3 C] -> [N, T, W, C]."""

    def __init__(self, kind: Kind, dropout: float) -> None:
        super().__init__()
        self.kind, self.dropout = kind, dropout
        of_joints = () if kind.near_joints else (kind.joints, kind.joints)
        self.relative_position_bias_table = nn.Parameter(torch.zeros(2 * WINDOW - 1, *of_joints, HEADS))
        nn.init.trunc_normal_(self.relative_position_bias_table, std=0.02)

    def forward(self, x: Tensor) -> Tensor:
        return attended(x, self.relative_position_bias_table, self.kind, self.dropout if self.training else 0.0)


class Feed(nn.Module):
    """Two products with a GELU between them."""

    def __init__(self, width: int, ratio: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, ratio * width)
        self.act = nn.GELU()
        self.fc2 = nn.Linear(ratio * width, width)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.fc2(self.act(self.fc1(x)))
        return y


class Transformer(nn.Module):
    """[N, C, T, W] -> the same: an eighth of the channels of each attention, a quarter of each convolution; then two products."""

    def __init__(self, width: int, tokens: int, kinds: Sequence[Kind], ratio: int, dropout: float, drop_path: float) -> None:
        super().__init__()
        quarter = width // 4
        self.norm_1 = nn.LayerNorm(width)
        self.mapping = nn.Linear(width, 2 * width)
        self.gconv = nn.Parameter(torch.zeros(CONV_GROUPS, tokens, tokens))
        nn.init.trunc_normal_(self.gconv, std=0.02)
        self.tconv = nn.Conv2d(quarter, quarter, (KERNEL, 1), padding=(KERNEL // 2, 0), groups=CONV_GROUPS)
        self.attention = nn.ModuleList(WindowAttention(kind, dropout) for kind in kinds)
        self.proj = nn.Linear(width, width)
        self.drop_path = DropPath(drop_path) if drop_path else nn.Identity()
        self.norm_2 = nn.LayerNorm(width)
        self.mlp = Feed(width, ratio)
        self.pieces = [quarter, quarter, *[3 * width // 8] * len(kinds)]

    def forward(self, x: Tensor) -> Tensor:
        x = x.permute(0, 2, 3, 1)  # [N, T, W, C]
        over_joints, over_frames, one, two, three, four = self.mapping(self.norm_1(x)).split(self.pieces, dim=3)
        n, frames, tokens, quarter = over_joints.shape
        blocks = over_joints.reshape(n, frames, tokens, CONV_GROUPS, quarter // CONV_GROUPS)
        parts = [
            torch.einsum("ntwgc,gvw->ntvgc", blocks, self.gconv).reshape(n, frames, tokens, quarter),
            self.tconv(over_frames.permute(0, 3, 1, 2)).permute(0, 2, 3, 1),
        ]
        parts += [attention(window) for attention, window in zip(self.attention, (one, two, three, four), strict=True)]
        x = x + self.drop_path(self.proj(torch.cat(parts, 3)))
        x = x + self.drop_path(self.mlp(self.norm_2(x)))
        return x.permute(0, 3, 1, 2)


class Halving(nn.Module):
    """Temporal convolution that halves the frames, and BatchNorm: [N, C, T, W] -> [N, C', T / 2, W]."""

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        self.reduction = nn.Conv2d(channels, width, (KERNEL, 1), (2, 1), (KERNEL // 2, 0))
        self.bn = nn.BatchNorm2d(width)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.bn(self.reduction(x))
        return y


class Block(nn.Module):
    """A transformer, behind a halving of the frames in the first block of all stages but the first."""

    def __init__(self, transformer: Transformer, halving: Halving | None) -> None:
        super().__init__()
        self.downsample = halving
        self.transformer = transformer

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.transformer(x if self.downsample is None else self.downsample(x))
        return y


class Stage(nn.Module):
    """Blocks of one width."""

    def __init__(self, blocks: Sequence[Block]) -> None:
        super().__init__()
        self.blocks = nn.Sequential(*blocks)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.blocks(x)
        return y


def from_published(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """State dict of the published code -> ours: the same names, without the indices of the bias tables, which are computed."""
    return {name: value for name, value in state.items() if not name.endswith(".relative_position_index")}


@backbone("skateformer", options=("widths", "drop_path"), from_published=from_published)
class SkateFormer(nn.Module):
    """Clips [N, C, T, V, M] -> logits [N, K]. T is a multiple of 8: each stage but the first halves it.

    Args:
        layout: the skeleton of the clips; see `joint_groups`.
        num_classes: K.
        num_people, in_channels: M and C.
        widths: channels of each stage, multiples of 32.
        mlp_ratio: channels between the two last products of a block; None: as published, 4 for several people and 1 for one.
        attention_dropout: of the weights of attention.
        drop_path: probability that training drops a branch of the last block; that of the others rises evenly up to it.

    Raises:
        ValueError: a width is not a multiple of 32.
    """

    def __init__(
        self,
        layout: Layout,
        num_classes: int,
        *,
        num_people: int,
        in_channels: int = 3,
        widths: Sequence[int] = WIDTHS,
        mlp_ratio: int | None = None,
        attention_dropout: float = 0.5,
        drop_path: float = 0.2,
    ) -> None:
        super().__init__()
        for width in widths:
            if width % 32 or width < 32:
                raise ValueError(f"stage width {width} is not a multiple of 32; give --network.widths of such widths, or None")
        groups = joint_groups(layout)
        self.groups: Tensor
        self.register_buffer("groups", torch.tensor(groups), persistent=False)
        self.halvings, first, tokens = len(widths) - 1, widths[0], num_people * len(groups)
        stem = [nn.Conv2d(in_channels, 2 * in_channels, 1), nn.GELU(), nn.Conv2d(2 * in_channels, 3 * in_channels, 1), nn.GELU()]
        self.stem = nn.Sequential(*stem, nn.Conv2d(3 * in_channels, first, 1))
        self.joint_person_embedding = nn.Parameter(torch.zeros(first, tokens))
        nn.init.trunc_normal_(self.joint_person_embedding, std=0.02)
        ratio = mlp_ratio or (4 if num_people > 1 else 1)
        kinds, depth = kinds_of(len(groups) // GROUP, num_people), BLOCKS * len(widths)

        def block(stage: int, number: int) -> Block:
            halving = Halving(widths[stage - 1], widths[stage]) if stage and number == 0 else None
            dropped = drop_path * (BLOCKS * stage + number) / max(depth - 1, 1)
            return Block(Transformer(widths[stage], tokens, kinds, ratio, attention_dropout, dropped), halving)

        self.stages = nn.Sequential(*(Stage([block(stage, number) for number in range(BLOCKS)]) for stage in range(len(widths))))
        self.head = nn.Linear(widths[-1], num_classes)

    def forward(self, clips: Tensor) -> Tensor:
        x = clips[:, :, :, self.groups].transpose(3, 4).flatten(3)  # [N, C, T, W]
        x = self.stem(x)
        code = time_code(x, self.joint_person_embedding.shape[0], self.halvings)
        x = x + code.T[:, :, None] * self.joint_person_embedding[:, None]
        logits: Tensor = self.head(self.stages(x).mean((2, 3)))
        return logits


def kinds_of(groups: int, people: int) -> list[Kind]:
    """The four kinds of attention. Near joints are a group, or as published two groups of a person if there are several people;
    distant joints are one of each group of each person."""
    near = 2 * GROUP if people > 1 and groups % 2 == 0 else GROUP
    return [
        Kind(near_frames, near_joints, near if near_joints else people * groups)
        for near_frames in (True, False)
        for near_joints in (True, False)
    ]
