# One image for every process of the orchestrator; the command says which. `docker build .` makes the one for production, without the
# extra `devkit`; `--target devkit` adds what the sandbox, and the other commands for development, need.
#
# Packages are installed in a stage of their own. The image has the environment /venv and no installer in it, runs under an account
# without rights, and writes nowhere but /tmp: run it with a read-only root file system.
FROM python:3.12.12-slim-bookworm AS base

ENV PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1

FROM base AS packages
ENV PIP_NO_CACHE_DIR=1 \
    PIP_DISABLE_PIP_VERSION_CHECK=1
RUN python -m venv --without-pip /venv
WORKDIR /source

# Apart from the code, so that a change of code does not fetch everything again.
COPY requirements.txt ./
RUN pip --python /venv/bin/python install --no-deps --require-hashes -r requirements.txt

FROM packages AS packages-devkit
COPY requirements-devkit.txt ./
RUN pip --python /venv/bin/python install --no-deps --require-hashes -r requirements-devkit.txt

# The wheel holds the migrations, too. The backend is among the requirements, so nothing unpinned is fetched for it.
FROM packages AS wheel
COPY pyproject.toml LICENSE ./
COPY migrations ./migrations
COPY orchestrator ./orchestrator
RUN /venv/bin/python -m hatchling build -t wheel

FROM packages-devkit AS installed-devkit
COPY --from=wheel /source/dist ./dist
RUN pip --python /venv/bin/python install --no-deps --no-index dist/*.whl \
    && PYTHONDONTWRITEBYTECODE= /venv/bin/python -m compileall -q /venv/lib

FROM packages AS installed
COPY --from=wheel /source/dist ./dist
RUN pip --python /venv/bin/python install --no-deps --no-index dist/*.whl \
    && PYTHONDONTWRITEBYTECODE= /venv/bin/python -m compileall -q /venv/lib

FROM base AS runtime
RUN useradd --system --uid 10001 --no-create-home --shell /usr/sbin/nologin orchestrator
ENV PATH=/venv/bin:$PATH
WORKDIR /tmp
USER 10001
EXPOSE 8000
CMD ["orchestrator", "api", "--host", "0.0.0.0", "--port", "8000"]

FROM runtime AS devkit
COPY --from=installed-devkit /venv /venv

FROM runtime AS production
COPY --from=installed /venv /venv
