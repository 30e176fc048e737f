"""Which task index each row of an input has in an output that earlier runs left, by what the rows ask.

An input may have been edited between two runs: rows put in, taken out, moved. A row whose question the output knows
keeps the index it has there, wherever it stands now, so that nothing is paid twice; a row that nobody asked before
keeps its place as its index if that is free, and else gets one that is.

See also: plan (who asks), questions (the checksum).
"""

from __future__ import annotations

import itertools
from array import array

import msgspec

from openai_gateway.collect.marks import Checksums


class Matches(msgspec.Struct):
    """`indices` holds each row's task index, None if that is its place.

    `moved` rows were found in another place, `new` ones have a place that is taken, `orphans` are answered tasks that
    are no row's any more, `found` those that are.
    """

    indices: array[int] | None = None
    moved: int = 0
    new: int = 0
    orphans: int = 0
    found: int = 0


def match_rows(asked: array[int], answered: Checksums) -> Matches:
    """Return the index of each row: `asked` holds their checksums in order, 0 where a row brings its own index."""
    away = array("q")
    known, last = 0, len(asked) - 1
    for index, checksum in answered.items():
        known += 1
        last = max(last, index)
        if index >= len(asked) or asked[index] not in (0, checksum):
            away.append(index)
    found = known - len(away)
    if not away:
        return Matches(found=found)
    # The first answered task of each question that is not in its place, and after a task the next that asked the same.
    first: dict[int, int] = {}
    following: dict[int, int] = {}
    for index in reversed(away):
        checksum = answered.get(index)
        if checksum in first:
            following[index] = first[checksum]
        first[checksum] = index
    indices = array("q", range(len(asked)))
    matches = Matches(indices, found=found)
    without = array("q")
    for place, checksum in enumerate(asked):
        theirs = answered.get(place)
        if checksum == 0 or theirs == checksum:
            continue
        if checksum in first:
            indices[place] = index = first.pop(checksum)
            if index in following:
                first[checksum] = following[index]
            matches.moved += 1
        elif theirs:
            without.append(place)
    # Places whose rows moved away are free, as are all numbers after the last.
    left = (place for place, index in enumerate(indices) if index != place and not answered.get(place))
    for place, index in zip(without, list(itertools.islice(left, len(without))), strict=False):
        indices[place] = index
        matches.new += 1
    for place in without[matches.new :]:
        last += 1
        indices[place] = last
        matches.new += 1
    matches.found += matches.moved
    matches.orphans = known - matches.found
    return matches
