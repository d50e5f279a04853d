"""The lines of the conformance list: which there are, and what becomes of those that no test shows yet."""

from __future__ import annotations


def _numbers(text: str) -> frozenset[int]:
    """The numbers in a text like "1 4-7 10"."""
    numbers: set[int] = set()
    for word in text.split():
        first, _, last = word.partition("-")
        numbers.update(range(int(first), int(last or first) + 1))
    return frozenset(numbers)


#: Every number of the list; it has gaps.
KNOWN = _numbers(
    """
    1 4-7 10-12 14 15 17 18 20 21 23 24 26-29 31
    34 36-41 43 44 46
    49-51 53-56 58 60-62 65 67-70
    71-74 76 77 83 85-89 91 93-98 101-103 105
    107 108 113-119
    120-122 124 125
    129-132 135-137 139-142 144 146 147
    151-154
    155 158-165 167-170 173-176 182-184
    185 187 190 192-194 196-198
    199 200 204-209 212 214 216-218
    220 223 225-231 233
    235 236 239 240 242 244-247
    248 249 252 254 255 258-260 262 264 265 267-269 271 272 274-276 278 279
    281 283-286 288 289 291
    292-294 296-300 303 306
    307 309 310 313-316
    318-321 325-332 335 337 339-341 343-346 350-352
    """
)

#: What brings the subject of a line that has no test yet.
LATER: dict[str, frozenset[int]] = {}

#: Lines that mean nothing to a synchronous library whose jobs run in transactions, and why.
CANNOT: dict[int, str] = {
    146: "no limit spans processes, so no dead holder can fill it: a slot is a thread and dies with its process",
}
