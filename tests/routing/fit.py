#!/usr/bin/env python3
"""Fits the weights of the built-in intent classifier on the tuning utterances, and never looks at the held-out ones.

    cargo build --profile ci --example intent_features
    python3 -m venv .venv && .venv/bin/pip install -q numpy==2.2.6 scikit-learn==1.7.2
    .venv/bin/python tests/routing/fit.py target/ci/examples/intent_features

Prints what cross-validation says and writes src/processor/intent/weights.tsv. The problem is convex, so a second run comes to
the same weights.
"""

import json
import pathlib
import subprocess
import sys

import numpy as np
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedKFold

ROOT = pathlib.Path(__file__).resolve().parents[2]
INTENTS = ["greeting", "faq", "basic_support", "complex_question", "sales_negotiation", "high_value"]
TIERS = np.array([1, 1, 2, 3, 4, 4])
# Words have to be in so many utterances; what is rare says more about the utterance than about its intent.
SEEN_MIN = 3
# Words are many and weak, concepts and counts few and strong: the smaller the scale, the more a weight is held back.
SCALES = {"w": 0.35, "b": 0.25, "first": 0.4, "last": 0.3, "cc": 0.7, "u": 0.5, "a": 0.5}
C = 0.7


def read(extractor):
    rows = []
    for language in ("pt", "en"):
        text = (ROOT / f"tests/routing/tuning-{language}.jsonl").read_bytes()
        out = subprocess.run([extractor], input=text, stdout=subprocess.PIPE, check=True).stdout
        rows += [json.loads(line) for line in out.splitlines()]
    return rows


def vocabulary(rows):
    seen = {}
    for row in rows:
        for name in row["features"]:
            seen[name] = seen.get(name, 0) + 1
    return sorted(name for name, count in seen.items() if count >= SEEN_MIN)


def scale(name):
    return SCALES.get(name.split("=", 1)[0], 1.0)


def matrix(rows, names):
    place = {name: index for index, name in enumerate(names)}
    x = np.zeros((len(rows), len(names)))
    for at, row in enumerate(rows):
        for name in row["features"]:
            if name in place:
                x[at, place[name]] = scale(name)
    return x


def fit(rows, names):
    y = [INTENTS.index(row["intent"]) for row in rows]
    model = LogisticRegression(C=C, max_iter=5000, tol=1e-8, fit_intercept=False)
    return model.fit(matrix(rows, names), y).coef_


def likelihoods(weights, rows, names):
    scores = matrix(rows, names) @ weights.T
    scores -= scores.max(axis=1, keepdims=True)
    shares = np.exp(scores)
    return shares / shares.sum(axis=1, keepdims=True)


def routed(shares, doubt):
    """The lowest tier for which the likelihood of all higher ones is at most the doubt."""
    above = np.stack([shares[:, TIERS > tier].sum(axis=1) for tier in (1, 2, 3, 4)], axis=1)
    return (above <= doubt + 1e-12).argmax(axis=1) + 1


def main():
    rows = read(sys.argv[1])
    y = np.array([INTENTS.index(row["intent"]) for row in rows])
    shares = np.zeros((len(rows), len(INTENTS)))
    for seed in range(3):
        folds = StratifiedKFold(10, shuffle=True, random_state=seed)
        for train, test in folds.split(np.zeros(len(rows)), y):
            part = [rows[index] for index in train]
            names = vocabulary(part)
            found = likelihoods(fit(part, names), [rows[index] for index in test], names)
            shares[test] += found / 3
    guess = shares.argmax(axis=1)
    print(f"cross-validated: {(guess == y).mean():.1%} of intents, {(TIERS[guess] == TIERS[y]).mean():.1%} of tiers")
    for doubt in (0.10, 0.15, 0.20, 0.25, 0.30):
        tiers = routed(shares, doubt)
        below, above = (tiers < TIERS[y]).mean(), (tiers > TIERS[y]).mean()
        print(f"doubt {doubt:.0%}: {below:.1%} below the label, {above:.1%} above")
    print("rows are labels, columns are guesses:", ", ".join(INTENTS))
    for label, name in enumerate(INTENTS):
        print(f"{name:18}", *(f"{((y == label) & (guess == other)).sum():4}" for other in range(len(INTENTS))))
    names = vocabulary(rows)
    weights = fit(rows, names)
    lines = [
        "# Made by tests/routing/fit.py: the weight of each feature for each intent, in thousandths.",
        "#\t" + "\t".join(INTENTS),
    ]
    for index, name in enumerate(names):
        values = [round(float(weights[intent, index]) * scale(name) * 1000) for intent in range(len(INTENTS))]
        if any(abs(value) >= 15 for value in values):
            lines.append(name + "\t" + "\t".join(map(str, values)))
    (ROOT / "src/processor/intent/weights.tsv").write_text("\n".join(lines) + "\n")
    print(f"{len(lines) - 2} of {len(names)} features have weights")


if __name__ == "__main__":
    main()
