"""Made-up requests by the API's own description: whatever is asked, the board does not fail."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import schemathesis
from boards import serving
from hypothesis import HealthCheck, given, settings
from schemathesis.checks import not_a_server_error

from hpcai500.leaderboard.accounts import add_organisation, create_token
from hpcai500.leaderboard.app import create_app
from hpcai500.leaderboard.board import BoardConfig

SETTINGS = settings(
    max_examples=15, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck)
)


@pytest.fixture(scope="module")
def asked(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, str]]:
    """A board's address and a token that may do everything."""
    folder = tmp_path_factory.mktemp("fuzzed")
    app = create_app(
        BoardConfig(folder=folder / "board", num_workers=0, requests_per_minute=10**6, tickets_per_hour=10**6)
    )
    with app.state.board.database.writing() as session:
        add_organisation(session, "a", "Organisation A")
        token = create_token(session, "a", ["upload", "challenge", "ticket"], label="test", days=1)
    with serving(app) as url:
        yield url, token


def test_no_request_makes_the_board_fail(asked: tuple[str, str]) -> None:
    url, token = asked
    statuses: set[int] = set()

    def check(case: Any) -> None:
        answer = case.call(headers={"Authorization": f"Bearer {token}"})
        case.validate_response(answer, checks=[not_a_server_error])
        statuses.add(answer.status_code)
        if answer.status_code >= 400 and case.method != "HEAD":
            assert list(answer.json()) == ["error"]

    names = []
    for operation in schemathesis.openapi.from_url(f"{url}/openapi.json").get_all_operations():
        names.append(operation.ok().label)
        SETTINGS(given(operation.ok().as_strategy())(check))()
    assert "PATCH /api/uploads/{upload_id}" in names
    assert {200, 201, 404, 422} <= statuses
