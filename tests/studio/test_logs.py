"""What the studio's server prints."""

from __future__ import annotations

import logging

import pytest

from undiffuse.studio.logs import leave_out_disconnects


class ClientDisconnect(Exception):
    """Of the same name as the server's."""


@pytest.mark.parametrize(("error", "shown"), [(ClientDisconnect(), False), (ValueError("a fault"), True)])
def test_a_closed_page_is_no_news_but_a_fault_is(
    error: Exception, shown: bool, caplog: pytest.LogCaptureFixture
) -> None:
    logger = logging.getLogger("uvicorn.error")
    before = list(logger.filters)
    try:
        leave_out_disconnects()
        with caplog.at_level(logging.ERROR, logger="uvicorn.error"):
            logger.error("Exception in ASGI application", exc_info=error)
            logger.error("in words")
    finally:
        logger.filters[:] = before
    assert [record.message for record in caplog.records] == ["Exception in ASGI application"] * shown + ["in words"]
