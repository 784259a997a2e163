"""Pictures: numbers in, PNG files out. Nothing here is imported before something is to be drawn."""

PICTURES = "plots"  # the folder of pictures in that of a run; beside FILE.json it is FILE.plots
