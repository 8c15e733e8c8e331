"""The results table that `make run` ends with: PSNR by method and source, from the numbers in `data/results/`."""

import contextlib

from helpers.project import load_results


def results_table(rows, sigma=50):
    """Return PSNR (dB) of every method on every source at one `sigma`, as lines of text; "" where there is none.

    >>> print(results_table([{"method": "noisy", "source": "sand", "sigma": 50, "psnr": 14.53},
    ...                      {"method": "noisy", "source": "terrazzo", "sigma": 50, "psnr": 14.91}]))
    PSNR in dB, sigma 50  sand terrazzo  mean
    noisy                14.53    14.91 14.72
    """
    rows = [row for row in rows if row.get("sigma", sigma) == sigma and row.get("psnr") is not None
            and row.get("source") != "mean"]  # it is formed anew, and only from all sources
    methods = list(dict.fromkeys(row["method"] for row in rows))
    sources = list(dict.fromkeys(row.get("source", "all") for row in rows))
    values = {(row["method"], row.get("source", "all")): row["psnr"] for row in rows}
    if not rows:
        return ""
    first = f"PSNR in dB, sigma {sigma}"
    widths = [max(map(len, [first, *methods])), *(max(len(source), 5) + 1 for source in [*sources, "mean"])]
    lines = [[first, *sources, "mean"]]
    for method in methods:
        found = [values.get((method, source)) for source in sources]
        mean = sum(found) / len(found) if None not in found else None  # a mean over fewer sources would not compare
        lines.append([method, *("-" if value is None else f"{value:.2f}" for value in [*found, mean])])
    return "\n".join(line[0].ljust(widths[0]) + "".join(v.rjust(w) for v, w in zip(line[1:], widths[1:], strict=True))
                     for line in lines)


def print_results():
    """Print the tables of `data/results/` that there are: the built-in test pictures and the real photographs."""
    for name, what in (("baselines", "Built-in test pictures"), ("photos", "Real photographs")):
        with contextlib.suppress(FileNotFoundError):
            results = load_results(name)
            table = results_table(results.get("rows", []))
            made = ", then ".join(part.get("revision", "unknown") for part in (results, *results.get("updates", [])))
            if table:
                print(f"\n{what} (data/results/{name}.json, revision {made})\n{table}")


if __name__ == "__main__":
    print_results()
