"""When a run left the plateau: by hand, and what the script says to a folder that is no comparison."""

from __future__ import annotations

import plateau
import pytest


def test_the_first_step_whose_window_is_below():
    losses = [4.0, 4.0, 3.0, 2.0, 1.0, 9.0]
    assert plateau.steps_until_below(losses, level=3.0, window=2) == 4
    assert plateau.steps_until_below(losses, level=3.0, window=4) == 5
    assert plateau.steps_until_below(losses, level=1.0, window=2) is None
    assert plateau.steps_until_below([1.0, 1.0], level=3.0, window=3) is None  # too few to say


def test_a_skipped_step_counts_without_a_loss():
    assert plateau.steps_until_below([4.0, None, 2.0, None, 1.0], level=2.0, window=2) == 5
    assert plateau.steps_until_below([4.0, None, 2.0, None, 1.0], level=3.5, window=2) == 3


def test_a_folder_without_a_comparison_is_a_sentence(tmp_path, capsys):
    assert plateau.main([str(tmp_path)]) == 2
    assert "There is no comparison in" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        plateau.main([str(tmp_path), "--window", "0"])
