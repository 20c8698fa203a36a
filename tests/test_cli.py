"""The command's front: quick help, the gin conventions, and messages instead of tracebacks."""

import dataclasses
import json
import subprocess
import sys
import types
from pathlib import Path

import gin
import pytest
from etils import epath

from vadapter.base.errors import UserError
from vadapter.cli import arguments, main
from vadapter.partitioning import hosts as processes
from vadapter.partitioning.hosts import HostsConfig
from vadapter.partitioning.rendezvous import NotAllThereError
from vadapter.recipes import gin_files
from vadapter.recipes import gin_front as config

HEAVY = ("jax", "flax", "tensorflow", "seqio", "numpy")


@dataclasses.dataclass(frozen=True)
class Engine:
    """A config class as the library writes them."""

    power: int
    gears: tuple[int, ...] = (1, 2)
    name: str = "engine"
    spare: "Engine | None" = None
    notes: dict = dataclasses.field(default_factory=dict)


def drive(engine: Engine, distance: float = 1.0, stops=()) -> tuple:
    """A function as the library writes them."""
    return engine, distance, stops


def crash(reason: str = "no fuel"):
    raise UserError(f"The engine does not start: {reason}.")


config.register([Engine, drive], crash)


@pytest.fixture(autouse=True)
def clean_gin():
    yield
    gin.clear_config()


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def command(monkeypatch):
    """Installs a subcommand `go` that runs the given function; returns a function that calls it."""

    def install(run, *argv: str) -> int:
        module = types.ModuleType("go_command", "Goes.")
        module.add_arguments = arguments.add_gin_arguments
        module.run = run
        monkeypatch.setitem(sys.modules, "go_command", module)
        monkeypatch.setattr(main, "COMMANDS", (main.Command("go", "goes", "go_command"),))
        return main.main(["go", *argv])

    return install


def modules_after(*argv: str) -> tuple[set[str], str]:
    """The imported modules and the output of a fresh process that runs `vadapter ARGV`."""
    code = (
        "import sys; from vadapter.cli.main import main; status = main(sys.argv[1:]);"
        "print('MODULES', *sys.modules); sys.exit(status)"
    )
    done = subprocess.run([sys.executable, "-c", code, *argv], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    output, _, modules = done.stdout.partition("MODULES")
    return {name.split(".")[0] for name in modules.split()}, output


# ---- the front


@pytest.mark.parametrize(
    "argv", [["--help"], ["--version"], *([c.name, "--help"] for c in main.COMMANDS)], ids=" ".join
)
def test_help_needs_no_heavy_import(argv):
    modules, output = modules_after(*argv)
    assert not modules & set(HEAVY)
    assert "vadapter" in output


def test_help_lists_every_command(capsys):
    assert main.main(["--help"]) == 0
    output = capsys.readouterr().out
    assert all(command.name in output and command.summary in output for command in main.COMMANDS)


@pytest.mark.parametrize("argv", [[], ["fly"], ["--fast"]])
def test_a_wrong_command_line_exits_with_2(argv, capsys):
    assert main.main(argv) == 2
    assert "error" in capsys.readouterr().err


def test_a_user_error_is_one_paragraph(command, capsys):
    assert command(lambda args: crash("stolen")) == 2
    assert capsys.readouterr().err == "vadapter: error: The engine does not start: stolen.\n"


def test_a_user_error_inside_of_gin_is_the_same_paragraph(command, capsys):
    def run(args):
        config.parse_gin(bindings=["crash.reason = 'rust'"])
        gin.get_configurable("crash")()

    assert command(run) == 2
    assert capsys.readouterr().err == "vadapter: error: The engine does not start: rust.\n"


def test_what_may_work_next_time_has_a_status_of_its_own(command, capsys):
    def run(args):
        raise NotAllThereError("One did not come.")

    assert command(run) == 143
    assert capsys.readouterr().err == "vadapter: error: One did not come.\n"


@pytest.mark.parametrize(
    ("error", "status", "said"),
    [(UserError("Too few."), 2, "vadapter: error: Too few.\n"), (ZeroDivisionError("by 0"), 1, "Traceback")],
)
def test_one_process_of_many_ends_at_once_after_it_has_said_why(command, capsys, monkeypatch, error, status, said):
    def run(args):
        raise error

    def leave(status):
        raise SystemExit(status)

    monkeypatch.setattr(processes, "is_connected", lambda: True)
    monkeypatch.setattr(processes.os, "_exit", leave)
    with pytest.raises(SystemExit, match=str(status)):
        command(run)
    assert said in capsys.readouterr().err


def test_the_demo_is_a_run_of_one_process(folder, capsys, monkeypatch):
    monkeypatch.setenv("JAX_NUM_PROCESSES", "2")
    assert main.main(["demo"]) == 2
    assert "one of 2 processes" in capsys.readouterr().err
    assert not any(folder.iterdir())


def test_debug_shows_the_traceback(command, capsys):
    assert command(lambda args: crash(), "--debug") == 2
    assert "Traceback" in capsys.readouterr().err


def test_a_bug_is_not_disguised(command):
    with pytest.raises(ZeroDivisionError):
        command(lambda args: 1 / 0)


def test_an_interrupt_exits_with_130(command):
    def run(args):
        raise KeyboardInterrupt

    assert command(run) == 130


def test_gin_arguments_reach_the_command(command, folder):
    (folder / "a.gin").write_text("Engine.power = 1\nNAME = 'a'\nEngine.name = %NAME\n")
    (folder / "lib").mkdir()
    (folder / "lib" / "b.gin").write_text("Engine.power = 2\n")
    made = []

    def run(args):
        arguments.parse_gin_arguments(args)
        made.append(gin.get_configurable("Engine")())

    assert command(run, "--gin_file=a.gin", "--gin_file", "b.gin", "--gin_search_paths=lib", "--gin.NAME='c d'") == 0
    assert made == [Engine(power=2, name="c d")]


# ---- registration


def test_a_registered_dataclass_is_the_very_class():
    config.parse_gin(bindings=["Engine.power = 3", "Engine.gears = [1, [2, 3]]", "drive.engine = @Engine()"])
    engine, distance, stops = gin.get_configurable("drive")(stops=[1])
    assert type(engine) is Engine
    assert engine == Engine(power=3, gears=(1, (2, 3)))
    assert (distance, stops) == (1.0, [1])
    hash(dataclasses.replace(engine, notes=()))


def test_scopes_make_different_objects():
    config.parse_gin(
        bindings=[
            "Engine.power = 1",
            "large/Engine.power = 9",
            "large/Engine.spare = @tiny/Engine()",
            "tiny/Engine.name = 'tiny'",
            "drive.engine = @large/Engine()",
        ]
    )
    assert gin.get_configurable("drive")()[0] == Engine(power=9, spare=Engine(power=1, name="tiny"))


def test_registering_twice_is_harmless_and_a_taken_name_is_refused():
    config.register(Engine, [drive, Engine])

    def drive_again():
        pass

    drive_again.__name__ = "drive"
    with pytest.raises(UserError, match="drive in gin is wanted for .*test_cli.drive and taken by .*test_cli.drive"):
        config.register(drive_again)


# ---- parsing


def test_each_parse_starts_afresh():
    config.parse_gin(bindings=["Engine.power = 1", "Engine.name = 'old'"])
    config.parse_gin(bindings=["Engine.power = 2"])
    assert gin.get_configurable("Engine")() == Engine(power=2)


def test_shipped_files_are_found_from_anywhere(folder, monkeypatch):
    shipped = folder / "shipped" / "gin"
    (shipped / "runs").mkdir(parents=True)
    (shipped / "base.gin").write_text("Engine.power = 1\n")
    (shipped / "runs" / "go.gin").write_text("include 'gin/base.gin'\nEngine.name = 'go'\n")
    monkeypatch.setattr(gin_files.resources, "folder", lambda name: shipped)
    for path in ("runs/go.gin", "gin/runs/go.gin", str(shipped / "runs/go.gin")):
        config.parse_gin([path])
        assert gin.get_configurable("Engine")() == Engine(power=1, name="go")


def test_the_working_directory_comes_first_then_the_search_paths(folder):
    for place, power in (("", 1), ("a", 2), ("b", 3)):
        (folder / place).mkdir(exist_ok=True)
        (folder / place / "here.gin").write_text(f"Engine.power = {power}\n")
    config.parse_gin(["here.gin"], search_paths=["b", "a"])
    assert gin.get_configurable("Engine")().power == 1
    (folder / "here.gin").unlink()
    config.parse_gin(["here.gin"], search_paths=["b", "a"])
    assert gin.get_configurable("Engine")().power == 3
    config.parse_gin(["here.gin"], search_paths=["a"])  # the search paths of another parse are forgotten
    assert gin.get_configurable("Engine")().power == 2


def test_saved_configurations_repeat_the_run(folder):
    config.parse_gin(bindings=["POWER = 7", "Engine.power = %POWER", "drive.engine = @Engine()", "crash.reason = 'x'"])
    first = gin.get_configurable("drive")()
    config.save_config(folder / "run")
    assert "crash" not in (folder / "run" / "operative_config.gin").read_text()
    config.parse_gin([str(folder / "run" / "config.gin")])
    assert gin.get_configurable("drive")() == first
    assert gin.query_parameter("crash.reason") == "x"


def test_which_machines_a_run_had_is_not_saved(folder):
    config.register(HostsConfig)
    address = f"{'host' * 30}:8476"  # too long for one line
    hosts = [f"HostsConfig.coordinator_address={address!r}", "other/HostsConfig.process_id = %NUMBER"]
    config.parse_gin(bindings=["NUMBER = 1", *hosts, "crash.reason = 'x'", "Engine.power = 7"])
    gin.get_configurable("HostsConfig")()
    assert gin.get_configurable("Engine")().power == 7
    config.save_config(folder)
    for name in ("config.gin", "operative_config.gin"):
        text = (folder / name).read_text()
        assert "Host" not in text and "host" not in text and "Engine.power = 7" in text
    config.parse_gin([str(folder / "config.gin")])
    assert gin.query_parameter("crash.reason") == "x"


def test_a_configuration_in_a_bucket_is_read(folder, monkeypatch):
    (folder / "config.gin").write_text("Engine.power = 9\n")

    def mounted(path):
        return Path(str(path).replace("gs://bucket/run", str(folder)))

    monkeypatch.setattr(epath, "Path", mounted)
    config.parse_gin(["gs://bucket/run/config.gin"])
    assert gin.get_configurable("Engine")().power == 9


def test_the_folder_gin_does_not_hide_the_library():
    root = Path(__file__).parents[1]
    done = subprocess.run(
        [sys.executable, "-c", "import gin; print(gin.__file__)"], cwd=root, capture_output=True, text=True
    )
    assert "__init__" in done.stdout and not done.stdout.startswith(str(root / "gin")), done.stderr


# ---- messages


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Engin.power = 1", [r"no configurable called Engin;.*Engine", r"bad\.gin, line 2: Engin\.power = 1"]),
        ("Engine.power = 1\ndrive.engine = @Engin()", ["no configurable called Engin;.*Engine"]),
        ("Engine.powr = 1", ["Engine has no parameter powr;.*power", r"bad\.gin, line 2"]),
        ("Engine.power = %POWR\nPOWER = 1", [r"macro %POWR .*POWER", r"--gin\.POWR=VALUE"]),
        (
            "GEARS = %gin.REQUIRED\nPOWER = %gin.REQUIRED\nEngine.power = %POWER\nEngine.gears = %GEARS",
            ["POWER, GEARS|GEARS, POWER", r"--gin\.POWER=VALUE"],
        ),
        ("include 'missing.gin'", [r"missing\.gin was not found", "--gin_search_paths", r"bad\.gin, line 2"]),
        ("Engine.power 1", ["syntax error", r"bad\.gin, line 2"]),
        ("Engine.power = diesel", ["syntax error", r"bad\.gin, line 2", "strings in quotes"]),
        ("Engine.gears = (1,", ["bracket|syntax"]),
        ("import no_such_module", ["no_such_module", r"bad\.gin, line 2"]),
    ],
    ids=lambda value: value.splitlines()[-1] if isinstance(value, str) else "",
)
def test_a_mistake_in_a_file_is_explained(folder, text, expected):
    (folder / "bad.gin").write_text(f"# header\n{text}\n")
    with pytest.raises(UserError) as caught:
        config.parse_gin(["bad.gin"])
    message = str(caught.value)
    assert "\n" not in message
    for pattern in expected:
        caught.match(pattern)


@pytest.mark.parametrize("named", ["BATCH_SIZ", "tiny/POWER"])
def test_a_macro_that_nothing_uses_is_refused_with_the_nearest_names(folder, named):
    (folder / "engine.gin").write_text(
        "BATCH_SIZE = 1\nPOWER = 2\nEngine.power = %BATCH_SIZE\ndrive.distance = %POWER\n"
    )
    (folder / "mine.gin").write_text(f"include 'engine.gin'\n\n{named} = 8\n")
    near = "BATCH_SIZE" if named.startswith("B") else "POWER"
    with pytest.raises(UserError, match=rf"Nothing uses the macro {named}.*{near}.*--gin\.{named}\."):
        config.parse_gin(["engine.gin"], [f"{named}=8"])
    with pytest.raises(UserError, match=rf"Nothing uses the macro {named}.*{near}.*mine\.gin:3"):
        config.parse_gin(["mine.gin"])


def test_a_saved_configuration_and_a_shipped_part_may_set_macros_that_nothing_uses(folder, monkeypatch):
    shipped = folder / "shipped" / "gin"
    for place in ("models", "experiments"):
        (shipped / place).mkdir(parents=True)
        (shipped / place / "a.gin").write_text("SPARE = 1\nEngine.power = 2\n")
    (folder / "config.gin").write_text("SPARE = 1\nEngine.power = 2\n")
    (folder / "weights.gin").write_text("SPARE = 1\nEngine.power = 2\n")  # as an import writes it
    monkeypatch.setattr(gin_files.resources, "folder", lambda name: shipped)
    for allowed in ("models/a.gin", "config.gin", "weights.gin"):
        config.parse_gin([allowed])
        assert gin.get_configurable("Engine")().power == 2
    (shipped / "models" / "a.gin").unlink()
    for refused in ("experiments/a.gin", "weights.gin"):
        (shipped / "experiments" / "a.gin").write_text("SPARED = 1\nEngine.power = 2\n")
        with pytest.raises(UserError, match="Nothing uses|No gin file was given that uses"):
            config.parse_gin([refused])


@pytest.mark.parametrize("old", ["ENCODER_RUN", "TINY_RUN", "LARGE_RUN"])
def test_a_former_name_says_the_new_one(folder, old):
    new = old.replace("RUN", "WEIGHTS")
    (folder / "run.gin").write_text(f"{new} = %gin.REQUIRED\nEngine.name = %{new}\nEngine.power = 1\n")
    (folder / "mine.gin").write_text(f"include 'run.gin'\n{old} = 'x'\n")
    (folder / "uses.gin").write_text(f"include 'run.gin'\n{new} = 'x'\ndrive.stops = %{old}\n")
    for files, bindings, place in ((["run.gin"], [f"{old}='x'"], f"--gin.{old}"), (["mine.gin"], [], "mine.gin:2")):
        with pytest.raises(UserError, match=f"{old} is called {new} now.*{place}"):
            config.parse_gin(files, bindings)
    with pytest.raises(UserError, match=f"{old} is called %{new} now"):
        config.parse_gin(["uses.gin"])
    (folder / "config.gin").write_text(f"{old} = 'x'\nEngine.name = %{old}\nEngine.power = 1\n")  # of a finished run
    config.parse_gin(["config.gin"])
    assert gin.get_configurable("Engine")().name == "x"


def test_a_missing_file_names_the_places(folder):
    with pytest.raises(UserError, match="runs/none.gin was not found in any of: the working directory, more"):
        config.parse_gin(["runs/none.gin"], search_paths=["more"])


@pytest.mark.parametrize("binding", ["NAME=foo", "NAME=runs/a b", "NAME=gs://bucket/x"])
def test_a_bare_string_hints_at_quotes(binding):
    value = binding.split("=")[1]
    with pytest.raises(UserError, match=f"--gin.NAME='\"{value}\"'"):
        config.parse_gin(bindings=[binding])


@pytest.mark.parametrize("binding", ["NAME", "NAME=", "=3"])
def test_a_binding_needs_a_name_and_a_value(binding):
    with pytest.raises(UserError, match="--gin.NAME=VALUE"):
        config.parse_gin(bindings=[binding])


def test_a_missing_value_is_explained_when_the_object_is_made(command, capsys):
    def run(args):
        config.parse_gin()
        gin.get_configurable("Engine")()

    assert command(run) == 2
    assert "Engine needs a value for power" in capsys.readouterr().err
    assert command(lambda args: gin.get_configurable("drive")(engine=gin.REQUIRED)) == 2
    assert "--gin.drive.engine=VALUE" in capsys.readouterr().err


# ---- vadapter report


def test_report_writes_the_files_that_are_asked_for(folder, capsys):
    for name, loss in (("base", 1.0), ("new", 0.5)):
        (folder / name).mkdir()
        (folder / name / "curve.jsonl").write_text(
            "".join(json.dumps({"step": step, "split": "val", "loss": loss / step}) + "\n" for step in (1, 2))
        )
    argv = [
        "report",
        "base",
        "new",
        "--baseline=base",
        "--output=out/r.html",
        "--results=out/r.json",
        "--picture=p.svg",
    ]
    assert main.main(argv) == 0
    assert "out/r.html" in capsys.readouterr().out
    assert "<svg" in (folder / "out" / "r.html").read_text()
    assert (folder / "p.svg").read_text().startswith("<")
    assert json.loads((folder / "out" / "r.json").read_text())["arms"]["new"]["steps_to_baseline"] == 1


def test_report_of_a_folder_without_a_run_is_the_users_mistake(folder, capsys):
    assert main.main(["report", str(folder)]) == 2
    assert "curve.jsonl" in capsys.readouterr().err
