"""Programs: flags in, one library call out. Each is a script here and a console command of the installed package.

The package holds this folder and `configs/` by links, so that there is one copy of each.
"""
