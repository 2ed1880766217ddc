"""What every run needs: options from the command line, files, stage directories, logs,
processes, the CPU."""
