#!/bin/sh
cd "$(dirname "$0")/.." && exec "${PYTHON:-.venv/bin/python}" -m yral_chat.entrypoint
