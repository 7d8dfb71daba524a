from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from workbench.listening.design import Trial, make_plan, public_trial, williams_row, williams_rows
from workbench.listening.study import REFERENCE, Item, Study, System


def study_of(num_items=8, num_systems=3, **values):
    return Study(
        name="s",
        title="S",
        items=tuple(Item(name=f"i{index}", reference="x.wav") for index in range(num_items)),
        systems=tuple(System(name=f"sys{index}", codec="codec2 700C") for index in range(num_systems)),
        **values,
    )


@pytest.mark.parametrize("num", range(1, 13))
def test_a_williams_square_balances_positions_and_followers(num):
    rows = [williams_row(num, row) for row in range(williams_rows(num))]
    positions = Counter((place, treatment) for row in rows for place, treatment in enumerate(row))
    followers = Counter(pair for row in rows for pair in zip(row, row[1:], strict=False))
    assert len(positions) == num**2 and len(set(positions.values())) == 1
    assert len(followers) == num * (num - 1) and len(set(followers.values())) <= 1


def test_the_square_of_four_is_that_of_williams_1949():
    assert [williams_row(4, row) for row in range(4)] == [[0, 1, 3, 2], [1, 2, 0, 3], [2, 3, 1, 0], [3, 0, 2, 1]]


@given(
    num_items=st.integers(1, 9),
    num_systems=st.integers(1, 6),
    per_listener=st.integers(0, 9),
    seed=st.integers(0, 99),
    num_rows=st.integers(1, 30),
)
def test_items_are_balanced_to_one_listener_at_any_time(num_items, num_systems, per_listener, seed, num_rows):
    per_listener = min(per_listener, num_items)
    study = study_of(num_items, num_systems, items_per_listener=per_listener, seed=seed)
    counts = Counter({item.name: 0 for item in study.items})
    for row in range(num_rows):
        items = [trial.item for trial in make_plan(study, row)]
        assert len(set(items)) == len(items) == (per_listener or num_items)
        counts.update(items)
    assert max(counts.values()) - min(counts.values()) <= 1


@pytest.mark.parametrize("per_listener", [0, 4])
def test_each_system_is_in_each_slot_equally_often_for_every_item(per_listener):
    study = study_of(8, 3, items_per_listener=per_listener)  # 4 signals with the hidden reference
    num_rows = 4 if not per_listener else 8  # so that every item is met by four listeners
    counts = Counter(
        (trial.item, slot, system)
        for row in range(num_rows)
        for trial in make_plan(study, row)
        for slot, system in zip(trial.slots, trial.systems, strict=True)
    )
    assert len(counts) == 8 * 4 * 4 and set(counts.values()) == {1}


def test_each_trial_is_at_each_position_equally_often():
    counts = Counter((place, trial.item) for row in range(8) for place, trial in enumerate(make_plan(study_of(8), row)))
    assert len(counts) == 64 and set(counts.values()) == {1}


def test_slots_do_not_follow_a_pattern_that_a_listener_could_learn():
    # Of 24 listeners with 8 trials each, the slot of the hidden reference must not tell the next one.
    moves = Counter()
    for row in range(24):
        places = [trial.systems.index(REFERENCE) for trial in make_plan(study_of(8, 3, seed=1), row)]
        moves.update((b - a) % 4 for a, b in zip(places, places[1:], strict=False))
    assert max(moves.values()) / moves.total() < 0.4  # a quarter each, give or take


def test_a_plan_is_the_same_when_it_is_made_again_and_another_with_another_seed():
    assert make_plan(study_of(seed=1), 3) == make_plan(study_of(seed=1), 3)
    assert make_plan(study_of(seed=1), 3) != make_plan(study_of(seed=2), 3)


@given(row=st.integers(0, 40), repeats=st.integers(1, 4))
def test_repeats_come_later_in_other_slots_order_and_look_like_tests(row, repeats):
    study = study_of(8, 3, repeats_per_listener=repeats)
    plan = make_plan(study, row)
    assert len(plan) == 8 + repeats
    for place, trial in enumerate(plan):
        if trial.kind == "repeat":
            first = next(index for index, other in enumerate(plan) if other.item == trial.item)
            assert plan[first].kind == "test" and place - first >= 2
            assert sorted(trial.systems) == sorted(plan[first].systems)
            assert public_trial(trial, place, study, 1.0)["kind"] == "test"


def test_abx_balances_where_the_reference_is_and_what_x_is():
    study = study_of(2, 1, method="abx", repetitions=4)
    cases = Counter(
        (trial.item, trial.systems[0], trial.systems[2] == trial.systems[0])
        for row in range(3)
        for trial in make_plan(study, row)
    )
    assert set(cases.values()) == {3} and len(cases) == 2 * 2 * 2


def test_ab_and_acr_have_the_trials_that_they_need():
    ab = make_plan(study_of(3, 2, method="ab"), 0)
    assert len(ab) == 6 and all(REFERENCE in trial.systems for trial in ab)
    acr = make_plan(study_of(3, 2, method="acr"), 0)
    assert Counter(trial.systems[0] for trial in acr) == {REFERENCE: 3, "sys0": 3, "sys1": 3}


def test_a_nested_order_keeps_blocks_together_and_fixed_pages_in_place():
    order = ("fixed", "i0", ("random", "i1", ("fixed", "i2", "i3"), "i4"), "i5")
    seen = set()
    for row in range(12):
        items = [trial.item for trial in make_plan(study_of(6, order=order), row)]
        assert items[0] == "i0" and items[-1] == "i5"
        assert items.index("i3") == items.index("i2") + 1
        seen.add(tuple(items))
    assert len(seen) == 6  # all orders of the three parts


def test_what_the_browser_sees_names_no_system_and_no_item():
    study = study_of(4, 3)
    for index, trial in enumerate(make_plan(study, 5)):
        text = str(public_trial(trial, index, study, 3.2))
        assert not any(name in text for name in ("sys", "anchor", "hidden", trial.item))


def test_an_unknown_slot_is_refused():
    trial = Trial(item="i", kind="test", slots=("A", "B"), systems=("x", "y"))
    assert trial.system_of("B") == "y"
    with pytest.raises(ValueError, match="slots A, B"):
        trial.system_of("C")
