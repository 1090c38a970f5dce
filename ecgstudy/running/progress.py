"""How far a study is, in lines that a person can read.

Each running job keeps a line of text in ``logs/<job>.status``
(`ecgstudy.files.note_progress`): what it does, or why it failed.
"""

import sys
import time
from pathlib import Path

from ecgstudy.files import FAILED, read_json
from ecgstudy.running.cache import Step

QUIET_S = 60
"""In a log, running jobs report their progress this often."""


class Progress:
    """What becomes of steps while Snakemake makes them; `look` prints the news.

    Parameters
    ----------
    wanted
        The steps that are made.
    logs
        Folder of the jobs' status.
    done
        What the study's other steps took in s, by the name of the step.
    """

    def __init__(self, wanted: list[Step], logs: Path, done: dict[str, list[float]]):
        self.left, self.logs, self.seconds = list(wanted), logs, done
        self.total = len(wanted) + sum(map(len, done.values()))
        self.failed: dict[str, str] = {}
        self.shown, self.shown_at = "", 0.0

    def look(self) -> None:
        """Print which steps ended since last time, and what is being done."""
        running = {}
        for step in list(self.left):
            if step.marker.exists():
                self._finish(step)
                continue
            status = self._status(step)
            if status.startswith(FAILED) and step.job not in self.failed:
                self.failed[step.job] = f"{step}: {status.removeprefix(FAILED)}"
                self._say(f"failed: {self.failed[step.job]}")
            elif status and step.job not in self.failed:
                running[str(step)] = status
        if running:
            self._show(running)

    def clear(self) -> None:
        """Take the line away that says what is being done."""
        if sys.stdout.isatty():
            print("\r\x1b[K", end="", flush=True)

    def _finish(self, step: Step) -> None:
        self.left.remove(step)
        seconds = read_json(step.marker).get("seconds", 0.0)
        self.seconds.setdefault(step.name, []).append(seconds)
        done = self.total - len(self.left)
        self._say(f"{done} of {self.total} done: {step} in {readable(seconds)}")

    def _status(self, step: Step) -> str:
        try:
            return (self.logs / f"{step.job}.status").read_text(encoding="utf-8")
        except OSError:  # it is not running
            return ""

    def _say(self, line: str) -> None:
        self.clear()
        print(line, flush=True)

    def _show(self, running: dict[str, str]) -> None:
        step, status = list(running.items())[-1]
        line = f"{step}: {status}"
        if len(running) > 1:
            line += f" · {len(running)} jobs"
        line += f" · {self.total - len(self.left)} of {self.total} done"
        if left := self._time_left(len(running)):
            line += f" · about {readable(left)} left"
        if sys.stdout.isatty():
            print(f"\r\x1b[K{line}", end="", flush=True)
        elif line != self.shown and time.monotonic() > self.shown_at + QUIET_S:
            print(line, flush=True)
            self.shown, self.shown_at = line, time.monotonic()

    def _time_left(self, jobs: int) -> float:
        """Seconds for what is left, as long as the same took; 0 if nothing is known."""
        means = {name: sum(s) / len(s) for name, s in self.seconds.items()}
        if not means:
            return 0.0
        usual = sum(means.values()) / len(means)
        return sum(means.get(step.name, usual) for step in self.left) / jobs


def readable(seconds: float) -> str:
    """``"4 s"``, ``"12 min"`` or ``"3 h 20 min"``."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    if minutes < 90:
        return f"{minutes} min"
    return f"{minutes // 60} h {minutes % 60:02} min"
