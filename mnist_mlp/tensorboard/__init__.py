"""What TensorBoard shows of a run, and the command that serves it. Open `content.py` first.

- `content.py`: what is shown: charts, hyperparameters, texts, curves, histograms, and the table of pictures
- `pictures.py`: draws the pictures
- `events.py`: the callback that writes all of it as the run goes on
- `writer.py`: event files, and Lightning's logger over them
- `serve.py`: `mnist-tensorboard`
- `plugins.py`: the parts of TensorBoard that it changes
"""
