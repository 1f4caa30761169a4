"""A run on disk: what is written of it, and how that is read.

Open directory.py first: the files of a run, and how they are written whole.

recorder.py     the callback that writes each epoch
metrics.py      the table of metrics: the columns of metrics.csv, their titles and charts
checkpoint.py   checkpoints, written whole and read without executing anything
provenance.py   versions, commit and device, for run.json
refused.py      the directory of a command that was refused goes again
signals.py      stopping a run so that it can go on
streams.py      the states of the random generators
process.py      what a process sets before it imports PyTorch
trainer.py      Lightning's Trainer, quiet and in one process
records.py      the one reader of run.json, config.yaml and metrics.csv
shape.py        what recorded values must be: tables of fields and their rules
identity.py     which settings make a run another run
groups.py       runs that differ in nothing but their seeds and lengths
"""
