"""The order of a cycle's training: every object as often as it should be, whenever shards arrive and wherever a run was cut."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from lvsm_train.data.rounds import Rounds, StepEntries, entries
from pipeline.cycle.protocol import Cursor, Slot, Window

SLOT = st.builds(Slot, st.integers(0, 6), st.integers(1, 5))


@dataclass(frozen=True)
class Case:
    """A cycle: its shards, and how a trainer goes through them. A step takes parts * batch entries."""

    slots: tuple[Slot, ...]
    life: int
    batch: int
    parts: int
    seed: int

    @property
    def count(self) -> int:
        return self.batch * self.parts

    @property
    def samples(self) -> int:
        return sum(slot.samples for slot in self.slots)

    def window(self, numbers: Sequence[int] | range | None = None, first: int = 0, ended: bool = True) -> Window:
        """With the shards of these numbers, `first` and later ones; default: all."""
        numbers = range(len(self.slots)) if numbers is None else numbers
        there = {number: self.slots[number] for number in numbers if number >= first}
        objects = max(1, sum(slot.objects for slot in self.slots))
        return Window(self.life, objects, there, True, len(self.slots) if ended else None)

    def rounds(self, cursor: Cursor | None = None) -> Rounds:
        return Rounds(self.seed, cursor or Cursor())

    def taken(self, cursor: Cursor | None = None, first: int = 0) -> list[StepEntries]:
        """All from a cursor on, with shards before `first` forgotten."""
        rounds, window = self.rounds(cursor), self.window(first=first)
        made = list(iter(lambda: rounds.take(window, self.count, self.parts), None))
        assert rounds.over
        return made


CASES = st.builds(
    Case,
    st.lists(SLOT, min_size=1, max_size=9).map(tuple),
    st.integers(1, 5),
    st.integers(1, 5),
    st.integers(1, 3),
    st.integers(0, 2**40),
)


def told(taken: Sequence[StepEntries]) -> list[object]:
    return [(one.entries.tolist(), one.first, one.after, one.last) for one in taken]


# ---- what a run sees


@given(CASES)
def test_every_object_is_taken_as_often_as_its_shard_says(case: Case) -> None:
    counted = Counter(tuple(entry) for one in case.taken() for entry in one.entries.tolist())
    owed = Counter(
        {(n, each): slot.passes for n, slot in enumerate(case.slots) for each in range(slot.objects) if slot.passes}
    )
    assert counted <= owed
    assert counted.total() == case.samples // case.parts * case.parts
    if case.parts == 1:
        assert counted == owed


@given(CASES)
def test_steps_are_full_but_the_last_and_one_of_them_is_the_last(case: Case) -> None:
    made = case.taken()
    sizes = [len(one.entries) for one in made]
    assert all(size == case.count for size in sizes[:-1])
    assert all(size % case.parts == 0 and 0 < size <= case.count for size in sizes)
    assert [one.last for one in made] == [False] * (len(made) - 1) + [True] * bool(made)
    assert [one.first for one in made] == np.cumsum([0, *sizes])[:-1].tolist()


@given(CASES)
def test_the_cursor_only_moves_on(case: Case) -> None:
    before = Cursor()
    for one in case.taken():
        assert not [slot for slot, _ in one.entries.tolist() if slot < before.done]
        after = one.after
        assert after.done >= before.done and (after.round, after.offset) >= (before.round, before.offset)
        assert one.last or after.round >= after.done  # so the window may forget shards from `life` before `done` on
        assert after.position == before.position + len(one.entries) and after.place > before.place
        before = after
    if case.samples >= case.parts:
        assert before.done == len(case.slots)
        left = (case.samples - before.position) / max(1, sum(slot.objects for slot in case.slots))
        assert 1 - left - 1e-9 <= before.place <= 1 + 1e-9
        if case.parts == 1:
            assert abs(before.place - 1) < 1e-9 and before.counts == {}


@given(CASES)
def test_the_cursor_counts_what_was_taken(case: Case) -> None:
    seen: Counter[int] = Counter()
    for one in case.taken():
        seen.update(one.entries[:, 0].tolist())
        for number, slot in enumerate(case.slots):
            known = one.after.counts.get(number, slot.samples if number < one.after.done else 0)
            assert seen[number] == known


# ---- when shards arrive, and when a run is cut


@given(CASES, st.data())
def test_the_order_does_not_depend_on_when_shards_arrive(case: Case, data: st.DataObject) -> None:
    arrivals = data.draw(st.permutations(range(len(case.slots))))  # each is closed when its last object has ended
    told_end = data.draw(st.booleans())  # before the last shard, or long after it
    rounds, made = case.rounds(), list[StepEntries]()
    there, ended, committed = list[int](), told_end, Cursor()
    while True:
        window = case.window(there, max(0, committed.done - case.life), ended)
        one = rounds.take(window, case.count, case.parts)
        if one is not None:
            made.append(one)
            committed = data.draw(st.sampled_from([committed, one.after]))  # a checkpoint now and then
        elif rounds.over:
            break
        elif arrivals:
            assert rounds.round not in there
            there.append(arrivals.pop(0))
        else:
            assert not ended
            ended = True
    assert told(made) == told(case.taken())


@given(CASES)
def test_a_run_that_was_cut_goes_on_in_the_same_order(case: Case) -> None:
    whole = case.taken()
    for at, one in enumerate(whole):
        cursor = Cursor.from_json(json.loads(json.dumps(one.after.as_json())))
        assert cursor == one.after
        assert told(case.taken(cursor, max(0, cursor.done - case.life))) == told(whole[at + 1 :])


@given(CASES, st.integers(0, 9))
def test_it_knows_whether_there_is_a_next_step(case: Case, known: int) -> None:
    """Without taking it: what it says is what `take` does, and changes nothing."""
    rounds, window = case.rounds(), case.window(range(min(known, len(case.slots))), ended=known > len(case.slots))
    made = []
    while rounds.ready(window, case.count, case.parts) and (one := rounds.take(window, case.count, case.parts)):
        made.append(one)
    assert rounds.take(window, case.count, case.parts) is None
    assert told(made) == told(case.taken()[: len(made)])


# ---- what a round is made of


@given(CASES)
def test_a_round_is_of_its_shards_in_even_shares(case: Case) -> None:
    slots = dict(enumerate(case.slots))
    for number in range(len(slots) + case.life):
        made = entries(case.seed, number, slots, case.life)
        counted = Counter(made[:, 0].tolist())
        assert set(counted) <= set(range(max(0, number - case.life + 1), number + 1))
        for slot in range(max(0, number - case.life + 1), min(number + 1, len(slots))):
            assert abs(counted[slot] - slots[slot].samples / case.life) < 1
        often = Counter(map(tuple, made.tolist()))
        assert all(times <= -(-slots[slot].passes // case.life) for (slot, _), times in often.items())


@given(st.integers(0, 2**40), st.integers(0, 2**40))
def test_seeds_and_rounds_have_orders_of_their_own(one: int, other: int) -> None:
    slots = {number: Slot(20, 3) for number in range(6)}
    orders = [entries(seed, number, slots, 3).tobytes() for seed in {one, other} for number in range(2, 6)]
    assert len(set(orders)) == len(orders)
    early = {frozenset(entries(seed, 0, {0: Slot(60, 1)}, 3)[:, 1].tolist()) for seed in {one, other}}
    assert len(early) == len({one, other})


def test_shards_are_mixed_within_a_round() -> None:
    """Each quarter of a round has about as much of each of its shards: nothing comes in blocks."""
    slots = {number: Slot(100, 3) for number in range(8)}
    made = entries(0, 5, slots, 3)
    assert len(made) == 300
    for quarter in np.split(made[:, 0], 4):
        assert min(np.bincount(quarter, minlength=6)[3:]) > 12  # of 25 on average
