"""Time to the first token of one prompt at a time on a GPU: the engine against ``mlx_lm.stream_generate``.

    python -m benchmarks.gpu.first_token [--shape llama-1B] [--lengths 512 4096 7000] [--rounds 5]
        [--seconds 540] [--output FILE.jsonl] [--tiny]

Alternating rounds after one that warms up, each with other prompts; both prompt caches are off.
"""

from __future__ import annotations

from benchmarks.sides import TINY, Report, alternate, parser, sides

NEW = 8


def main() -> None:
    made = parser(__doc__ or "")
    made.add_argument("--lengths", type=int, nargs="+", default=[512, 4096, 7000])
    options = made.parse_args()
    if options.tiny:
        options.shape, options.lengths = TINY, [64, 200]
    report = Report(options)
    with sides(options.shape, flags=dict(options.features), readers=options.readers) as both:
        for done, length in enumerate(options.lengths):
            row = alternate(
                report,
                len(options.lengths) - done,
                lambda number, length=length: both.ours(both.prompts(1, length, number), NEW),
                lambda number, length=length: both.alone(both.prompts(1, length, number)[0], NEW),
            )
            if row["rounds"]:
                report.add(what="first token", shape=options.shape, length=length, **row)
    columns = {
        "shape": lambda row: row["shape"],
        "prompt": lambda row: f"{row['length']:,}",
        "ours, ms": lambda row: f"{row['first_ms']['ours']:.1f}",
        "stream_generate, ms": lambda row: f"{row['first_ms']['mlx_lm']:.1f}",
        "ratio (spread)": lambda row: "{:.2f} ({:.2f} to {:.2f})".format(
            row["first_ms"]["ratio"], *row["first_ms"]["spread"]
        ),
        "rounds": lambda row: row["rounds"],
    }
    report.table(columns, report.rows)


if __name__ == "__main__":
    main()
