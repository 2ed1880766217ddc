"""Compress a text classifier from the command line: options -> data -> stages -> table.

`--help` and every error in the options are answered before anything heavy is imported.
"""

import logging
import sys

from compression_config import UserError, check_versions, parse_options, runs_of
from console import is_disk_full, start_process
from ranks import is_first


def main(argv: list[str] | None = None) -> int:
    """Run the pipeline that the command line asks for; the table goes to stdout, all else to stderr."""
    try:
        options = parse_options(argv)
        check_versions()
        start_process(logging.ERROR if options.quiet else logging.DEBUG if options.verbose else logging.INFO)

        from ablation import ship_ablation, stopped_lines
        from audit import audit_table
        from experiment import finish, open_experiments
        from report import table

        with open_experiments(runs_of(options)) as experiments:
            if options.audit:
                if is_first():
                    print(audit_table(experiments[0].audit))
                return 0
            for experiment in experiments:
                experiment.run()
            if not is_first():
                return 0
            results = finish(experiments)
            rows = ship_ablation(experiments, results) if options.run_ablation else results[0]
        print(table(rows))
        stopped = stopped_lines(experiments)
        print(*(f"main.py: {line}\n" for line in stopped), sep="", end="", file=sys.stderr)
        return 3 if stopped else 0
    except UserError as error:
        return error.tell("main.py") if is_first() else 2
    except KeyboardInterrupt:
        print("main.py: stopped; the same command goes on from here", file=sys.stderr)
        return 130
    except Exception as error:
        if not is_disk_full(error, options.output_dir):
            raise
        print(f"main.py: error: no space is left in {options.output_dir}; what was finished is kept: free some space "
              "and give the same command again", file=sys.stderr)  # fmt: skip
        return 1


if __name__ == "__main__":
    sys.exit(main())
