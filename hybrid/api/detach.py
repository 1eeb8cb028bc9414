"""Detach keys: the bytes that end an attachment and must not reach the process. Pure."""

from __future__ import annotations

from hybrid.errors import InvalidInput

DEFAULT = "ctrl-p,ctrl-q"
_CONTROL = {f"ctrl-{chr(ord('a') + n)}": n + 1 for n in range(26)} | {
    "ctrl-@": 0,
    "ctrl-[": 27,
    "ctrl-\\": 28,
    "ctrl-]": 29,
    "ctrl-^": 30,
    "ctrl-_": 31,
}


class DetachKeys:
    """Watches a client's input for the sequence; holds back what may be its beginning."""

    def __init__(self, sequence: bytes) -> None:
        self._sequence = sequence
        self._held = b""

    @classmethod
    def parse(cls, text: str) -> DetachKeys:
        """``ctrl-p,ctrl-q``, ``a,b``; "" is Docker's default. InvalidInput for other words."""
        keys = bytearray()
        for word in (text or DEFAULT).split(","):
            if word in _CONTROL:
                keys.append(_CONTROL[word])
            elif len(word) == 1 and word.isascii():
                keys += word.encode()
            else:
                raise InvalidInput(f"Invalid detach keys ({text}) provided")
        return cls(bytes(keys))

    def feed(self, data: bytes) -> tuple[bytes, bool]:
        """What the process gets of ``data``, and whether the sequence is complete."""
        passed = bytearray()
        for byte in data:
            self._held += bytes([byte])
            while not self._sequence.startswith(self._held):
                passed.append(self._held[0])
                self._held = self._held[1:]
            if self._held == self._sequence:
                self._held = b""
                return bytes(passed), True
        return bytes(passed), False
