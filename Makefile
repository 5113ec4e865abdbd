# The commands a person types. Each makes or completes .venv first (seconds, when there is nothing to do).
# `make help` prints what stands behind the targets below, and these:
#   PYTHON=python3.12         another interpreter, for every command
#   CHAPTER=07                one chapter, for notebooks, solutions and measure
#   PROFILE=quick|full|smoke  how large, for lab, solutions and measure (the same as COMPANION_PROFILE=…)
#   SEEDS=10                  how many runs measure makes
#   LAB_FLAGS="--port=9000"   for lab: flags of JupyterLab
#   BENCH_FLAGS=--quick       for bench: its flags
#   GPU_FLAGS=--list          for gpu: its flags
PYTHON ?= python3
SEEDS ?= 5
PY = .venv/bin/python
chapter = $(if $(CHAPTER),--chapter $(CHAPTER))
profile = $(if $(PROFILE),--profile $(PROFILE))

.PHONY: help lab test test-full test-browser notebooks solutions measure bench gpu experiments-report requirements
.DEFAULT_GOAL = lab

help:  # this list
	@awk -F ':[^#]*# ' '/^[a-z-]+:.*# /{printf "make %-20s %s\n", $$1, $$2}' $(firstword $(MAKEFILE_LIST))
	@awk 'BEGIN{print "with, after the command:"} /^#   [A-Z_]+=/{sub(/^# /, ""); print}' $(firstword $(MAKEFILE_LIST))

lab: setup-course  # open the course in JupyterLab
	$(if $(PROFILE),COMPANION_PROFILE=$(PROFILE)) $(PY) -m companion.course lab $(LAB_FLAGS)

test: setup-test  # everything CI checks
	$(PY) -m ruff check
	$(PY) -m ruff format --check
	$(PY) -m mypy
	$(PY) -m pytest --nbval-lax -n 2 --dist loadscope

test-full: test  # the same, and every band again under other instruction sets and thread counts
	$(PY) -m pytest -m long tests

test-browser: setup-browser  # the same notebooks in JupyterLab in a real browser
	$(PY) -m pytest -m browser tests/browser

notebooks: setup-instructor  # authors: solutions/*.py -> solutions/*.ipynb and chapters/*.ipynb
	$(PY) -m companion.course notebooks $(chapter)

solutions: setup-instructor  # instructors: run every solution on this machine, and report
	$(PY) -m companion.course solutions $(chapter) $(profile)

measure: setup-instructor  # authors: minutes, memory and bands -> measured.toml
	$(PY) -m companion.course measure $(chapter) $(profile) --seeds $(SEEDS)

bench: setup-bench  # time, memory and codes beside other libraries -> benchmarks/README.md
	$(PY) -m benchmarks $(BENCH_FLAGS)

gpu: setup-bench  # authors, with a GPU: tests on it, the tables of bench, profile full of every chapter -> measured.toml
	$(PY) -m companion.course gpu $(GPU_FLAGS)

experiments-report: setup-instructor  # what the source reports claim, measured -> experiments/README.md
	$(PY) -m experiments.page

requirements:  # authors: the newest versions that go together -> requirements.txt (needs uv)
	uv pip compile --universal --all-extras --upgrade --python-version 3.11 --no-annotate --no-emit-index-url --no-emit-find-links --custom-compile-command "make requirements" pyproject.toml -o requirements.txt

setup-%:
	@$(PYTHON) companion/course/bootstrap.py $*
