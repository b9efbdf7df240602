"""Pictures of layouts as SVG: bones and joints in the colours of their parts, with the numbers of the joints."""

from __future__ import annotations

from html import escape

from shapmix.skeleton.layout import Layout
from shapmix.skeleton.rest_pose import rest_pose

PART_COLOURS = ("#5b6770", "#d95f02", "#1f78b4", "#e6ab02", "#1b9e77", "#e7298a", "#7570b3", "#a6761d")
MOST_NUMBERS = 40  # joints of a picture with numbers; more overlap
HEIGHT, MARGIN = 380, 24  # pixels
LEGEND_LINE = 18


def layout_svg(layout: Layout) -> str:
    """SVG of a skeleton, the person facing the viewer; the name of a joint and of its part shows when it is pointed at."""
    places = rest_pose(layout)
    low, high = places.min(0), places.max(0)
    scale = (HEIGHT - 2 * MARGIN) / max(float(high[1] - low[1]), 1e-6)
    if (high[0] - low[0]) > 1.5 * (high[1] - low[1]):
        scale = (1.5 * HEIGHT - 2 * MARGIN) / float(high[0] - low[0])
    x = MARGIN + (places[:, 0] - low[0]) * scale
    y = MARGIN + (high[1] - places[:, 1]) * scale
    width, bottom = float(x.max()) + MARGIN, float(y.max()) + MARGIN
    part_of = layout.part_of_joint.tolist()
    bones = [
        f'<line x1="{x[child]:.1f}" y1="{y[child]:.1f}" x2="{x[parent]:.1f}" y2="{y[parent]:.1f}" '
        f'stroke="{PART_COLOURS[part_of[child]]}"/>'
        for child, parent in layout.edges
    ]
    numbered = layout.num_joints <= MOST_NUMBERS
    joints = []
    for joint, name in enumerate(layout.joints):
        title = f"<title>{joint} {escape(name)} ({escape(list(layout.parts)[part_of[joint]])})</title>"
        place, colour = f'cx="{x[joint]:.1f}" cy="{y[joint]:.1f}"', PART_COLOURS[part_of[joint]]
        joints.append(f'<circle {place} r="{7.5 if numbered else 2.2}" fill="{colour}">{title}</circle>')
        if numbered:
            joints.append(f'<text x="{x[joint]:.1f}" y="{y[joint] + 3:.1f}">{joint}</text>')
    whole = width + 30 + 7.5 * max(map(len, layout.parts))
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {whole:.0f} {bottom:.0f}" width="{whole:.0f}" height="{bottom:.0f}" '
        f'font-family="sans-serif" role="img" aria-label="Joints, bones and parts of {escape(layout.name)}">\n'
        f'<g stroke-width="3" stroke-linecap="round">{"".join(bones)}</g>\n'
        f'<g font-size="8" fill="#fff" text-anchor="middle">{"".join(joints)}</g>\n'
        f'<g font-size="12" fill="currentColor">{"".join(_legend(layout, width))}</g>\n</svg>\n'
    )


def _legend(layout: Layout, left: float) -> list[str]:
    return [
        f'<circle cx="{left + 8:.1f}" cy="{MARGIN + LEGEND_LINE * part:.1f}" r="5" fill="{PART_COLOURS[part]}"/>'
        f'<text x="{left + 20:.1f}" y="{MARGIN + LEGEND_LINE * part + 4:.1f}">{escape(name)}</text>'
        for part, name in enumerate(layout.parts)
    ]
