"""Linking of poses to people, and their seats."""

from __future__ import annotations

import numpy as np

from shapmix.data.sources.people import GAP, link_people, seat_people

RNG = np.random.default_rng(0)
BODY = RNG.uniform(0, 10, size=(17, 2))


def walkers(starts: list[float], frames: int, step: float = 0.5) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Frames, people and joints of people who walk side by side, in a different order in every frame."""
    rows = [(frame, who) for frame in range(frames) for who in RNG.permutation(len(starts))]
    frame_of, person = (np.array(column) for column in zip(*rows, strict=True))
    places = BODY + np.stack([np.array(starts)[person] + step * frame_of, np.zeros(len(rows))], axis=1)[:, None]
    return frame_of, person, places + RNG.normal(size=places.shape) * 0.05


def same_people(found: np.ndarray, expected: np.ndarray) -> bool:
    return len(set(zip(found.tolist(), expected.tolist(), strict=True))) == len(set(found.tolist())) == len(set(expected.tolist()))


def test_people_keep_their_identity_whatever_the_order_of_the_poses() -> None:
    frame_of, person, places = walkers([0, 30, 60], 40)
    assert same_people(link_people(frame_of, places, np.ones(places.shape[:2], bool)), person)


def test_a_person_who_was_missed_for_some_frames_is_found_again() -> None:
    frame_of, person, places = walkers([0, 30], 60, step=0.05)
    for missing, found in ((GAP - 1, True), (GAP + 1, False)):
        kept = (person != 1) | (frame_of < 10) | (frame_of >= 10 + missing)
        linked = link_people(frame_of[kept], places[kept], np.ones((kept.sum(), 17), bool))
        assert same_people(linked, person[kept]) == found


def test_joints_that_were_not_detected_do_not_count() -> None:
    frame_of, person, places = walkers([0, 30], 10)
    seen = np.ones(places.shape[:2], bool)
    seen[::2, 3:] = False
    places[::2, 3:] = 0
    assert same_people(link_people(frame_of, places, seen), person)
    none = np.zeros_like(seen)
    assert len(set(link_people(frame_of, places, none).tolist())) == len(frame_of)


def test_one_person_in_every_frame_is_one_person() -> None:
    places = RNG.uniform(0, 1e4, size=(5, 17, 2))
    assert link_people(np.array([0, 1, 4, 5, 9]), places, np.ones((5, 17), bool)).tolist() == [0] * 5
    assert link_people(np.empty(0, np.int64), places[:0], np.ones((0, 17), bool)).tolist() == []


def test_seats_go_to_the_highest_total_and_are_shared_by_people_who_never_meet() -> None:
    frame_of = np.array([0, 0, 0, 1, 1, 2, 3, 3])
    person = np.array([0, 1, 2, 0, 1, 0, 1, 3])
    weight = np.array([1, 9, 0.5, 1, 9, 1, 9, 0.1])
    # 1 has the highest total, 0 the next; 2 is alone with both in frame 0; 3 sits where 0 has left
    assert seat_people(frame_of, person, weight, 2).tolist() == [1, 0, -1, 1, 0, 1, 0, 1]
    assert seat_people(frame_of, person, weight, 1).tolist() == [-1, 0, -1, -1, 0, -1, 0, -1]


def test_coordinates_beyond_any_image_are_not_linked() -> None:
    frame_of, _, places = walkers([0, 30], 3)
    places[2] = 3e38
    assert len(set(link_people(frame_of, places, np.ones(places.shape[:2], bool)).tolist())) >= 3
