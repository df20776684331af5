"""How the controller's half of module ufw comes back: what it asks, how often, and what it says."""

from __future__ import annotations

from typing import Any

import pytest
from ansible.errors import AnsibleConnectionFailure, AnsibleError
from ansible_collections.wsgi.fleet.plugins.action import ufw

CHANGED = {"changed": True, "guard": {"name": "18ea", "seconds": 60}}
DOWN = AnsibleConnectionFailure("timed out")


class Connection:
    def __init__(self) -> None:
        self.resets = 0

    def reset(self) -> None:
        self.resets += 1


class Action(ufw.ActionModule):
    """Answers as the host would."""

    def __init__(self, answers: list[Any]) -> None:
        self.answers = answers
        self.asked: list[dict[str, Any]] = []
        self._connection = Connection()
        self._task = type("Task", (), {"args": {"rules": []}})()

    def _ask(self, arguments: dict[str, Any], task_vars: Any) -> dict[str, Any]:
        self.asked.append(arguments)
        answer = self.answers[min(len(self.asked), len(self.answers)) - 1]
        if isinstance(answer, Exception):
            raise answer
        return dict(answer)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Time goes on by what is slept, and by ten seconds for each look."""
    now = [0.0]

    def look() -> float:
        now[0] += 10
        return now[0]

    monkeypatch.setattr(ufw.time, "monotonic", look)
    monkeypatch.setattr(ufw.time, "sleep", lambda seconds: None)
    monkeypatch.setattr(ufw.ActionBase, "run", lambda self, tmp, task_vars: {})
    return now


@pytest.mark.usefixtures("clock")
@pytest.mark.parametrize(
    ("answers", "asked", "message"),
    [
        ([{"changed": False}], 1, None),
        ([CHANGED, {"confirmed": True}], 2, None),
        ([CHANGED, DOWN, {"unreachable": True, "msg": "no route"}, {"confirmed": True}], 4, None),
        ([CHANGED, {"confirmed": False, "why": "same connection"}, {"confirmed": True}], 3, None),
        ([CHANGED, DOWN, DOWN, {"why": "taken back"}], 4, "so the host took the change back"),
        ([CHANGED, {"why": "another run"}], 2, "Another run has changed the firewall at the same time"),
        ([CHANGED, {"failed": True, "msg": "no Python"}], 2, "no Python"),
        ([CHANGED, AnsibleError("no become password")], 2, "no become password"),
        ([CHANGED, DOWN], None, "could not be reached by a new connection since (timed out)"),
    ],
)
def test_confirmation(answers: list[Any], asked: int | None, message: str | None) -> None:
    action = Action(answers)
    result = action.run(None, {})
    assert "guard" not in result
    assert bool(result.get("failed")) is (message is not None)
    assert (message or "") in result.get("msg", "")
    assert asked is None or len(action.asked) == asked
    assert action._connection.resets == len(action.asked) - 1  # each time by a new connection
