# One short target per task; `make` alone lists them. Everything that installs goes to .venv.
PYTHON ?= python3
EPOCHS ?= 10
BIN := .venv/bin
SWEEP := experiment=baseline,dropout_scheduler,dropout_as_run model=network_a,network_b

# $(call at-most,N): EPOCHS where that is less, else N.
at-most = $(shell echo $$(( $(EPOCHS) < $(1) ? $(EPOCHS) : $(1) )))

# $(call lacks,COMMANDS): whether one of these is missing.
lacks = ! (for command in $(1); do command -v $$command >/dev/null || exit 1; done)
APT_INSTALL := apt-get update -q && DEBIAN_FRONTEND=noninteractive apt-get install -qy --no-install-recommends

.PHONY: help install sweep paper test test-browser test-gpu test-portable test-slurm test-ray test-loggers lint types torture lock benchmark tensorboard clean
help:  ## list the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

sweep: .venv/installed  ## train both networks in three experiments and print the table; EPOCHS=500 for the report's length
	$(BIN)/mnist-train -m sweep=report_$(EPOCHS)_epochs $(SWEEP) trainer.max_epochs=$(EPOCHS)

# One sweep after the other; the same command goes on where it stopped. Its name says how long the longest runs are.
PAPER = $(BIN)/mnist-train -m model=network_a,network_b seed='range(0,5)' sweep=paper_$(EPOCHS)_epochs
SHORTER = trainer.max_epochs=$(call at-most,100)
paper: EPOCHS = 500
paper: .venv/installed  ## the report's experiments at its own length, over five seeds, and judged (hours); EPOCHS=20: shorter, not judged
	$(PAPER)/long experiment=baseline,dropout_scheduler,dropout_as_run trainer.max_epochs=$(EPOCHS)
	$(PAPER)/intended experiment=dropout_as_intended $(SHORTER)
	$(PAPER)/factors experiment=baseline model.dropout=0,0.3 model.init=default,xavier_uniform scheduler=none,step $(SHORTER)
	$(PAPER)/more_dropout experiment=dropout_as_run model.dropout=0.4,0.5,0.6 $(SHORTER)
	$(PAPER)/best experiment=best trainer.max_epochs=$(call at-most,300)
	$(BIN)/mnist-report logs/sweeps/paper_$(EPOCHS)_epochs \
	  $(if $(filter 500,$(EPOCHS)),--output logs/paper --readme README.md)

test: lint types  ## lint, types and tests
	$(BIN)/pytest -n 2 --dist worksteal

test-browser: .venv/installed  ## what Chromium shows of TensorBoard; BROWSER='--screenshots DIR' keeps pictures
	$(BIN)/pytest -m browser tests/tensorboard/test_browser.py $(BROWSER)

lint: .venv/installed  ## style and formatting, and that imports point one way
	$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/lint-imports

types: .venv/installed  ## mypy, strict on the package
	$(BIN)/mypy

test-gpu: .venv/installed  ## what only a GPU can show; elsewhere these tests are skipped
	$(BIN)/pytest -m gpu tests/gpu

test-slurm: .venv/installed  ## a sweep on a real Slurm of one node, installed with apt-get where it is not there; takes root
	if $(call lacks,slurmctld mariadbd); then \
	  $(APT_INSTALL) slurm-wlm munge slurmdbd mariadb-server-core mariadb-client-core; fi
	$(BIN)/pytest -m slurm tests/sweeps/test_slurm.py

EMULATORS = qemu-x86_64 qemu-aarch64 aarch64-linux-gnu-g++ clang++
test-portable: .venv/installed  ## the same bits on emulated CPUs, Intel, AMD and ARM; installs emulators with apt-get, as root
	if $(call lacks,$(EMULATORS)); then $(APT_INSTALL) qemu-user g++-aarch64-linux-gnu clang; fi
	$(BIN)/pytest -n 2 -m portable tests/portable tests/steps/test_kernel_bits.py

# Ray is large, and not in the lock: it stays outside of the environment.
test-ray: .venv/installed  ## a sweep on Ray, which it installs in build/
	test -d build/ray || $(BIN)/pip install --quiet --disable-pip-version-check --target build/ray 'ray>=2.50,<3'
	PYTHONPATH=build/ray $(BIN)/pytest -m ray tests/sweeps/test_cluster.py

# Nor are these in the lock. What they share with the environment is the same version in both.
LOGGERS = mlflow-skinny wandb onnx onnxruntime onnxscript
test-loggers: .venv/installed  ## runs with Weights & Biases offline and MLflow, a network in ONNX Runtime; installs them in build/
	mkdir -p build && $(BIN)/pip freeze --exclude-editable > build/loggers.txt
	test -d build/loggers || $(BIN)/pip install --quiet --disable-pip-version-check --target build/loggers \
	  --constraint build/loggers.txt $(LOGGERS)
	PYTHONPATH=$(CURDIR)/build/loggers $(BIN)/pytest -m loggers tests/run/test_loggers.py

torture: .venv/installed  ## stop runs at 20 random moments by SIGKILL and by SIGTERM, and a sweep five times: the same bits
	$(BIN)/pytest -s tests/run/test_torture.py tests/sweeps/test_launcher.py -k 'test_torture or killed' --kills 20

benchmark: .venv/installed  ## measure the training loop beside its peers (more than half an hour)
	$(BIN)/mnist-benchmark

tensorboard: .venv/installed  ## watch logs/ at http://127.0.0.1:6006
	$(BIN)/mnist-tensorboard logs

install: .venv/installed  ## make the environment, if it is not there and up to date

# Made anew when the lock changes, so that it holds what the lock says and nothing else. The stamp comes last:
# an installation that was interrupted is not taken for one.
.venv/installed: requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' || { \
	  echo "PYTHON=$(PYTHON): is `$(PYTHON) --version 2>&1`; give Python 3.11, 3.12 or 3.13: make PYTHON=python3.12 ..." >&2; exit 1; }
	$(PYTHON) -m venv --clear .venv
	$(BIN)/pip install --quiet --disable-pip-version-check --require-hashes -r requirements.lock
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	touch $@

lock:  ## resolve requirements.lock anew (needs uv)
	uv pip compile pyproject.toml --extra benchmark --extra dev --extra slurm --universal --python-version 3.11 --generate-hashes \
	  --no-emit-index-url --no-annotate --no-header --upgrade -o requirements.lock

clean:  ## remove the environment and caches; logs stay
	rm -rf .venv .mypy_cache .pytest_cache .ruff_cache build *.egg-info
