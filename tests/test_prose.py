"""What a colleague would not say aloud stands nowhere: some phrases are refused, in code, comments and pages alike."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
READ = ("curvext", "docs", "csrc", "examples", "README.md", "CONTRIBUTING.md")
SUFFIXES = {".py", ".md", ".h", ".cpp", ".cu", ".inc"}

#: phrases, and what to write instead
REFUSED = {
    r"\b(?:is|are|be|been|was|were) had\b": "computed, taken from, known",
    r"\b(?:go|goes|going|went) by\b": "follows, uses, depends on",
    r"\b(?:come|comes|coming|came) by\b": "arrives, uses, obtains",
    r"\b(?:tell|tells|telling|told) of\b": "shows, reports",
    r"\b(?:is|are|be|been|was|were) told\b(?! (?:from|apart))": "reports, receives",
    r"\bwaited for\b": "synchronises, takes too long",
}
#: honest ordinary English: (file, phrase)
ALLOWED: set[tuple[str, str]] = set()

#: what begins a line of a comment, and so may stand between two words of one phrase
LEADERS = re.compile(r"\n[ \t]*(?://|#:?|\*)?[ \t]*")


def refused_in(text: str) -> list[tuple[str, str]]:
    """Each refused phrase with its surroundings, also where a line ends between its words."""
    flat = LEADERS.sub(" ", text)
    found = []
    for phrase in REFUSED:
        for match in re.finditer(phrase, flat, re.IGNORECASE):
            found.append((match.group(), flat[max(0, match.start() - 40) : match.end() + 40]))
    return found


def files() -> list[Path]:
    """What is tracked, or about to be, of the parts that are read."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "--", *READ],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout.split()
    return [
        ROOT / name for name in listed if Path(name).suffix in SUFFIXES and (ROOT / name).exists()
    ]


def test_no_text_has_a_phrase_that_nobody_would_say_aloud():
    read = files()
    assert len(read) > 200
    for path in read:
        name = str(path.relative_to(ROOT))
        found = [
            (phrase, around)
            for phrase, around in refused_in(path.read_text(encoding="utf-8"))
            if (name, phrase.lower()) not in ALLOWED
        ]
        assert not found, f"{name}: {found}; instead: {sorted(REFUSED.values())}"


def test_planted_phrases_are_caught_across_lines_and_comment_signs():
    planted = """
    # The answer is
    # had from records; the device is waited for once, and the verdict goes
    #: by residuals.
    // Gradients that come by, of which PyTorch does not tell of, are told.
    """
    assert {phrase.lower() for phrase, _ in refused_in(planted)} == {
        "is had",
        "waited for",
        "goes by",
        "come by",
        "tell of",
        "are told",
    }


def test_ordinary_english_is_left_alone():
    plain = (
        "Divide by N, then pass by name; we had a look, hadby told_of; it has told the reader; "
        "κ cannot be told from zero, nor told apart."
    )
    assert refused_in(plain) == []


def test_every_exception_is_still_needed():
    for name, phrase in ALLOWED:
        text = (ROOT / name).read_text(encoding="utf-8")
        assert phrase in {found.lower() for found, _ in refused_in(text)}, (name, phrase)
