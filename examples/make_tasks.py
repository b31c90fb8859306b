"""Make the two tasks in `examples/tasks` from the texts that lie there.

    python examples/make_tasks.py

Each item is a passage that breaks off within a word, and four ways to go on: the right one, and
three that go on after other words of the same text that break off alike. So a model must know the
language, not only tell one text from another; chance is 1 in 4. The texts are ours: `german.txt`
was written for this, `python.txt` is from this package.
"""

import json
import random
import re
from pathlib import Path

TASKS = Path(__file__).resolve().parent / "tasks"
ITEMS = 400
CONTEXT, ANSWER = 80, 8  # characters
BEGUN = 3  # of the word that breaks off, at least
TEXTS = {"german_word": "german.txt", "python_word": "python.txt"}


def make_items(text: str, seed: str) -> list[dict[str, object]]:
    """Passages with four continuations each, the right one at a random place."""
    chance = random.Random(seed)
    places = [
        place
        for word in re.finditer(r"[^\W\d_]{6,}", text)
        for place in range(word.start() + BEGUN, word.end() - 1)
        if CONTEXT <= place <= len(text) - ANSWER
    ]
    items = []
    for place in chance.sample(places, ITEMS):
        right = text[place : place + ANSWER]
        others = {text[other : other + ANSWER] for other in places} - {right}
        # of another beginning: else they would be right for a moment
        wrong = [other for other in sorted(others) if other[:2] != right[:2]]
        choices = chance.sample(wrong, 3)
        label = chance.randrange(4)
        choices.insert(label, right)
        context = text[place - CONTEXT : place]
        items.append({"context": context, "choices": choices, "label": label})
    return items


def lines_of(task: str) -> str:
    """The items of a task as JSON lines."""
    text = (TASKS / TEXTS[task]).read_text(encoding="utf-8")
    items = make_items(text, task)
    return "".join(json.dumps(item, ensure_ascii=False) + "\n" for item in items)


def main() -> None:
    for task in TEXTS:
        file = TASKS / f"{task}.jsonl"
        file.write_text(lines_of(task), encoding="utf-8")
        print(f"{file}: {ITEMS} items")


if __name__ == "__main__":
    main()
