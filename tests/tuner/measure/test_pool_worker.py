"""Answers arrive in the order in which they came, from any thread."""

from __future__ import annotations

import threading

from attnpass.tuner.measure import Inbox


def test_an_inbox_gives_what_was_put_and_none_where_nothing_comes():
    inbox, before = Inbox(), Inbox().now()
    sender = threading.Thread(target=lambda: [inbox.put(i) for i in range(2)])
    sender.start()
    assert [inbox.get(9.0), inbox.get(9.0), inbox.get(0.001)] == [0, 1, None]
    sender.join()
    assert inbox.now() >= before
