# One image for every process of the orchestrator; the command says which. `docker build .` makes the one for production, without the
# extra `devkit`; `--target devkit` adds what the sandbox, and the other commands for development, need.
FROM python:3.12.12-slim-bookworm AS base

ENV PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    PIP_NO_CACHE_DIR=1 \
    PIP_DISABLE_PIP_VERSION_CHECK=1

WORKDIR /app

# Apart from the code, so that a change of code does not fetch everything again.
COPY requirements.txt ./
RUN pip install --no-deps --require-hashes -r requirements.txt

COPY pyproject.toml LICENSE ./
COPY migrations ./migrations
COPY orchestrator ./orchestrator
# Editable, as on a developer's machine: what runs is /app, migrations included. The backend is among the requirements.
RUN pip install --no-deps --no-build-isolation -e . \
    && python -m compileall -q orchestrator migrations \
    && useradd --system --uid 10001 --no-create-home --shell /usr/sbin/nologin orchestrator

USER 10001
EXPOSE 8000
CMD ["orchestrator", "api", "--host", "0.0.0.0", "--port", "8000"]

FROM base AS devkit
USER root
COPY requirements-devkit.txt ./
RUN pip install --no-deps --require-hashes -r requirements-devkit.txt
USER 10001

FROM base AS production
