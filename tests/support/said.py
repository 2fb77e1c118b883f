"""The sentences of the codes in rows."""

from __future__ import annotations

from typing import Any, NamedTuple

from orchestrator.domain import attention, command_result, last_error, sentences


class Answer(NamedTuple):
    """The result of a command: its code and its sentence."""

    code: str
    sentence: str

    def matches(self, code: str, beginning: str) -> bool:
        """Say whether it has this code, and a sentence that begins so."""
        return self.code == code and self.sentence.startswith(beginning)


def answer(row: Any) -> Answer:
    """Return the result of a row of commands."""
    result = command_result.stored(row.result, row.result_details)
    assert result is not None
    return Answer(result.code.value, sentences.of(result))


def of_attention(row: Any) -> str:
    """Return the sentence of a checkout's attention, empty where there is none."""
    return sentences.or_none(attention.stored(row.attention, row.attention_details)) or ""


def of_error(row: Any) -> str:
    """Return the sentence of the last error of a checkout or a money operation, empty where there is none."""
    return sentences.or_none(last_error.stored(row.last_error, row.last_error_details)) or ""
