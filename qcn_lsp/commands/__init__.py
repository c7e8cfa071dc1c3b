"""The subcommands of `qcn`, one file each; imported when they are run."""
