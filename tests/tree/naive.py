"""What the tree should say, computed the slow way: texts as lists, counts by comparing everything with everything."""

from collections import Counter
from dataclasses import dataclass, field

START = 1 << 31


@dataclass
class Text:
    """One sequence: its prompt, its output after the start marker, and an end marker once closed."""

    prompt: list[int]
    symbols: list[int] = field(default_factory=lambda: [START])
    touched: int = 0


class NaiveTree:
    """A suffix tree without the tree."""

    def __init__(self, max_depth: int) -> None:
        self.max_depth = max_depth
        self.texts: list[Text] = []
        self.clock = 0

    def open(self, prompt: list[int]) -> int:
        self.clock += 1
        self.texts.append(Text(list(prompt), touched=self.clock))
        return len(self.texts) - 1

    def append(self, which: int, tokens: list[int]) -> None:
        if tokens:
            self.clock += 1
            self.texts[which].symbols += tokens
            self.texts[which].touched = self.clock

    def close(self, which: int) -> None:
        self.append(which, [START + 1 + which])

    def match_length(self, which: int) -> int:
        """The longest suffix, shorter than the cap, that goes on elsewhere or was reached there first."""
        own, length = self.texts[which], 0
        while length + 1 < self.max_depth and length < len(own.symbols):
            suffix = own.symbols[-length - 1 :]
            known = any(
                at + len(suffix) < len(text.symbols) or text.touched < own.touched
                for text in self.texts
                for at in occurrences(text.symbols, suffix)
            )
            if not known:
                break
            length += 1
        return length

    def count(self, string: list[int]) -> int:
        return sum(
            at < len(text.symbols) - self.match_length(which)
            for which, text in enumerate(self.texts)
            for at in occurrences(text.symbols, string)
        )

    def followers(self, string: list[int], without: int | None = None) -> Counter[int]:
        """What followed a string in the counted suffixes of all texts but one."""
        found: Counter[int] = Counter()
        for which, text in enumerate(self.texts):
            counted = len(text.symbols) - self.match_length(which)
            for at in occurrences(text.symbols[:-1], string):
                if which != without and at < counted:
                    found[text.symbols[at + len(string)]] += 1
        return found

    def first_probabilities(self, which: int) -> dict[int, float]:
        """The blend at the root of a running text's draft: probability of each next token."""
        text = self.texts[which]
        own = text.prompt + text.symbols[1:]
        tail = text.symbols[len(text.symbols) - self.match_length(which) :]
        levels = []
        for length in range(self.max_depth // 2, 0, -1):
            if length <= len(own):
                string = own[-length:]
                found = [own[at + length] for at in occurrences(own[:-1], string)]
                levels.append((True, length, Counter(found), found[-1] if found else None))
            if length <= len(tail):
                levels.append((False, length, self.followers(tail[-length:], without=which), None))
        return blend(levels)


def occurrences(text: list[int], string: list[int]) -> list[int]:
    return [at for at in range(len(text) - len(string) + 1) if text[at : at + len(string)] == string]


def blend(levels: list[tuple[bool, int, Counter[int], int | None]]) -> dict[int, float]:
    """Stick-breaking over contexts, longest first: up to three of each source with different totals."""
    shares: Counter[int] = Counter()
    mass, used, last = 1.0, Counter[bool](), Counter[bool]()
    for own, length, counts, latest in levels:
        total = counts.total()
        if mass <= 0.01 or total in (0, last[own]) or used[own] == 3:
            continue
        last[own] = total
        used[own] += 1
        dominant = max(counts.values()) / total > 0.6
        if own and len(counts) > 1 and latest is not None:
            recent = 0.22 if dominant else 0.12
            shares[latest] += mass * recent
            mass *= 1 - recent
        share = weight(own, length, total, len(counts) == 1, dominant)
        for token, count in sorted(counts.items(), key=lambda item: (-item[1], item[0]))[:8]:
            if token < START:
                shares[token] += mass * share * count / total
        mass *= 1 - share
    return {token: share for token, share in shares.items() if share >= 0.003}


def weight(own: bool, length: int, total: int, single: bool, dominant: bool) -> float:
    """The part a context gets of what longer ones have left."""
    many = total >= 5
    if single:
        by_count = (0.25, 0.48, 0.57, 0.57, 0.65) if own else (0.20, 0.33, 0.40, 0.40, 0.65)
        return max(by_count[min(total, 5) - 1], 0.58 if length >= 17 else 0.38 if length >= 9 else 0)
    if own:
        return 0.25 if dominant else 0.40 if length == 1 and many else 0.18
    if length == 1:
        return 0.80 if many else 0.50
    if dominant:
        return 0.42 if many else 0.25
    return 0.30 if many else 0.17
