"""Skeleton layouts: built-in and custom layouts, and the errors of invalid ones."""

from __future__ import annotations

import re
from itertools import combinations
from pathlib import Path

import pytest
import torch

from shapmix.skeleton.layout import LayoutError, load_layout, parse_layout

STICK = """
name = "stick"
centre = "hip"
joints = ["hip", "neck", "left_hand", "right_hand", "left_foot", "right_foot"]
flips = [["left_hand", "right_hand"], ["left_foot", "right_foot"]]
[parents]
neck = "hip"
left_hand = "neck"
right_hand = "neck"
left_foot = "hip"
right_foot = "hip"
[parts]
body = ["hip", "neck"]
hands = ["left_hand", "right_hand"]
feet = ["left_foot", "right_foot"]
"""


@pytest.mark.parametrize("name", ["ntu25", "coco17", "ucla20"])
def test_built_in_layouts_have_the_papers_parts_and_columns(name: str) -> None:
    layout = load_layout(name)
    published = {
        "ntu25": [[3, 2, 20, 1, 0], [8, 9, 10, 11, 23, 24], [4, 5, 6, 7, 21, 22], [16, 17, 18, 19], [12, 13, 14, 15]],
        "coco17": [[0, 1, 2, 3, 4], [5, 7, 9], [6, 8, 10], [11, 13, 15], [12, 14, 16]],
        "ucla20": [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10, 11], [12, 13, 14, 15], [16, 17, 18, 19]],
    }[name]
    assert [sorted(joints) for joints in layout.parts.values()] == [sorted(joints) for joints in published]
    pairs_then_triples = [sum(1 << part for part in chosen) for size in (2, 3) for chosen in combinations(range(5), size)]
    assert layout.combinations.tolist() == pairs_then_triples
    assert set((layout.all_parts ^ layout.combinations).tolist()) == set(pairs_then_triples)
    counts = [sum(len(published[part]) for part in range(5) if bits >> part & 1) for bits in pairs_then_triples]
    assert layout.joints_in(layout.combinations).tolist() == counts


def test_ucla_parents_are_the_published_ones() -> None:
    published = [2, 3, 3, 3, 3, 5, 6, 7, 3, 9, 10, 11, 1, 13, 14, 15, 1, 17, 18, 19]
    assert [parent + 1 for parent in load_layout("ucla20").parents] == published


def test_up_is_that_of_the_layout_or_the_usual_one() -> None:
    plain, declared = parse_layout(STICK), parse_layout(STICK.replace("centre", 'up = "-z"\ncentre', 1))
    assert [plain.upward(dimension) for dimension in (1, 2, 3, 4)] == [(1, 1), (1, -1), (1, 1), (1, 1)]
    assert [declared.upward(dimension) for dimension in (2, 3)] == [(1, -1), (2, -1)]


@pytest.mark.parametrize(
    ("coordinates", "scores", "message"),
    [
        (3, False, "have 3 coordinates and no score but layout 'stick' is for 2 coordinates: if the last one is a score"),
        (2, True, "have 2 coordinates, the last a score, but layout 'stick' is for 2 .*: if the last one is not a score, omit"),
        (4, False, r"have 4 coordinates and no score but .* copy stick.toml, set dimensions = \[4\] and give the copy"),
        (1, False, "have one coordinate and no score but"),
    ],
)
def test_clips_of_another_dimension_are_refused(coordinates: int, scores: bool, message: str) -> None:
    flat = parse_layout(STICK.replace("centre", "dimensions = [2]\ncentre", 1))
    assert flat.wrong_dimension(2, scores=False) is None
    assert flat.wrong_dimension(3, scores=True) is None
    assert parse_layout(STICK).wrong_dimension(4, scores=False) is None
    assert re.search(message, str(flat.wrong_dimension(coordinates, scores=scores)))


def test_own_layout_from_a_file(tmp_path: Path) -> None:
    path = tmp_path / "stick.toml"
    path.write_text(STICK)
    layout = load_layout(path)
    assert layout.joints[layout.root] == "hip"
    assert layout.edges == ((1, 0), (2, 1), (3, 1), (4, 0), (5, 0))
    assert layout.part_of_joint.tolist() == [0, 0, 1, 1, 2, 2]
    assert layout.combinations.tolist() == [0b001, 0b010, 0b100, 0b011, 0b101, 0b110]
    assert layout.part_names(0b101) == "body+feet"
    graphs = layout.adjacency()
    assert torch.equal(torch.from_numpy(graphs[0]), torch.eye(6))
    assert graphs[1, 0].tolist() == [0, 1, 0, 0, 1, 1]  # inward: hip is the parent of neck and feet


@pytest.mark.parametrize("parts", range(2, 9))
def test_combinations_are_closed_under_complement_for_any_number_of_parts(parts: int) -> None:
    joints = [f"j{number}" for number in range(parts)]
    text = f'name = "n"\ncentre = "j0"\njoints = {joints}\n[parents]\n'
    text += "\n".join(f'{joint} = "j0"' for joint in joints[1:])
    text += "\n[parts]\n" + "\n".join(f'p{number} = ["{joint}"]' for number, joint in enumerate(joints))
    layout = parse_layout(text)
    columns = layout.combinations.tolist()
    assert len(set(columns)) == len(columns)
    assert all((layout.all_parts ^ bits) in columns for bits in columns)
    assert 0 not in columns
    assert layout.all_parts not in columns


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (('feet = ["left_foot", "right_foot"]', 'feet = ["left_foot"]'), "no part has joint 'right_foot'"),
        (('hands = ["left_hand"', 'hands = ["neck", "left_hand"'), "joint 'neck' is in both 'body' and 'hands'"),
        (('hands = ["left_hand"', 'hands = ["left_hnad"'), "unknown joint 'left_hnad'; did you mean 'left_hand'"),
        (('neck = "hip"', 'neck = "left_hand"'), "the bones above joint 'neck' form a cycle"),
        (('neck = "hip"\n', ""), "but hip, neck are missing"),
        (('hip", "neck", "left_hand', 'hip", "hip", "left_hand'), "joint 'hip' is listed twice"),
        (('centre = "hip"', 'center = "hip"'), "unknown key 'center'; did you mean 'centre'"),
        (('name = "stick"\n', ""), "key 'name' is missing"),
        (('hands = ["left_hand", "right_hand"]', "hands = []"), "part 'hands' has no joints"),
        (('[["left_hand", "right_hand"]', '[["left_hand", "left_foot"]'), "'flips' uses a joint of"),
        (('[["left_hand", "right_hand"]', '[["left_hand"]'), "each entry must be a pair"),
        (("[parents]", "[parents"), "not valid TOML"),
        (('centre = "hip"', 'centre = "hip"\nup = "w"'), "'up' is 'w', not one of x, -x, y, -y, z, -z"),
        (('centre = "hip"', 'centre = "hip"\ndimensions = 3'), "'dimensions' is 3, not a list of numbers of coordinates from 1"),
        (('centre = "hip"', 'centre = "hip"\ndimensions = [5]'), "'dimensions' is [5], not a list of numbers of coordinates"),
        (('body = ["hip", "neck"]\nhands = ["left_hand", "right_hand"]\nfeet = ["left_foot", "right_foot"]',
          'all = ["hip", "neck", "left_hand", "right_hand", "left_foot", "right_foot"]'), "1 parts; a layout has 2 to 8"),
    ],
)  # fmt: skip
def test_a_layout_that_contradicts_itself_is_refused(change: tuple[str, str], message: str) -> None:
    assert change[0] in STICK
    with pytest.raises(LayoutError, match=message.replace("[", r"\[")) as error:
        parse_layout(STICK.replace(*change), where="stick.toml")
    assert str(error.value).startswith("stick.toml: ")


def test_unknown_and_missing_layouts_are_named(tmp_path: Path) -> None:
    with pytest.raises(LayoutError, match="unknown layout 'ntu52'; did you mean 'ntu25'"):
        load_layout("ntu52")
    with pytest.raises(LayoutError, match=r"none\.toml: cannot read the layout: No such file"):
        load_layout(tmp_path / "none.toml")
