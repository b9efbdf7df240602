"""A layout in words."""

from __future__ import annotations

from shapmix.skeleton.layout import Layout


def heading(layout: Layout) -> str:
    """One line: numbers of joints, parts and coordinates, and the axis that points up."""
    numbers = " or ".join(map(str, layout.dimensions)) or "any number of"
    axis, sign = layout.upward(max(layout.dimensions, default=3))
    return (
        f"{layout.num_joints} joints, {layout.num_parts} parts ({len(layout.combination_bits)} combinations), {numbers} "
        f"coordinates, {'xyz'[axis]} points {'up' if sign > 0 else 'down'}"
    )


def joint_rows(layout: Layout) -> list[tuple[str, str, str, str, str]]:
    """(number, joint, parent, mirrored joint, part) of every joint, `-` for what it does not have."""
    parts = list(layout.parts)
    return [
        (
            str(number),
            joint,
            layout.joints[layout.parents[number]] if layout.parents[number] != number else "-",
            layout.joints[layout.flips[number]] if layout.flips[number] != number else "-",
            parts[part],
        )
        for number, (joint, part) in enumerate(zip(layout.joints, layout.part_of_joint.tolist(), strict=True))
    ]


def summary(layout: Layout) -> str:
    """Several lines: the heading, and a table of the joints."""
    rows = [("", "joint", "parent", "mirrored", "part"), *joint_rows(layout)]
    widths = [max(len(row[column]) for row in rows) for column in range(4)]
    lines = [
        f"  {row[0]:>{widths[0]}}  "
        + "  ".join(f"{cell:<{width}}" for cell, width in zip(row[1:4], widths[1:], strict=True))
        + f"  {row[4]}"
        for row in rows
    ]
    return "\n".join([f"{layout.name}: {heading(layout)}; centre {layout.joints[layout.centre]}", *lines])
