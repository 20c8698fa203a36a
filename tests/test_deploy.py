"""The container and its examples: what they say to `vadapter serve`, and of one another."""

import argparse
import json
import re
from pathlib import Path

import pytest

from vadapter.cli import serve

yaml = pytest.importorskip("yaml")
FOLDER = Path(__file__).parents[1] / "deploy"
DOCKERFILE = (FOLDER / "Dockerfile").read_text()
ENTRYPOINT = json.loads(re.search(r"^ENTRYPOINT (.+)$", DOCKERFILE, re.MULTILINE)[1])


def parsed(arguments):
    parser = argparse.ArgumentParser(exit_on_error=False)
    serve.add_arguments(parser)
    return parser.parse_args(arguments)


def containers():
    cloud_run = yaml.safe_load((FOLDER / "cloud-run.yaml").read_text())
    deployment, _ = yaml.safe_load_all((FOLDER / "gke.yaml").read_text())
    return [each["spec"]["template"]["spec"] for each in (cloud_run, deployment)]


def test_the_container_s_command_is_one_that_vadapter_takes():
    command = json.loads(re.search(r"^CMD (\[.+\])$", DOCKERFILE, re.MULTILINE)[1])
    args = parsed([*ENTRYPOINT[2:], *command])
    assert ENTRYPOINT[:2] == ["vadapter", "serve"]
    assert (args.host, args.port, args.bundle) == ("0.0.0.0", 8080, ["/models/bundle"])


@pytest.mark.parametrize("spec", containers(), ids=["cloud-run", "gke"])
def test_the_examples_run_what_the_container_serves(spec):
    (container,) = spec["containers"]
    args = parsed([*ENTRYPOINT[2:], *container["args"]])
    assert container["ports"][0]["containerPort"] == args.port
    assert container["startupProbe"]["httpGet"]["path"] == "/health"
    (key,) = container["env"]
    assert key["name"] == serve.KEY and set(key["valueFrom"]) == {"secretKeyRef"}
    (models,) = [mount for mount in container["volumeMounts"] if mount["mountPath"] == "/models"]
    assert all(path.startswith("/models/") for path in (*args.bundle, args.encoder, args.decoder))
    assert models["name"] in {volume["name"] for volume in spec["volumes"]}
    ends = spec.get("terminationGracePeriodSeconds", spec.get("timeoutSeconds"))
    assert ends > args.max_seconds


def test_the_build_gets_what_the_wheel_is_made_of():
    kept = re.findall(r"^!(.+)$", (FOLDER / "Dockerfile.dockerignore").read_text(), re.MULTILINE)
    assert {"vadapter", "gin", "data", "setup.py", "pyproject.toml", "README.md", "constraints.txt"} <= {*kept}
    assert all((FOLDER.parent / path).exists() for path in kept)


def test_the_server_is_no_root():
    user = re.findall(r"^USER (\d+)$", DOCKERFILE, re.MULTILINE)
    gke = containers()[1]["securityContext"]
    assert user == [str(gke["runAsUser"])] and gke["runAsNonRoot"]
