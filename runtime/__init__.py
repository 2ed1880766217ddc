"""What every run needs: stage directories, logs, processes, the CPU."""
