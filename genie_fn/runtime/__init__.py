"""What every command needs: command line, console, signals, devices, files, provenance."""
