# SPDX-License-Identifier: Apache-2.0
"""What is told of a trouble that lasts."""

from lb.upkeep.trouble import Trouble


def test_a_trouble_is_news_when_it_begins_and_when_it_changes() -> None:
    trouble = Trouble()
    told = [trouble.is_news(OSError(text)) for text in ("no room", "no room", "no rights", "no room")]
    assert told == [True, False, True, True]
    trouble.end()
    assert trouble.is_news(OSError("no room"))
