"""A bar over the products of an algorithm, or what else takes long, where one is asked for."""

from __future__ import annotations

from types import TracebackType


class Progress:
    """Counts products, or another unit, on a bar; nothing at all unless ``shown``.

    Args:
        shown: whether there is to be a bar (needs tqdm).
        total: the most products there can be; None where that is not known.
        what: what is being done, in a word or two.
        unit: what is counted.

    Raises:
        ImportError: a bar is asked for and tqdm is not installed.
    """

    def __init__(self, shown: bool, total: int | None, what: str, unit: str = "product"):
        self._bar = None
        if shown:
            try:
                from tqdm.auto import tqdm
            except ImportError as error:
                raise ImportError(
                    f"{what}: progress=True needs tqdm: pip install 'curvext[demo]'"
                ) from error
            self._bar = tqdm(total=total, desc=what, unit=unit, leave=False)

    def to(self, count: int, note: str = "") -> None:
        """Moves the bar to ``count``."""
        if self._bar is not None:
            self._bar.set_postfix_str(note, refresh=False)
            self._bar.update(count - self._bar.n)

    def __enter__(self) -> Progress:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._bar is not None:
            self._bar.close()
