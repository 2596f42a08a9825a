"""When stages began: from made-up records, and what the script says to a folder that is no comparison."""

from __future__ import annotations

import transitions


def test_stages_after_the_first_with_what_opened_them():
    records = [
        {"stage": 0, "epoch": 0},
        {"stage": 1, "epoch": 13, "opened_by": "plateau"},
        {"stage": 2, "epoch": 30},
    ]
    assert list(transitions.later_stages(records)) == [(1, 13, "plateau"), (2, 30, None)]
    assert list(transitions.later_stages(records[:1])) == []


def test_a_folder_without_a_comparison(tmp_path, capsys):
    assert transitions.main([str(tmp_path)]) == 2
    assert f"There is no comparison in {tmp_path}" in capsys.readouterr().err
