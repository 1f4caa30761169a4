"""The results page: what the runs under a directory say, and what they say of the original report's claims.

Open `command.py` first, which is `mnist-report`, and then `page.py`, which composes the page.

- `command.py`: the command; copies the records of runs to keep.
- `page.py`: the page, block by block; `readme.py`: the results in a README.
- `claims.py`, `claims.yaml`: each claim, a function and its words.
- `sheet.py`: how a claim is judged: rows and verdicts.
- `evidence.py`: which runs speak for an experiment, and statistics over seeds.
- `factorial.py`: what dropout, initialisation and schedule do, alone and together.
- `comparison.py`: the original report's runs beside ours, in numbers.
- `original.py`, `original.yaml`, `curves.csv`: what the original report says, and every epoch that it recorded.
- `gallery.py`: which figures there are, and their captions.
- `figures.py`: the charts themselves.
- `markdown.py`, `html.py`, `report.css`: texts and tables as Markdown, and the page as HTML.
"""
