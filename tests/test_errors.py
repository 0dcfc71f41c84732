"""User mistakes are told from bugs, and wrong names get the nearest right one."""

import pytest

from mmrl.errors import UserError, nearest, user_mistakes


def test_wrong_input_becomes_a_user_error_and_a_bug_stays_what_it_is():
    with pytest.raises(UserError, match="^no task sumz$"), user_mistakes():
        raise ValueError("no task sumz")
    with pytest.raises(UserError, match="missing"), user_mistakes():
        raise FileNotFoundError("missing")
    with pytest.raises(TypeError), user_mistakes():
        raise TypeError("a bug")


def test_user_error_passes_unchanged():
    mistake = UserError("once")
    with pytest.raises(UserError) as caught, user_mistakes():
        raise mistake
    assert caught.value is mistake


def test_nearest_names_a_close_name_and_stays_silent_without_one():
    assert nearest("quikstart", ["quickstart", "countdown"]) == " Did you mean quickstart?"
    assert nearest("zzz", ["quickstart", "countdown"]) == ""
