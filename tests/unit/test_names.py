"""The names of test modules."""

from collections import Counter
from pathlib import Path


def test_modules_of_tests_have_different_names():
    """pytest imports each by its name alone, so of two equal ones it would run only the first."""
    counts = Counter(path.name for path in Path(__file__).parents[1].rglob("test_*.py"))
    assert [name for name, count in counts.items() if count > 1] == []
