"""Makes `tests/golden/alpaca_eval.json`: synthetic annotations, and what alpaca-eval's own code says of them.

    python3.11 -m venv /tmp/reference && /tmp/reference/bin/pip install -c constraints.txt alpaca-eval==0.6.6
    /tmp/reference/bin/python tests/golden/alpaca_eval_reference.py

The package fetches a table with the difficulty of its 805 instructions and the annotations of two gamed baselines; here
that download is replaced by a synthetic table with the same columns. All else is the package's.
"""

import json
import logging
import math
import random
import tempfile
from importlib.metadata import version
from pathlib import Path

import pandas as pd
from alpaca_eval.metrics import glm_winrate

GOLDEN = Path(__file__).parent / "alpaca_eval.json"
MODES = {
    "without difficulty": "length_controlled_minimal",
    "with difficulty": "length_controlled_noreg",
    "with gamed baselines": "length_controlled_v1",
}


def preference(chance: float, kind: str, random_: random.Random) -> float:
    """In alpaca-eval's coding: 1 = the baseline wins, 2 = the model wins, 1.5 = a tie."""
    if kind == "continuous":
        return 1 + round(min(1.0, max(0.0, random_.gauss(chance, 0.25))), 4)
    return 1.5 if random_.random() < 0.1 else 1.0 + (random_.random() < chance)


def annotations(
    prompts: int, *, intercept: float, slope: float, longer: float, kind: str = "discrete", seed: int
) -> list[tuple[float, int, int, float]]:
    """(preference, the baseline's length, the model's length, difficulty) for each prompt."""
    random_, rows = random.Random(seed), []
    for _ in range(prompts):
        length = random_.randint(40, 2000)
        other = max(1, round(length * math.exp(random_.gauss(longer, 0.4))))
        difficulty = round(random_.gauss(0, 1), 4)
        chance = 1 / (1 + math.exp(-(intercept + slope * math.tanh((other - length) / 400) + 0.8 * difficulty)))
        rows.append((preference(chance, kind, random_), length, other, difficulty))
    return rows


def cases() -> dict[str, list[tuple[float, int, int, float]]]:
    apart = annotations(120, intercept=0, slope=0, longer=0.1, seed=5)
    found = {
        "wins, losses and ties": annotations(256, intercept=0.3, slope=1.0, longer=0.2, seed=1),
        "a large set": annotations(805, intercept=-0.4, slope=1.5, longer=0.3, seed=2),
        "continuous preferences": annotations(200, intercept=0.2, slope=1.2, longer=0.0, kind="continuous", seed=3),
        "all longer": annotations(150, intercept=0.5, slope=0.5, longer=1.8, seed=4),
        "separable by length": [(1.0 + (b > a), a, b, d) for _, a, b, d in apart],
        "nearly always lost": annotations(256, intercept=-3.5, slope=1.0, longer=-0.2, seed=6),
        "a small set": annotations(23, intercept=0.5, slope=1.0, longer=0.2, seed=7),
        "only wins": [(2.0, a, b, d) for _, a, b, d in apart[:30]],
        "only losses": [(1.0, b, a, -d) for _, a, b, d in apart[:30]],  # the same, seen from the baseline's side
        "one win": [(1.0 + (i == 7), a, b, d) for i, (_, a, b, d) in enumerate(apart[:60])],
        "one loss": [(2.0 - (i == 7), b, a, -d) for i, (_, a, b, d) in enumerate(apart[:60])],  # "one win" likewise
        "five prompts": annotations(5, intercept=0.5, slope=0.0, longer=0.2, seed=9),
        "only ties": [(1.5, a, b, d) for _, a, b, d in apart],
        "length does not matter": annotations(256, intercept=1.0, slope=0.0, longer=0.5, seed=8),
    }
    assert all(any(a != b for _, a, b, _ in rows) for rows in found.values())
    return found


def gamed_table(difficulties: list[float], seed: int) -> pd.DataFrame:
    """The columns of df_gamed.csv: a verbose and a concise baseline against the baseline."""
    random_, rows = random.Random(seed), []
    for model, sign in (("verbose", 1), ("concise", -1)):
        for index, difficulty in enumerate(difficulties):
            length = round(-sign * abs(random_.gauss(1.0, 0.5)), 4)
            chance = 1 / (1 + math.exp(1.5 * math.tanh(length)))
            won = 1.0 * (random_.random() < chance)
            rows.append([model, index, won, length, difficulty, False])
    names = ["model", "index", "preference", "std_delta_len", "instruction_difficulty", "not_gamed_baseline"]
    return pd.DataFrame(rows, columns=names)


def judged(rows: list[tuple[float, int, int, float]], table: pd.DataFrame, folder: Path) -> dict[str, dict[str, float]]:
    """Win rates in percent by alpaca-eval."""
    table.to_csv(folder / "df_gamed.csv", index=False)
    glm_winrate.hf_hub_download = lambda **_: folder / "df_gamed.csv"
    records = [
        {"preference": p, "output_1": "x" * a, "output_2": "x" * b, "generator_1": "base", "generator_2": "model"}
        for p, a, b, _ in rows
    ]
    found = {}
    for mode, name in MODES.items():
        metrics = glm_winrate.get_length_controlled_winrate(records, glm_name=name, save_weights_dir=None)
        found[mode] = metrics["length_controlled_winrate"]
        found["plain"] = metrics["win_rate"]
    return found


def main() -> None:
    logging.disable(logging.WARNING)
    made = {}
    with tempfile.TemporaryDirectory() as folder:
        for seed, (name, rows) in enumerate(cases().items()):
            table = gamed_table([d for *_, d in rows], seed)
            gamed = table[["preference", "std_delta_len"]].values.tolist()
            made[name] = {"rows": rows, "gamed": gamed, "expected": judged(rows, table, Path(folder))}
    versions = {package: version(package) for package in ("alpaca-eval", "scikit-learn", "numpy", "pandas", "patsy")}
    GOLDEN.parent.mkdir(exist_ok=True)
    GOLDEN.write_text(json.dumps({"versions": versions, "cases": made}, separators=(",", ":")) + "\n")
    for name, case in made.items():
        print(f"{name:24}", {mode: round(rate, 3) for mode, rate in case["expected"].items()})


if __name__ == "__main__":
    main()
