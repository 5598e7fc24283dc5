# The service in a container. Build: docker build -t yral-ai-chat .
# Run with a read-only root: --read-only --tmpfs /tmp, and volumes at /app/data, /app/uploads and /app/logs.
# The images are pinned by version; to pin them by content as well, add the @sha256:… that `docker pull` prints.

FROM ghcr.io/astral-sh/uv:0.13.9 AS uv

FROM python:3.13-slim-bookworm AS build
COPY --from=uv /uv /usr/local/bin/uv
ENV UV_COMPILE_BYTECODE=1 UV_LINK_MODE=copy UV_PYTHON_DOWNLOADS=never
WORKDIR /app
# What changes seldom first: an edit of the code builds only what is below.
COPY pyproject.toml uv.lock ./
RUN --mount=type=cache,target=/root/.cache/uv uv sync --frozen --no-dev --extra litestream
COPY manage.py ./
COPY CHANGELOG.md COMMI[T] ./
COPY yral_chat ./yral_chat
COPY personas ./personas
COPY media_uploads ./media_uploads
COPY conversations ./conversations
COPY templates ./templates
COPY fixtures ./fixtures
COPY deploy/entrypoint.sh deploy/gunicorn.conf.py deploy/jobs.sh ./deploy/
COPY deploy/metabase ./deploy/metabase
# As development, which keeps no secret-key: that belongs in no image. The folders are mount points.
RUN ENVIRONMENT=development ENV_FILE='' LOG_FILE='' .venv/bin/python manage.py collectstatic --noinput --verbosity 0 \
    && .venv/bin/python -m compileall -q -j 0 yral_chat personas media_uploads conversations \
    && rm -rf data uploads logs \
    && mkdir data uploads logs

FROM python:3.13-slim-bookworm
RUN groupadd --system --gid 10001 yral && useradd --system --uid 10001 --gid 10001 --no-create-home --home-dir /tmp yral
WORKDIR /app
COPY --from=build /app /app
# Volumes that are made from these are the service's.
RUN chown 10001:10001 data uploads logs
ENV PATH=/app/.venv/bin:$PATH PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 HOME=/tmp \
    ENV_FILE="" ENVIRONMENT=production HOST=0.0.0.0 PORT=8000
USER 10001:10001
EXPOSE 8000
VOLUME ["/app/data", "/app/uploads", "/app/logs"]
# Answers and streams under way may finish: see GRACEFUL_TIMEOUT.
STOPSIGNAL SIGTERM
# The first start of a new machine may restore the database, and who waits for this one mustn't give up meanwhile.
HEALTHCHECK --interval=15s --timeout=5s --start-period=10m --retries=3 \
    CMD ["python", "-c", "import os, urllib.request as u; u.urlopen(f'http://127.0.0.1:{os.environ.get(\"PORT\") or 8000}/health', timeout=4)"]
ENTRYPOINT ["/app/deploy/entrypoint.sh"]
