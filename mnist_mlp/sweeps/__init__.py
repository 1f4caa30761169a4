"""Many runs at once: the launchers behind `mnist-train -m`, the search for settings, and the table at the end.

Open launcher.py first.

launcher.py       what Hydra calls: from overrides to jobs, and what a sweep ends with; how launchers are registered
jobs.py           a job, the source that a launcher gets jobs from, and how the end of a job is judged and recorded
compose.py        makes jobs of overrides, and looks at what their directories hold already
local.py          hydra/launcher=process: jobs side by side on this machine
process.py        the process of a job: started, stopped, run
machine.py        what this machine has: cores, GPUs, processes killed for lack of memory
cluster.py        what the launchers for clusters share
slurm.py          hydra/launcher=submitit_slurm
ray.py            hydra/launcher=ray
search.py         a source of jobs that looks for better settings, with Optuna
study.py          what a search has found: the best settings as an experiment, a table, a plot
search_figure.py  that plot
view.py           the live table of a sweep, and sweep.log
table.py          the table of finished runs, and results.csv
"""
