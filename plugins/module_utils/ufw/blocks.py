# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""A rule as ufw stores it, and the words that all of this shares."""

from __future__ import annotations

from dataclasses import dataclass

# The comment of a rule is what makes it ours; ufw keeps it (as hex) beside the rule.
OWNER = "wsgi.fleet"
SSH = f"{OWNER}: keep SSH open"
FAMILIES = (4, 6)
ANYWHERE = {4: "0.0.0.0/0", 6: "::/0"}
POLICIES = {"allow": "ACCEPT", "deny": "DROP", "reject": "REJECT"}
DIRECTIONS = {"incoming": "input", "outgoing": "output", "routed": "forward"}
LOG_LEVELS = ("off", "low", "medium", "high", "full")


class UfwError(Exception):
    """Something that the operator has to read; the text says what, where and the fix."""


@dataclass(frozen=True)
class Block:
    """One rule as ufw stores it: the words that ufw reads back, and the lines that iptables-restore loads.

    words: action, proto, dport, dst, sport, src, [dst app, src app,] direction.
    """

    words: tuple[str, ...]
    comment: str
    lines: tuple[str, ...]

    @property
    def ours(self) -> bool:
        """Whether the comment says that it is one of our rules."""
        return self.comment == OWNER or self.comment.startswith(f"{OWNER}:")

    @property
    def routed(self) -> bool:
        """Whether it is for packets that this host passes on."""
        return self.words[0].startswith("route:")

    @property
    def opens(self) -> bool:
        """Whether it lets packets through, and is thus no harm to anybody who needs the host."""
        return self.words[0].split(":")[-1].split("_")[0] == "allow"

    @property
    def matches(self) -> tuple[object, ...]:
        """What tells the packets that it is for: of two rules with the same, only the first ever counts."""
        return (self.routed, *self.words[1:])

    def __str__(self) -> str:
        """For people: `allow in 80/tcp from 192.0.2.1 to any on eth0  # comment`."""
        action, proto, dport, dst, sport, src = self.words[:6]
        action, _, log = action.partition("_")
        direction, _, interface = self.words[-1].partition("_")
        parts = [action.replace(":", " "), *([f"log {log[4:] or 'new'}"] if log else [])]
        parts += [] if self.routed else [direction]
        if len(self.words) == 9 and self.words[6] != "-":
            parts.append(self.words[6].replace("%20", " "))
        if dport != "any" or proto != "any":
            parts.append(f"{dport}/{proto}")
        parts += ["from", "any" if src in ANYWHERE.values() else src]
        if sport != "any":
            parts.append(f"port {sport}")
        parts += ["to", "any" if dst in ANYWHERE.values() else dst]
        if self.routed and interface:
            parts += [word.replace("_", " on ", 1) for word in self.words[-1].split("!")]
        elif interface:
            parts.append(f"on {interface}")
        return " ".join(parts) + (f"  # {self.comment}" if self.comment else "")
