"""A few of the crash rounds, so that it is seen that they work, and that nothing is badly broken; `cargo xtask python crash` has more."""

import pytest

from conftest import HERE, python


@pytest.mark.parametrize("form", [[], ["--carrier"]], ids=["log", "carrier"])
def test_nothing_is_torn_or_left_in_doubt_by_kill_9(form):
    said = python(str(HERE / "crash.py"), "--rounds", "2", "--seed", "3", *form)
    last = said.splitlines()[-1]
    assert "left in doubt 0, torn 0, acknowledged and lost 0;" in last, said
