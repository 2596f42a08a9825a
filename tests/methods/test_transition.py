"""The rule that opens a stage, on made-up curves."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from growtas.errors import GrowtasError, UsageError
from growtas.methods import MethodSettings, create_method
from growtas.methods.schedule import PLATEAU, latest_epochs, least_epochs, plan
from growtas.methods.transition import (
    LATEST,
    AdaptiveStages,
    TransitionOptions,
    share_of_fall,
)
from growtas.space import load_space

SPACE = load_space("digits")


def stages_of(epochs=80, stages=2, warmup=0.0, **options):
    return AdaptiveStages(plan(SPACE, epochs, stages, PLATEAU), epochs, TransitionOptions(**options), warmup)


def run(adaptive, losses):
    """Feed a curve, epoch by epoch, two steps each. Returns: the records of the log."""
    seen = []
    for epoch, loss in enumerate(losses):
        for part in (-0.1, 0.1):
            adaptive.add_loss(loss + part)
        seen.append(adaptive.end_epoch(epoch))
    return seen


def first_epochs(adaptive):
    return [stage.first_epoch for stage in adaptive.stages]


def learning(epochs, pause=0, last=0.5, speed=0.15):
    """A loss that stands at 4, then falls to ``last`` exponentially."""
    return [last + (4 - last) * math.exp(-speed * max(0, epoch - pause)) for epoch in range(epochs)]


# -- bounds ------------------------------------------------------------------------------------------------


def test_latest_epochs():
    assert latest_epochs(2, 40) == (30,)
    assert latest_epochs(3, 40) == (25, 30)
    assert latest_epochs(2, 60) == (45,) and least_epochs(60) == 8
    assert [stage.first_epoch for stage in plan(SPACE, 40, 3, PLATEAU)] == [0, 25, 30]


@pytest.mark.parametrize(("stages", "epochs"), [(2, 1), (3, 2)])
def test_runs_too_short_for_their_stages(stages, epochs):
    with pytest.raises(UsageError, match="do not fit into"):
        plan(SPACE, epochs, stages, PLATEAU)


def test_a_warm_up_beyond_the_latest_epoch():
    with pytest.raises(UsageError, match="warmup_epochs=61 lasts beyond epoch 60"):
        stages_of(80, warmup=61)


@given(
    st.integers(2, 3),
    st.integers(8, 60),
    st.lists(st.floats(0, 2), min_size=60, max_size=60),
    st.sampled_from([0.0, 2.5]),
)
def test_whatever_is_seen_the_bounds_hold(stages, epochs, losses, warmup):
    adaptive = stages_of(epochs, stages, warmup)
    run(adaptive, losses[:epochs])
    starts = first_epochs(adaptive)
    lengths = [b - a for a, b in zip(starts, [*starts[1:], epochs], strict=True)]
    assert all(8 * length >= epochs for length in lengths) and 4 * lengths[-1] >= epochs
    assert starts[1] >= warmup
    assert adaptive.waiting is None and len(adaptive.opened_by) == stages - 1
    for start, latest, by in zip(starts[1:], latest_epochs(stages, epochs), adaptive.opened_by, strict=True):
        assert start <= latest and by in (PLATEAU, LATEST)


# -- plateau -----------------------------------------------------------------------------------------------


def test_share_of_fall():
    assert share_of_fall([4, 3, 2], 2) is None
    assert share_of_fall([4, 4, 2, 2], 2) == 1
    assert share_of_fall([4, 2, 2, 1.5, 1.5], 2) == pytest.approx(0.5 / 2.5)
    assert share_of_fall([1, 1, 1, 1], 2) == 0
    assert share_of_fall([1, 2, 3, 4], 2) < 0


def test_a_plateau_opens_the_stage():
    adaptive = stages_of()
    seen = run(adaptive, learning(80))
    (opening,) = [record for record in seen if "opens" in record]
    epoch = opening["at_epoch"]
    assert first_epochs(adaptive) == [0, epoch] and adaptive.opened_by == ["plateau"]
    assert 10 < epoch < 60
    shares = [share_of_fall(learning(end), 5) for end in range(1, 81)]
    assert next(end for end, share in enumerate(shares, 1) if share is not None and share <= 0.05) == epoch
    assert opening == {
        "loss": pytest.approx(learning(80)[epoch - 1]),
        "share_of_fall": pytest.approx(shares[epoch - 1]),
        "opens": 1,
        "at_epoch": epoch,
        "opened_by": "plateau",
    }
    assert not any(seen[epoch:])  # nothing is watched any more


def test_faster_learning_opens_earlier():
    found = []
    for speed in (0.1, 0.15, 0.3):
        adaptive = stages_of()
        run(adaptive, learning(80, speed=speed))
        found.append(first_epochs(adaptive)[1])
    assert found[0] > found[1] > found[2]


def test_standing_still_before_anything_was_learned_is_no_plateau():
    slow, adaptive = learning(80, pause=30), stages_of()
    run(adaptive, slow)
    assert first_epochs(adaptive)[1] > 40 and adaptive.opened_by == ["plateau"]
    ready = stages_of(least_fall=0.0)
    run(ready, slow)
    assert first_epochs(ready) == [0, 10]


def test_what_never_falls_opens_at_the_latest_epoch():
    for losses in ([4.0] * 80, [4 + epoch / 80 for epoch in range(80)], [math.nan] * 80):
        adaptive = stages_of()
        run(adaptive, losses)
        assert first_epochs(adaptive) == [0, 60] and adaptive.opened_by == [LATEST]


def test_a_stage_lasts_an_eighth_even_where_nothing_moves():
    adaptive = stages_of(window=1)
    run(adaptive, [4.0] + [1.0] * 79)
    assert first_epochs(adaptive) == [0, 10]


def test_no_stage_opens_before_the_warm_up_is_over():
    adaptive = stages_of(warmup=17.5)
    run(adaptive, [4.0] + [1.0] * 79)
    assert first_epochs(adaptive) == [0, 18]


def test_later_stages_are_judged_by_their_own_fall():
    losses = [4.0] + [2.0] * 9 + learning(70, last=1.0, speed=0.2)
    adaptive = stages_of(stages=3)
    run(adaptive, losses)
    first, second = first_epochs(adaptive)[1:]
    assert first == 11 and 25 < second < latest_epochs(3, 80)[1]
    assert adaptive.opened_by == ["plateau", "plateau"]


def test_a_stage_is_judged_by_epochs_of_its_own():
    adaptive = stages_of(stages=3, window=8)
    run(adaptive, [4.0] + [1.0] * 79)
    first, second = first_epochs(adaptive)[1:]
    assert second == first + 2 * adaptive.window and adaptive.opened_by == [PLATEAU, PLATEAU]


def test_the_fall_that_the_rule_waits_for_is_that_of_the_last_window():
    adaptive = stages_of(window=1)
    run(
        adaptive, [4.0] * 20 + [3.5] * 60
    )  # the mean of the stage is still above nine tenths of its first loss
    assert first_epochs(adaptive) == [0, 22]


def test_the_fall_that_the_rule_waits_for_is_from_the_first_loss_of_the_run():
    adaptive = stages_of(stages=3, window=1)
    run(adaptive, [4.0] + [1.0] * 79)  # stage 2 begins with what stage 1 had learned, and stands still
    assert first_epochs(adaptive) == [0, 10, 20] and adaptive.opened_by == ["plateau", "plateau"]


def test_steps_without_a_finite_loss_do_not_count():
    adaptive = stages_of()
    adaptive.add_loss(2.0)
    adaptive.add_loss(math.nan)
    adaptive.add_loss(math.inf)
    assert adaptive.end_epoch(0) == {"loss": 2.0}
    assert adaptive.end_epoch(1) == {}


# -- state and options -------------------------------------------------------------------------------------


@pytest.mark.parametrize("at", [1, 7, 15, 30, 55])
def test_state(at):
    losses, whole = learning(80), stages_of(stages=3)
    expected = run(whole, losses)
    before, after = stages_of(stages=3), stages_of(stages=3)
    run(before, losses[:at])
    before.add_loss(losses[at] - 0.1)  # in the middle of an epoch
    after.load_state_dict(before.state_dict())
    after.add_loss(losses[at] + 0.1)
    assert after.end_epoch(at) == expected[at]
    for epoch in range(at + 1, 80):
        after.add_loss(losses[epoch] - 0.1)
        after.add_loss(losses[epoch] + 0.1)
        assert after.end_epoch(epoch) == expected[epoch]
    assert after.stages == whole.stages and after.state_dict() == whole.state_dict()


def test_a_method_goes_on_with_the_stages_of_its_state():
    settings = MethodSettings(SPACE, 10, 80, 5, transition="plateau")
    first, second = (create_method("growtas", settings) for _ in range(2))
    run(first.adaptive, [4.0] + [1.0] * 79)
    second.load_state_dict(first.state_dict())
    assert second.stages == first.adaptive.stages != create_method("growtas", settings).stages


def test_a_state_of_something_else_is_refused():
    adaptive = stages_of()
    before = adaptive.state_dict()
    for state in ({}, {**before, "first_epochs": [0]}, {**before, "losses": None}):
        with pytest.raises(GrowtasError, match="transition='plateau'"):
            adaptive.load_state_dict(state)
        assert adaptive.state_dict() == before


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ("window=0", "window=0 of growtas is not possible; it must be 1 or more"),
        ("tolerance=-1", "tolerance=-1.0"),
        ("tolerance=nan", "tolerance=nan"),
        ("least_fall=1", "below 1"),
        ("windw=3", "Did you mean 'window'"),
    ],
)
def test_bad_options(options, sentence):
    with pytest.raises(UsageError, match=sentence):
        create_method("growtas", MethodSettings(SPACE, 10, 40, 5, transition="plateau", options=options))


def test_options_need_the_rule():
    with pytest.raises(UsageError, match="window of growtas has a meaning only with"):
        create_method("growtas", MethodSettings(SPACE, 10, 40, 5, transition="midpoint", options="window=3"))
