//! Runs of a scene under strace. Its counts are per thread: an injection at the third `write` meets every thread that comes
//! to its third one. Only the program itself is traced; each outside program is traced by a wrapper of its own on PATH, so
//! that it is certain which start of it is meant. (The traced program keeps its parent, with `-D`, and so dies with it.)

use super::Scene;
use super::points::{Call, Point, Who};
use crate::{Ran, finish};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Records a run that must succeed.
pub fn record<S: Scene>(scene: &S, tools: &[&str]) -> Vec<Call> {
    let dir = scene.kit().path("rig");
    for tool in tools {
        wrap(scene, tool, &format!("exec strace -D -f -y -qq -s 200 -o '{}/{tool}.log.'$n", dir.display()), None);
    }
    let log = dir.join("log");
    let traced = traced(scene, &["-y", "-qq", "-s", "200", "-o", log.to_str().unwrap()]);
    let ran = finish(traced, &scene.input());
    assert_eq!((ran.status, ran.err.as_str()), (0, ""), "the scene itself must succeed: {}", ran.out);
    let mut calls = read(&log, &None);
    for tool in tools {
        let starts = (1..).take_while(|n| dir.join(format!("{tool}.{n}")).exists()).count();
        assert!(starts > 0, "{tool} is not run");
        for n in 1..=starts {
            calls.extend(read(&dir.join(format!("{tool}.log.{n}")), &Some(((*tool).to_owned(), n))));
        }
    }
    calls
}

/// Does to a run what the point says; how it ended, and whether it came to that.
pub fn strike<S: Scene>(scene: &S, point: &Point, tools: &[&str]) -> (Ran, bool) {
    let what = point.error.map_or("signal=KILL".to_owned(), |error| format!("error={error}"));
    let inject = format!("inject={}:{what}:when={}", point.name, point.when);
    let (trace, hit) = (format!("trace={}", point.name), scene.kit().path("rig/hit"));
    let hit_name = hit.to_str().unwrap();
    let options = ["-q", "-o", hit_name, "-e", trace.as_str(), "-e", inject.as_str()];
    let command = match &point.who {
        None => traced(scene, &options),
        Some((tool, start)) => {
            assert!(tools.contains(&tool.as_str()));
            wrap(
                scene,
                tool,
                &format!("exec strace -D -f {}", options.map(|o| format!("'{o}'")).join(" ")),
                Some(*start),
            );
            with_tools(scene, scene.command())
        }
    };
    let ran = finish(limited(&command), &scene.input());
    let hit = fs::read_to_string(hit).unwrap_or_default();
    (ran, hit.contains(if point.kills() { "killed by SIGKILL" } else { "(INJECTED)" }))
}

/// The scene's command under strace, without the programs that it starts.
fn traced<S: Scene>(scene: &S, options: &[&str]) -> Command {
    fs::create_dir_all(scene.kit().path("rig")).unwrap();
    let command = scene.command();
    let mut traced = scene.kit().command("strace");
    traced.args(["-f", "-b", "execve"]).args(options).arg("--").arg(command.get_program()).args(command.get_args());
    with_tools(scene, like(traced, &command))
}

/// The same, ended after two minutes.
fn limited(command: &Command) -> Command {
    let mut limited = Command::new("timeout");
    limited.args(["-k", "5", "120"]).arg(command.get_program()).args(command.get_args());
    like(limited, command)
}

/// Gives a command the environment and the directory of another.
fn like(mut command: Command, other: &Command) -> Command {
    command.envs(other.get_envs().filter_map(|(key, value)| Some((key, value?))));
    if let Some(dir) = other.get_current_dir() {
        command.current_dir(dir);
    }
    command
}

/// Puts the wrappers first on PATH.
fn with_tools<S: Scene>(scene: &S, mut command: Command) -> Command {
    let path = command.get_envs().find(|(key, _)| *key == "PATH").and_then(|(_, value)| value).unwrap().to_owned();
    let path = std::iter::once(scene.kit().path("rig/bin")).chain(std::env::split_paths(&path));
    command.env("PATH", std::env::join_paths(path).unwrap());
    command
}

/// Puts a tool on PATH that runs the real one, under `tracer` if it is this start of it; without a number always.
fn wrap<S: Scene>(scene: &S, tool: &str, tracer: &str, start: Option<usize>) {
    let (dir, real) = (scene.kit().path("rig"), real(&scene.command(), tool));
    let when = start.map_or("true".to_owned(), |start| format!("[ $n = {start} ]"));
    let script = format!(
        "#!/bin/sh\nn=1\nwhile ! mkdir '{}/{tool}.'$n 2>/dev/null; do n=$((n + 1)); done\n\
         if {when}; then {tracer} '{1}' \"$@\"; fi\nexec '{1}' \"$@\"\n",
        dir.display(),
        real.display()
    );
    let made = scene.kit().write(&format!("rig/{tool}"), script);
    let bin = scene.kit().path("rig/bin");
    fs::create_dir_all(&bin).unwrap();
    // Another program writes it: a child that another thread starts just now would keep our descriptor, and it from running.
    assert!(Command::new("install").args(["-m", "755"]).arg(made).arg(bin).status().unwrap().success());
}

fn real(command: &Command, tool: &str) -> PathBuf {
    let path = command.get_envs().find(|(key, _)| *key == "PATH").and_then(|(_, value)| value).unwrap();
    let found = std::env::split_paths(path).map(|dir| dir.join(tool)).find(|path| path.is_file());
    found.unwrap_or_else(|| panic!("{tool} is not on PATH"))
}

fn read(log: &Path, who: &Who) -> Vec<Call> {
    let text = String::from_utf8_lossy(&fs::read(log).unwrap()).into_owned();
    let call = |line: &str| {
        let (thread, line) = line.split_once(' ')?;
        let line = line.trim_start();
        let (name, _) = line.split_once('(')?;
        let plain = name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_');
        plain.then(|| Call { who: who.clone(), thread: thread.into(), name: name.into(), line: line.into() })
    };
    text.lines().filter_map(call).collect()
}
