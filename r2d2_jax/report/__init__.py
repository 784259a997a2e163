"""The report of a run or an evaluation: one HTML file that says what was trained, how good it is, and shows answers."""

REPORT = "report.html"  # of a run, in its folder
PICTURES = "plots"  # the folder of pictures in that of a run; beside FILE.json it is FILE.plots
