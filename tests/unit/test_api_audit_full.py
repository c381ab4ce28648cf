# SPDX-License-Identifier: Apache-2.0
"""A full disk: changes are still made and answered; what the audit log lacks is in the journal."""

from pathlib import Path

from tests.unit.api_support import running_api


def test_a_change_is_answered_although_its_audit_line_cannot_be_written(tmp_path: Path) -> None:
    with running_api(tmp_path / "gw") as api:
        # What stands in the way of opening a file is the same to the API as no room for it.
        api.audit_file.mkdir(parents=True)
        answer, _ = api.client().request("POST", "/v1/nodes/gw2/drain")
        assert "no new connections" in str(answer)
        assert api.control.drained == {"gw2"}
