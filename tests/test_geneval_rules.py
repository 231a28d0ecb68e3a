# Copyright 2026 The diffusers-craft authors. Licensed under the Apache License, Version 2.0.
"""GenEval's rules against cases worked out by hand from their published description."""

import pytest

from diffusers_craft.rewards.benchmarks.geneval import (
    Detection,
    find_failures,
    keep_detections,
    relative_position,
)


def box(x, y, width, height):
    """A box around a centre."""
    return (x - width / 2, y - height / 2, x + width / 2, y + height / 2)


def dog(score=0.95, at=(0, 0), size=10, label="dog"):
    return Detection(label, score, box(*at, size, size))


@pytest.mark.parametrize(
    ("score", "counting", "kept"), [(0.3, False, 0), (0.31, False, 1), (0.9, True, 0), (0.91, True, 1), (0.5, True, 0)]
)
def test_thresholds_are_exclusive_and_higher_for_counting(score, counting, kept):
    assert len(keep_detections([dog(score)], counting).get("dog", [])) == kept


def test_keeps_the_surest_sixteen_of_a_class_even_where_they_overlap():
    detections = [dog(0.31 + i / 100) for i in range(20)] + [dog(0.4, label="cat")]
    kept = keep_detections(detections, counting=False)
    assert [round(d.score, 2) for d in kept["dog"]] == [round(0.31 + i / 100, 2) for i in range(19, 3, -1)]
    assert len(kept["cat"]) == 1


@pytest.mark.parametrize(
    ("offset", "relations"),
    [
        ((-100, 0), {"left of"}),
        ((100, 0), {"right of"}),
        ((0, -100), {"above"}),
        ((0, 100), {"below"}),
        ((100, 100), {"right of", "below"}),
        ((100, 50), {"right of"}),  # 50 / 111.8 is below one half even before the shrink
        ((0, 0), set()),
    ],
)
def test_position_of_points(offset, relations):
    assert relative_position(box(*offset, 0, 0), box(0, 0, 0, 0)) == relations


def test_small_offsets_are_shrunk_away():
    """Sizes 100 and 100: the shrink is 0.1 * 200 = 20 pixels an axis."""
    assert relative_position(box(20, 0, 100, 100), box(0, 0, 100, 100)) == set()
    # 39 -> 19, over the unshrunk length 39: 0.487, not beyond one half; 41 -> 21 / 41 = 0.512 is.
    assert relative_position(box(39, 0, 100, 100), box(0, 0, 100, 100)) == set()
    assert relative_position(box(41, 0, 100, 100), box(0, 0, 100, 100)) == {"right of"}


def test_the_norm_is_the_unshrunk_one():
    """Offset (60, 50), shrink (20, 20): (40, 30). Over |(60, 50)| = 78.1 it is (0.512, 0.384): right of alone.

    Over the shrunk length 50 it would be (0.8, 0.6): both.
    """
    assert relative_position(box(60, 50, 100, 100), box(0, 0, 100, 100)) == {"right of"}


def test_the_shrink_takes_each_axis_by_its_own_sizes():
    """A wide and flat pair, 200 x 10 each: 40 pixels across, 2 down. (30, 30) -> (0, 28) / 42.4: below alone."""
    assert relative_position(box(30, 30, 200, 10), box(0, 0, 200, 10)) == {"below"}


def counting(found, wanted):
    metadata = {
        "tag": "counting",
        "include": [{"class": "dog", "count": wanted}],
        "exclude": [{"class": "dog", "count": wanted + 1}],
    }
    return find_failures(keep_detections([dog(at=(20 * i, 0)) for i in range(found)], True), metadata)


@pytest.mark.parametrize(("found", "wanted"), [(2, 2), (3, 3), (4, 4)])
def test_counting_exactly(found, wanted):
    assert counting(found, wanted) == []


def test_counting_too_few_and_too_many():
    assert counting(1, 2) == ["expected 2 dog, found 1"]
    assert counting(4, 3) == ["expected fewer than 4 dog, found 4"]


def test_two_objects_need_both():
    metadata = {"include": [{"class": "dog", "count": 1}, {"class": "cat", "count": 1}]}
    assert find_failures({"dog": [dog()], "cat": [dog(label="cat")]}, metadata) == []
    assert find_failures({"dog": [dog(), dog()]}, metadata) == ["expected 1 cat, found 0"]


def test_colour_is_that_of_the_surest_objects_only():
    """One red dog is asked for; the surest is blue, the second, red, is not looked at."""
    metadata = {"include": [{"class": "dog", "count": 1, "color": "red"}]}
    colors = {0.9: "blue", 0.8: "red"}
    dogs = [dog(0.9), dog(0.8)]
    failures = find_failures({"dog": dogs}, metadata, lambda found: [colors[d.score] for d in found])
    assert failures == ["expected 1 red dog, found blue"]
    assert find_failures({"dog": dogs[1:]}, metadata, lambda found: [colors[d.score] for d in found]) == []
    with pytest.raises(ValueError, match="geneval: expected a colour classifier for red dog"):
        find_failures({"dog": dogs}, metadata)


def test_attribute_binding_asks_each_class_for_its_own_colour():
    metadata = {
        "include": [{"class": "dog", "count": 1, "color": "red"}, {"class": "cat", "count": 1, "color": "blue"}]
    }
    objects = {"dog": [dog()], "cat": [dog(label="cat")]}
    assert find_failures(objects, metadata, lambda found: ["red" if found[0].label == "dog" else "blue"]) == []
    swapped = find_failures(objects, metadata, lambda found: ["blue" if found[0].label == "dog" else "red"])
    assert swapped == ["expected 1 red dog, found blue", "expected 1 blue cat, found red"]


def test_position_refers_to_an_earlier_object():
    metadata = {
        "include": [{"class": "dog", "count": 1}, {"class": "cat", "count": 1, "position": ["left of", 0]}],
    }
    right, left = ({"dog": [dog()], "cat": [dog(at=(x, 0), label="cat")]} for x in (100, -100))
    assert find_failures(left, metadata) == []
    assert find_failures(right, metadata) == ["expected cat left of dog, found right of"]
    missing = find_failures({"cat": left["cat"]}, metadata)
    assert missing == ["expected 1 dog, found 0", "expected cat left of an object that is not there"]


def test_every_object_must_stand_so_to_every_target():
    metadata = {
        "include": [{"class": "dog", "count": 2}, {"class": "cat", "count": 1, "position": ["above", 0]}],
    }
    objects = {"dog": [dog(), dog(at=(0, -200))], "cat": [dog(at=(0, -100), label="cat")]}
    assert find_failures(objects, metadata) == ["expected cat above dog, found below"]


def test_a_wrong_colour_is_no_target():
    metadata = {
        "include": [
            {"class": "dog", "count": 1, "color": "red"},
            {"class": "cat", "count": 1, "position": ["left of", 0]},
        ]
    }
    objects = {"dog": [dog()], "cat": [dog(at=(-100, 0), label="cat")]}
    assert len(find_failures(objects, metadata, lambda found: ["blue"])) == 2
