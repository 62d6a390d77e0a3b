"""Skip and Retry, the two ways in which an item may fail; UserError, for a request that cannot be carried out."""

from __future__ import annotations

from typing import Any

FEWER_THAN_ASKED = 3  # exit status
A_RUN = "give the --out of a run; of captures, lvsm-data import --input FOLDER makes one"  # hint where there is none


class _Reason(Exception):
    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(f"{reason}: {detail}" if detail else reason)
        self.reason = reason
        self.detail = detail

    def __reduce__(self) -> tuple[Any, ...]:  # pickles both fields
        return type(self), (self.reason, self.detail)


class Skip(_Reason):
    """Permanent failure of an item: trying again would end the same way. `reason` is a snake_case word for the ledger."""


class Retry(_Reason):
    """Failure that may pass (a crash, a time-out, a reset connection): the item may work the next time."""


class UserError(Exception):
    """A request that cannot be carried out, shown without a traceback. `hint` names the next step."""

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.hint = hint
        if hint:  # for who calls from Python
            self.add_note(f"hint: {hint}")
